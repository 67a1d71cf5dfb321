"""A project's model at work: it gives every pixel of a picture a category. Reads ONNX, without torch."""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.inference.sessions import Session, open_session
from clickmask.masks.regions import PIXELS_AT_ONCE
from clickmask.types import Pixels, Size

PIXELS, LOGITS = "pixels", "logits"  # tensors of the ONNX file: (1, 3, H, W) in [0, 1] -> (1, K, H, W)
MULTIPLE = 16  # networks of earlier versions need sides that are multiples of it; today's pad themselves
CLIPPED_PERCENT = 0.5  # percentage of a picture's values that may be clipped at each end
MIN_VALUE_RANGE = 32.0  # stretching a narrower range further would amplify noise
MAX_SIDE_PX = 1536  # larger pictures are trained on and predicted at this size, to save memory


class Labelling(NamedTuple):
    """The class of each pixel, and the network's probability for it where the network has seen it."""

    classes: NDArray[np.uint8]  # (H, W); 0 is the background, k is the k-th category
    confidence: NDArray[np.float32]  # (h, w) in [0, 1], at the working size


class Labeller:
    """A network that labels pixels, ready to run, from any thread."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def predict(self, pixels: Pixels) -> Labelling:
        """The class of each pixel of a picture, at the picture's size."""
        shown = pixels.shape[0], pixels.shape[1]
        height, width = size = working_size(shown)
        answer: NDArray[np.float32] = self._session.run({PIXELS: to_input(prepared(pixels))})[LOGITS]
        logits = answer[0, :, :height, :width]  # (K, h, w)
        highest = logits.max(axis=0)
        total = np.zeros(size, np.float32)
        for plane in logits:  # one by one, to save memory: there may be 200
            total += np.exp(plane - highest)
        confidence: NDArray[np.float32] = np.float32(1) / total
        if size == shown:
            return Labelling(logits.argmax(axis=0).astype(np.uint8), confidence)
        return Labelling(_enlarged_classes(logits, shown), confidence)


def working_size(size: Size) -> Size:
    """`size`, scaled down to sides of at most MAX_SIDE_PX."""
    scale = MAX_SIDE_PX / max(size)
    height, width = (side if scale >= 1 else max(1, round(scale * side)) for side in size)
    return height, width


def prepared(pixels: Pixels) -> Pixels:
    """`pixels` at the working size with values stretched to 0..255, as networks see them. In many microscopy
    pictures all that matters lies in a tenth of the range, and not always the same tenth."""
    height, width = pixels.shape[:2]
    size = working_size((height, width))
    if size != (height, width):
        pixels = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    low, high = np.percentile(pixels, (CLIPPED_PERCENT, 100 - CLIPPED_PERCENT))
    high = max(high, low + MIN_VALUE_RANGE)
    spread = (np.arange(256) - low) / (high - low) * 255
    return np.rint(spread).clip(0, 255).astype(np.uint8)[pixels]


def to_input(pixels: Pixels) -> NDArray[np.float32]:
    """A network's input (1, 3, H, W) in [0, 1], edge-padded to multiples of MULTIPLE."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)), mode="edge")
    values = padded.transpose(2, 0, 1)[None].astype(np.float32)  # (H, W, 3) -> (1, 3, H, W)
    return np.divide(values, 255, dtype=np.float32)


def open_labeller(network: Path | bytes, threads: int | None = None) -> Labeller:
    """Open the network of an ONNX file, on all cores if `threads` is None. Raises NotReady."""
    return Labeller(open_session(network, "onnxruntime", threads=threads))


def _enlarged_classes(logits: NDArray[np.float32], size: Size) -> NDArray[np.uint8]:
    """The class of each pixel of an image of `size` from (K, h, w) `logits`: bilinear, pixel centres on pixel
    centres, a few rows at a time, so that it takes little more memory than the classes."""
    classes = np.zeros(size, np.uint8)
    step = max(1, PIXELS_AT_ONCE // size[1])
    at = ((np.arange(size[0]) + 0.5) * logits.shape[1] / size[0] - 0.5).clip(0, logits.shape[1] - 1)
    above = at.astype(np.intp)
    below, weight = np.minimum(above + 1, logits.shape[1] - 1), (at - above).astype(np.float32)[:, None]
    for top in range(0, size[0], step):
        rows = slice(top, top + step)
        part = classes[rows]
        best = np.full(part.shape, -math.inf, np.float32)
        for number, plane in enumerate(logits):
            mixed = plane[above[rows]] * (1 - weight[rows]) + plane[below[rows]] * weight[rows]
            there = np.asarray(
                cv2.resize(mixed, part.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32
            )
            part[there > best] = number
            np.maximum(best, there, out=best)
    return classes
