"""Segment Anything, from the official checkpoints.

Kirillov et al., "Segment Anything", arXiv 2304.02643, with the networks of segment-anything 1.0.
Its SamPredictor keeps the image on itself, so it cannot be shared by threads; here both halves
are functions. Which answer a prompt gets is SamPredictor's, to the pixel.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from clickmask.errors import SegmenterNotReady
from clickmask.inference.onnx_exports import Exporter, Progress
from clickmask.inference.refinement import replay
from clickmask.inference.runtimes import Runtimes
from clickmask.inference.sessions import usable_cores
from clickmask.inference.weights import WeightsFolder
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.upscale import logits_to_mask
from clickmask.types import Box, Image, Logits, Mask, Pixels, Point, Prediction, Prompt, Size

log = logging.getLogger(__name__)

VARIANTS = ("vit_b", "vit_l", "vit_h")
SWEEPS = True
DECODERS = {"vit_h": "sam:vit_h"}  # that of CVAT's page was published for ViT-H alone
PACKAGES = {"torch": "torch", "segment_anything": "segment-anything"}  # as imported, as installed
EXPORTER = Exporter("clickmask.segmenters._sam.onnx_export", version=1)
IN_TORCH = Runtimes()
MASK_PROMPT_LOGIT = (
    8.0  # logit of a pixel that a given mask covers, its negative outside: what SAM's own masks reach
)


@dataclass(frozen=True, eq=False)
class SamEmbedding:
    """What the image encoder sees of an image of `size`, padding included."""

    features: NDArray[np.float32]  # (256, 64, 64), read-only
    size: Size
    placed: Any  # the features as the networks take them: the same memory, or a copy on the GPU

    @property
    def nbytes(self) -> int:
        return self.features.nbytes

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """All of it, to be stored; `Sam.restore` is the way back."""
        return {"features": self.features, "size": np.asarray(self.size, np.int64)}


class Networks(Protocol):
    """SAM's networks on some runtime. Nothing in them changes; any thread may call.

    All coordinates are in pixels of the image as it was resized to `side`, with pixel centres
    at whole numbers, which is SAM's convention.
    """

    @property
    def side(self) -> int:
        """Pixels of the padded input: 1024."""
        ...

    @property
    def precision(self) -> str:
        """What the image encoder computes in."""
        ...

    def encode(self, pixels: Pixels) -> NDArray[np.float32]:
        """(256, side / 16, side / 16) features of an image whose long side is `side`."""
        ...

    def place(self, features: NDArray[np.float32]) -> Any:
        """`features`, still writeable, where and how `decode` takes them; copied to a GPU at most."""
        ...

    def decode(
        self,
        placed: Any,
        points: NDArray[np.float32],  # (N, 2)
        labels: NDArray[np.int32],  # (N,): 1 foreground, 0 background
        box: Box | None,
        logits: Logits | None,  # (1, side / 4, side / 4)
        multimask: bool,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Masks (n, side / 4, side / 4) before thresholding, and what the network thinks their IoUs are.

        Three masks if `multimask`, else one, in the decoder's order.
        """
        ...


@runtime_checkable
class BatchNetworks(Networks, Protocol):
    """Networks that answer many clicks at a time in less than many times the time."""

    def decode_clicks(self, placed: Any, points: NDArray[np.float32]) -> tuple[Logits, NDArray[np.float32]]:
        """`decode` with `multimask` for each of N foreground points (N, 2): (N, 3, h, w) and (N, 3)."""
        ...


