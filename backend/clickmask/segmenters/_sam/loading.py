"""A SAM from its checkpoint, exported to ONNX once. `name` is `family:variant`, as users write it."""

import importlib.util
import logging
from pathlib import Path

from clickmask.errors import NotReady
from clickmask.inference.catalogue import Host
from clickmask.inference.onnx_exports import Exporter, Progress
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.segmenter import Sam

log = logging.getLogger(__name__)

PACKAGES = {"torch": "torch", "segment_anything": "segment-anything"}  # as imported, as installed
PROMPTS = ("points", "box", "mask")  # of every SAM
EXPORTER = Exporter("clickmask.segmenters._sam.onnx_export", version=1)


def missing(name: str, host: Host) -> str:
    """The reason that this SAM cannot be loaded; empty if it can. Imports nothing."""
    if _exported(name, host):
        return ""
    exports = host.runtimes.exports and not host.runtimes.wants_torch
    purpose = " to export its weights, once" if exports else ""
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"it needs the package {package}{purpose}: make install, or pip install 'clickmask[torch]'"
    return host.weights.missing(name)


def load(name: str, host: Host) -> Sam:
    """Load SAM, after exporting the checkpoint if needed, which takes minutes. Raises NotReady. torch is
    imported only if SAM runs in it: on request, on a GPU, or after a failed export."""
    if reason := missing(name, host):
        raise NotReady(f"{name} cannot run: {reason}")
    try:
        folder = export(name, host)
    except NotReady as error:
        log.warning("%s; it runs in torch instead", error)
        folder = None
    if folder:
        return Sam(name, OnnxSam(folder, host.runtimes))
    from clickmask.segmenters._sam.torch_networks import TorchSam

    return Sam(name, TorchSam(host.weights.verify(name)))


def export(name: str, host: Host, progress: Progress = lambda share, what: None) -> Path | None:
    """The folder of the exported networks, made if needed; None if checkpoints run in torch. Each runtime
    runs a new export once, so that the fastest is known before the first click. Raises NotReady."""
    runtimes = host.runtimes
    if runtimes.exports is None or runtimes.wants_torch:
        return None
    if folder := _exported(name, host):
        return folder
    log.info("exporting %s, once", name)
    sha256 = host.weights.checkpoint(name).sha256
    folder = runtimes.exports.make(name, sha256, EXPORTER, host.weights.verify(name), progress)
    OnnxSam(folder, runtimes)
    return folder


def _exported(name: str, host: Host) -> Path | None:
    """The folder that `export` made. The official SHA-256 names it, so the checkpoint may be gone."""
    runtimes = host.runtimes
    if runtimes.exports is None or runtimes.wants_torch or name not in host.weights.checkpoints:
        return None
    return runtimes.exports.find(name, host.weights.checkpoint(name).sha256, EXPORTER)
