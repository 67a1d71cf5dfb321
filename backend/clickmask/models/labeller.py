"""A project's model in use: every pixel of a picture gets a category. Reads ONNX; no torch."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.errors import AnnotatorNotReady
from clickmask.inference.sessions import Session, open_session
from clickmask.models.versions import Models, ModelVersion
from clickmask.types import Pixels, Size

PIXELS, LOGITS = "pixels", "logits"  # of an ONNX file: (1, 3, H, W) in [0, 1] -> (1, K, H, W)
MULTIPLE = 16  # of the sides that a network takes
CLIPPED_PERCENT = 0.5  # percent of a picture's values, at either end, that may be cut off
MIN_VALUE_RANGE = 32.0  # values that are spread over all at most: of less the noise is no picture
MAX_SIDE_PX = 1536  # px; larger pictures are trained on and answered at this size, for memory's sake


class Labelling(NamedTuple):
    """0 is the background, k the k-th category; how sure of it the network is, in [0, 1]."""

    classes: NDArray[np.uint8]  # (H, W)
    confidence: NDArray[np.float32]  # (H, W)


class Labeller:
    """A network that labels pixels, ready to run. For any thread."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def label(self, pixels: Pixels) -> Labelling:
        """Of a picture of any size, at that size."""
        height, width = shown = pixels.shape[:2]
        size = working_size((height, width))
        answer: NDArray[np.float32] = self._session.run({PIXELS: to_input(prepared(pixels))})[LOGITS]
        logits = answer[0, :, : size[0], : size[1]]  # (K, h, w)
        best = logits.max(axis=0)
        confidence = (1 / np.exp(logits - best).sum(axis=0)).astype(np.float32)
        if size == shown:
            return Labelling(logits.argmax(axis=0).astype(np.uint8), confidence)
        return Labelling(_enlarged(logits, (height, width)), _resized(confidence, (height, width)))


def working_size(size: Size) -> Size:
    """At most MAX_SIDE_PX, the ratio of the sides kept."""
    scale = MAX_SIDE_PX / max(size)
    height, width = (side if scale >= 1 else max(1, round(scale * side)) for side in size)
    return height, width


def prepared(pixels: Pixels) -> Pixels:
    """What networks are trained on and asked with: at the working size, the values spread over all of 0..255.

    Of microscopy many pictures have all that matters in a tenth of the range, each in another one.
    """
    height, width = pixels.shape[:2]
    size = working_size((height, width))
    if size != (height, width):
        pixels = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    low, high = np.percentile(pixels, (CLIPPED_PERCENT, 100 - CLIPPED_PERCENT))
    high = max(high, low + MIN_VALUE_RANGE)
    spread = (np.arange(256) - low) / (high - low) * 255
    return np.rint(spread).clip(0, 255).astype(np.uint8)[pixels]


def to_input(pixels: Pixels) -> NDArray[np.float32]:
    """(1, 3, H, W), padded to multiples of MULTIPLE by the outermost pixels."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)), mode="edge")
    values = padded.transpose(2, 0, 1)[None].astype(np.float32)  # (H, W, 3) -> (1, 3, H, W)
    return np.divide(values, 255, dtype=np.float32)


def open_labeller(network: Path | bytes, threads: int | None = None) -> Labeller:
    """Raises SegmenterNotReady if the file cannot be run. `threads` None: all cores."""
    return Labeller(open_session(network, "onnxruntime", threads=threads))


class ProjectModels:
    """The models of every project, each in a folder named by tool and project. For any thread."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder = folder
        self._threads = threads
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[Path, Labeller]] = {}

    def of(self, tool: str, project: str) -> Models:
        return Models(self._folder / folder_name(tool, project))

    def names(self) -> list[str]:
        """Of the projects in which a version is served, as `folder_name` has it."""
        if not self._folder.is_dir():
            return []
        return sorted(each.name for each in self._folder.iterdir() if Models(each).has_served)

    def named(self, name: str) -> Models:
        return Models(self._folder / name)

    def served(self, name: str) -> tuple[ModelVersion, Labeller]:
        """What is in use just now; a network is opened once, and the one before it is let go.

        Raises AnnotatorNotReady where nothing is, ModelDamaged and SegmenterNotReady.
        """
        with self.named(name).lock_served() as version:
            if version is None:
                raise AnnotatorNotReady(f"no model of {name} was trained yet")
            with self._lock:
                path, labeller = self._opened.get(name, (None, None))
                if labeller is None or path != version.path:
                    labeller = open_labeller(version.network, self._threads)
                    self._opened[name] = version.path, labeller
            return version, labeller


def folder_name(tool: str, project: str) -> str:
    """Such as `label_studio-7`: letters, digits, _ . and - alone, for file systems and addresses."""
    return f"{_escaped(tool)}-{_escaped(project)}"


def _escaped(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E").replace("~", "%7E").replace("%", ".")


def _enlarged(logits: NDArray[np.float32], size: Size) -> NDArray[np.uint8]:
    """The class with the largest logit at `size`; one plane after the other, for memory's sake."""
    classes = np.zeros(size, np.uint8)
    best = np.full(size, -math.inf, np.float32)
    for number, plane in enumerate(logits):
        there = _resized(plane, size)
        classes[there > best] = number
        np.maximum(best, there, out=best)
    return classes


def _resized(plane: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