class Sam:
    """See the module. It holds the networks, which never change, and nothing of any image."""

    def __init__(self, name: str, networks: Networks) -> None:
        self.name = name
        self._networks = networks

    @property
    def precision(self) -> str:
        return self._networks.precision

    def encode(self, image: Image) -> SamEmbedding:
        pixels, (height, width) = image.pixels, resized_size(image.size, self._networks.side)
        # Pillow's antialiased filter, as the reference: OpenCV's give other pixels.
        small = PillowImage.fromarray(pixels).resize((width, height), PillowImage.Resampling.BILINEAR)
        return self._embedding(self._networks.encode(np.asarray(small)), image.size)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> SamEmbedding:
        """The embedding that gave these arrays, be they rounded. ValueError if none of this SAM did."""
        features, side = arrays["features"], self._networks.side // 16
        height, width = (int(length) for length in arrays["size"])
        if features.ndim != 3 or features.shape[1:] != (side, side):
            raise ValueError(f"features of shape {features.shape} are not of {self.name}")
        return self._embedding(features.astype(np.float32), (height, width))

    def decode(self, embedding: SamEmbedding, prompt: Prompt) -> list[Prediction]:
        """Three predictions for a single click, which is ambiguous, else one."""
        return replay(self, embedding, prompt)

    def decode_from(
        self, embedding: SamEmbedding, prompt: Prompt, logits: Logits | None
    ) -> tuple[list[Prediction], Logits]:
        """`logits` stand for `prompt.mask` where both are given: it is part of them already."""
        candidates, scores = self.candidates(embedding, prompt, logits)
        side, size = self._networks.side, embedding.size
        predictions = [
            Prediction(
                partial(logits_to_mask, candidate, side, resized_size(size, side), size),
                min(max(float(score), 0.0), 1.0),
                self.name,
            )
            for candidate, score in zip(candidates, scores, strict=True)
        ]
        return predictions, candidates

    def candidates(
        self, embedding: SamEmbedding, prompt: Prompt, logits: Logits | None
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Low-resolution masks, best first, and the scores as the network gives them, unclipped."""
        side = self._networks.side
        if logits is None and prompt.mask is not None:
            logits = mask_to_logits(prompt.mask, side)
        clicks = prompt.foreground + prompt.background
        box = None
        if prompt.box is not None:
            (x0, y0), (x1, y1) = _to_sam([prompt.box[:2], prompt.box[2:]], embedding.size, side).tolist()
            box = (x0, y0, x1, y1)
        masks, scores = self._networks.decode(
            embedding.placed,
            _to_sam(clicks, embedding.size, side),
            np.asarray([1] * len(prompt.foreground) + [0] * len(prompt.background), np.int32),
            box,
            logits,
            multimask=len(clicks) == 1 and box is None and logits is None,
        )
        order = np.argsort(-scores, kind="stable")
        return masks[order], scores[order]

    def _embedding(self, features: NDArray[np.float32], size: Size) -> SamEmbedding:
        placed = self._networks.place(features)
        features.flags.writeable = False
        return SamEmbedding(features, size, placed)

    def decode_clicks(
        self, embedding: SamEmbedding, points: NDArray[np.float64]
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Three candidates (N, 3, side / 4, side / 4) for each point, in the decoder's order."""
        clicks = _to_sam(points, embedding.size, self._networks.side)
        if isinstance(self._networks, BatchNetworks):
            return self._networks.decode_clicks(embedding.placed, clicks)
        foreground = np.ones(1, np.int32)

        def decode(click: NDArray[np.float32]) -> tuple[Logits, NDArray[np.float32]]:
            return self._networks.decode(
                embedding.placed, click[None], foreground, None, None, multimask=True
            )

        with ThreadPoolExecutor(usable_cores()) as pool:
            answers = list(pool.map(decode, clicks))
        return np.stack([masks for masks, _ in answers]), np.stack([scores for _, scores in answers])

    def enlarge(self, embedding: SamEmbedding, logits: Logits, size: Size, threshold: float = 0.0) -> Mask:
        side = self._networks.side
        return logits_to_mask(logits[0] - threshold, side, resized_size(embedding.size, side), size)


def missing(variant: str, weights: WeightsFolder, runtimes: Runtimes = IN_TORCH) -> str:
    """Why this variant cannot be loaded; empty if it can. Imports nothing."""
    name = f"sam:{variant}"
    if _exported(name, weights, runtimes):
        return ""
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"it needs the package {package}" + (
                " to export its weights, once" if runtimes.exports and not runtimes.wants_torch else ""
            )
    return weights.missing(name)


def load(variant: str, weights: WeightsFolder, runtimes: Runtimes = IN_TORCH) -> Sam:
    """Exported first, if that was not done yet: minutes. Raises SegmenterNotReady.

    Only what runs in torch imports it: where it was asked for, on a GPU, or if the export failed.
    """
    name = f"sam:{variant}"
    if reason := missing(variant, weights, runtimes):
        raise SegmenterNotReady(f"{name} cannot run: {reason}")
    try:
        folder = export(variant, weights, runtimes)
    except SegmenterNotReady as error:
        log.warning("%s; it runs in torch instead", error)
        folder = None
    if folder:
        return Sam(name, OnnxSam(folder, runtimes))
    from clickmask.segmenters._sam.torch_networks import TorchSam

    return Sam(name, TorchSam(weights.verify(name)))


def export(
    variant: str,
    weights: WeightsFolder,
    runtimes: Runtimes,
    progress: Progress = lambda share, what: None,
) -> Path | None:
    """The folder of the exported networks, made if need be; None where checkpoints run in torch.

    What was just made is run in each runtime, so that the fastest is known before the first click.
    Raises SegmenterNotReady, and WeightsUnavailable if the checkpoint is not here.
    """
    name = f"sam:{variant}"
    if runtimes.exports is None or runtimes.wants_torch:
        return None
    if folder := _exported(name, weights, runtimes):
        return folder
    log.info("exporting %s, once", name)
    sha256 = weights.checkpoint(name).sha256
    folder = runtimes.exports.make(name, sha256, EXPORTER, weights.verify(name), progress)
    OnnxSam(folder, runtimes)
    return folder


def _exported(name: str, weights: WeightsFolder, runtimes: Runtimes) -> Path | None:
    """It is known by the official SHA-256, so the checkpoint itself may be gone."""
    if runtimes.exports is None or runtimes.wants_torch or name not in weights.checkpoints:
        return None
    return runtimes.exports.find(name, weights.checkpoint(name).sha256, EXPORTER)


def resized_size(size: Size, side: int) -> Size:
    """Size of an image whose long side is scaled to `side`, rounded as the reference does.

    The reference fails where a side is rounded to nothing; here it keeps one pixel.
    """
    scale = side / max(size)
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width


def mask_to_logits(mask: Mask, side: int) -> Logits:
    """`mask` as the decoder takes masks: (1, side / 4, side / 4), padded as the image is.

    Logits are MASK_PROMPT_LOGIT inside and -MASK_PROMPT_LOGIT outside. A partly covered pixel of this coarse
    grid lies in between, so the outline stays where it is.
    """
    height, width = resized_size((mask.shape[0], mask.shape[1]), side)
    coverage = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    padded = np.zeros((side, side), np.float32)
    padded[:height, :width] = coverage
    quarter = padded.reshape(side // 4, 4, side // 4, 4).mean(axis=(1, 3))
    return ((2 * quarter - 1) * MASK_PROMPT_LOGIT)[None]


def _to_sam(points: Sequence[Point] | NDArray[np.float64], size: Size, side: int) -> NDArray[np.float32]:
    """(N, 2) points in SAM's frame, where pixel centres are whole numbers.

    The half is taken off after scaling, because SAM adds it there. The scales are those of the
    rounded size, one for each axis.
    """
    height, width = resized_size(size, side)
    scale = width / size[1], height / size[0]
    return (np.asarray(points, np.float64).reshape(-1, 2) * scale - 0.5).astype(np.float32)
