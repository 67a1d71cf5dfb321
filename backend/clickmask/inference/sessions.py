"""A network in an ONNX file, run by the fastest installed runtime. ONNX Runtime is always installed, OpenVINO
optionally. Each is imported when first needed, and imports no torch. Which is faster depends on the network,
the processor and the release, so it is measured once per file."""

import hashlib
import importlib.util
import io
import json
import logging
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from clickmask import files
from clickmask.errors import NEEDS_MEMORY, NotReady, OutOfMemory, is_out_of_memory
from clickmask.inference.onnx_exports import ExportsFolder

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Model = Path | bytes
Precision = Literal["f32", "bf16"]

MEASURING_S = 1.0  # running time after which the speed of a runtime is known
MAX_DECODERS = 8  # at once: about 200 clicks a second; each may take tens of megabytes


class Session(Protocol):
    """A network that is ready to run, without state between runs. For any thread."""

    @property
    def runtime(self) -> str: ...

    @property
    def precision(self) -> Precision: ...  # f32 if bf16 was requested but is not available

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """The outputs by name, in arrays that the caller owns. `feeds` have the types of the file. Waits
        while the session has as many runs under way as it was opened for."""
        ...


class EncodesOnCpu:
    """Says where a segmenter's encoder runs."""

    _encoder: Session

    @property
    def precision(self) -> str:
        return self._encoder.precision

    @property
    def runs_on(self) -> str:
        return f"{self._encoder.runtime} on the CPU, {self.precision}"


class OnnxRuntimeSession:
    """ONNX Runtime, on the CPU."""

    runtime = "onnxruntime"
    precision: Precision = "f32"  # its CPU kernels have no bf16

    def __init__(self, model: Model, threads: int, at_once: int, precision: Precision) -> None:
        library: Any = importlib.import_module("onnxruntime")
        library.disable_telemetry_events()  # only Windows builds send any
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # With a memory plan an encoder takes 3.2 GB more from the second run on, and gains nothing.
        # Decoders are small, and a little faster with one.
        options.enable_mem_pattern = at_once > 1
        # Spinning threads would keep a core busy for a while after each run.
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        source = str(model) if isinstance(model, Path) else model
        self._session = library.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._room = threading.BoundedSemaphore(at_once)
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with self._room:
            found: list[NDArray[Any]] = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, found, strict=True))


class OpenVinoSession:
    """OpenVINO, on the CPU."""

    runtime = "openvino"

    def __init__(self, model: Model, threads: int, at_once: int, precision: Precision) -> None:
        core: Any = import_openvino().Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision: Precision = precision if has_bf16 else "f32"
        options = {
            "INFERENCE_PRECISION_HINT": self.precision,  # the default is bf16 if the CPU has it
            "INFERENCE_NUM_THREADS": threads * at_once,
            "NUM_STREAMS": at_once,
            "ENABLE_CPU_PINNING": False,  # otherwise several processes share the same cores
        }
        network = core.read_model(str(model) if isinstance(model, Path) else io.BytesIO(model))
        compiled = core.compile_model(network, "CPU", options)
        # Node names match the file's. Fused tensors have several names, in any order.
        self._inputs: set[str] = {given.node.get_friendly_name() for given in compiled.inputs}
        names: list[str] = [output.node.get_friendly_name() for output in compiled.outputs]
        self._outputs = [name.rpartition("/sink_port_")[0] for name in names]
        # A request holds the arrays of one run. Last in, first out: its memory is warm, and the memory
        # of requests that are never needed is never touched.
        self._requests = queue.LifoQueue[Any]()
        for _ in range(at_once):
            self._requests.put(compiled.create_infer_request())

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if set(feeds) != self._inputs:  # a request would reuse the inputs of the run before
            raise ValueError(f"the network takes {sorted(self._inputs)}, not {sorted(feeds)}")
        request = self._requests.get()
        try:
            request.infer(dict(feeds), share_inputs=True)
            found = map(request.get_output_tensor, range(len(self._outputs)))
            return {name: np.array(each.data) for name, each in zip(self._outputs, found, strict=True)}
        finally:
            self._requests.put(request)


# By the package's name; of those installed, auto takes the first unless it can measure.
RUNTIMES = {"openvino": OpenVinoSession, "onnxruntime": OnnxRuntimeSession}


def open_session(
    model: Model,
    runtime: str = "auto",
    *,
    threads: int | None = None,
    at_once: int = 1,
    precision: Precision = "f32",
    example: Arrays | None = None,
    memory: Path | None = None,
) -> Session:
    """The network in `model`, a file or its bytes, for `at_once` runs of `threads` (default: all cores) each.
    bf16 keeps three digits, for networks that tolerate it, and is a hint: not every processor and runtime has
    it. `runtime` auto picks the one that runs `example` fastest, measured now or noted in the file `memory`;
    without an example, the first installed one of RUNTIMES. Raises NotReady if the network cannot run."""
    how = threads or usable_cores(), at_once, precision
    installed = installed_runtimes()
    if runtime != "auto" and runtime not in installed:
        raise NotReady(f"there is no runtime {runtime!r} here; installed: {', '.join(installed)}")
    candidates = installed if runtime == "auto" else [runtime]
    fingerprint = _fingerprint(model, installed, *how) if memory else ""
    if len(candidates) > 1 and memory and (noted := _notes(memory).get(fingerprint)) in installed:
        candidates = [noted]
    if len(candidates) == 1 or example is None:
        return _open(candidates[0], model, *how)

    lacks_memory = False
    speeds: dict[str, float] = {}  # seconds of a run
    session: Session | None = None
    for name in candidates:
        session = None  # one at a time: memory may have no room for a large network in both runtimes
        try:
            session = _open(name, model, *how)
            speeds[name] = _seconds_of_a_run(session, example)
        except Exception as error:  # noqa: BLE001 - undocumented classes; another runtime may run it
            log.warning("%s does not run a network: %s", name, error)
            lacks_memory |= is_out_of_memory(error)
    if not speeds and lacks_memory:
        raise OutOfMemory(f"the network {NEEDS_MEMORY}")
    if not speeds:
        raise NotReady(f"the network runs on none of {', '.join(candidates)}")
    said = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in speeds.items())
    log.info("measured a network: %s", said)
    fastest = min(speeds, key=speeds.__getitem__)
    if memory:
        notes = {**_notes(memory), fingerprint: fastest}
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            files.write(memory, json.dumps(notes, indent=1).encode(), durable=False)
        except OSError as error:  # a lost note only costs another measurement
            log.warning("a measurement cannot be noted: %s", error.strerror)
    if session is None or session.runtime != fastest:
        session = None
        session = _open(fastest, model, *how)
    return session


@dataclass(frozen=True)
class Runtimes:
    """Settings of how this process runs its networks. `runtime`: auto, torch, or one of RUNTIMES. `exact`:
    f32 everywhere. `folder`: exports and measurements; without it checkpoints run in torch, and runtimes are
    measured each time."""

    runtime: str = "auto"
    exact: bool = False
    threads: int | None = None
    folder: Path | None = None

    @property
    def cores(self) -> int:
        return self.threads or usable_cores()

    @property
    def exports(self) -> ExportsFolder | None:
        return None if self.folder is None else ExportsFolder(self.folder / "exports")

    @property
    def wants_torch(self) -> bool:
        """Whether checkpoints run in torch: it was chosen, or there is a GPU for it."""
        return self.runtime == "torch" or (self.runtime == "auto" and _torch_has_a_gpu())

    def encoder(self, model: Model, example: Arrays | None = None, exact: bool = False) -> Session:
        """A session for one run at a time, on all cores, in bf16 if available and not `exact`, as for an
        output that is thresholded."""
        precision = "f32" if self.exact or exact else "bf16"
        return self._open(model, example, threads=self.cores, at_once=1, precision=precision)

    def decoder(self, model: Model, example: Arrays | None = None) -> Session:
        """A session for parallel short runs, one core each, in f32 because masks are thresholded."""
        at_once = min(self.cores, MAX_DECODERS)
        return self._open(model, example, threads=1, at_once=at_once, precision="f32")

    def _open(self, model: Model, example: Arrays | None, **how: Any) -> Session:
        runtime = "auto" if self.runtime == "torch" else self.runtime
        memory = self.folder / "measured.json" if self.folder else None
        return open_session(model, runtime, example=example, memory=memory, **how)


def installed_runtimes() -> list[str]:
    return [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]


def packages_of(runtime: str) -> list[str]:
    """The installed packages that bring a runtime, with versions. Two overwrite each other's files."""
    found: list[str] = []
    for name in (runtime, f"{runtime}-gpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_openvino() -> ModuleType:
    """Import the package without openvino_telemetry, which reports each import to Google Analytics. openvino
    2026.4 works without it (`tools/ovc/__init__.py`). The block holds for the whole process: the converter,
    which is not used here, reports too."""
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] - as Python documents
    return importlib.import_module("openvino")


def _torch_has_a_gpu() -> bool:
    """Whether torch probably has a GPU. Only importing torch could tell, a waste on machines without one."""
    if importlib.util.find_spec("torch") is None or version("torch").endswith("+cpu"):
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def _open(runtime: str, model: Model, threads: int, at_once: int, precision: Precision) -> Session:
    try:
        return RUNTIMES[runtime](model, threads, at_once, precision)
    except ImportError:  # the package itself is broken
        raise
    except Exception as error:  # runtimes raise undocumented classes of their own
        if is_out_of_memory(error):
            raise OutOfMemory(f"{runtime} {NEEDS_MEMORY}") from error
        name = model.name if isinstance(model, Path) else "the network"
        log.warning("%s cannot read %s: %s", runtime, name, error)
        raise NotReady(f"{runtime} cannot read {name}") from error


def _seconds_of_a_run(session: Session, example: Arrays) -> float:
    """The shortest of a few runs. The first one warms up, and counts only if a second one would take long."""
    times: list[float] = []
    while len(times) < 6 and sum(times) < MEASURING_S:
        started = time.perf_counter()
        session.run(example)
        times.append(time.perf_counter() - started)
    return min(times[1:] or times)


def _fingerprint(model: Model, installed: list[str], *how: object) -> str:
    """A hash of everything a measurement depends on. A file is identified by its place, size and time."""
    if isinstance(model, Path):
        status = model.stat()
        whole: list[object] = [str(model.resolve()), status.st_size, status.st_mtime_ns]
    else:
        whole = [hashlib.sha256(model).hexdigest()]
    whole += [*(package for name in installed for package in packages_of(name)), usable_cores(), *how]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]


def _notes(memory: Path) -> dict[str, str]:
    """The fastest runtime by fingerprint, from earlier measurements."""
    try:
        found: Any = json.loads(files.read(memory))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, str]", found) if isinstance(found, dict) else {}
