"""People near the camera, without a prompt: MediaPipe's selfie segmentation, the general model
(https://mediapipe.page.link/selfiesegmentation-mc). It took the place of TensorFlow.js's BodyPix.

The file is that of Google's npm package. MediaPipe's own build named it with this SHA-256 (generation
1661875931201364 of storage.googleapis.com/mediapipe-assets). LiteRT runs it as it is: tf2onnx and OpenVINO do
not know its last layer, an operation of MediaPipe's own.
"""

import importlib
import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from clickmask.inference.catalogue import Host
from clickmask.plugins import About, Checkpoint, Variant
from clickmask.segmenters._foreground import Floats, ForegroundSegmenter
from clickmask.types import Pixels

NAME, LABEL = "selfie", "person"
_PACKAGE = "https://cdn.jsdelivr.net/npm/@mediapipe/selfie_segmentation"
SIDE = 256  # pixels of the square that the image is stretched to
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "": Variant(
            Checkpoint(
                f"{_PACKAGE}@0.1.1675465747/selfie_segmentation.tflite",
                249_024,
                "8d13b7fae74af625c641226813616a2117bd6bca19eb3b75574621fc08557f27",
                "Apache-2.0",
            ),
            labels=(LABEL,),
            about=About("selfie segmentation", "MediaPipe", candidates=3),
        )
    }
)


class LiteRt:
    """The network in LiteRT, on the CPU. An interpreter holds one run's arrays: they take turns."""

    runtime = "litert"

    def __init__(self, file: Path, threads: int) -> None:
        library: Any = importlib.import_module("ai_edge_litert.interpreter")
        self._interpreter = library.Interpreter(str(file), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input, self._output = (
            details[0]["index"]
            for details in (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        )
        self._lock = threading.Lock()

    def probabilities(self, pixels: Pixels) -> Floats:
        # Pixel centres on pixel centres, without antialiasing, as in its package for browsers.
        square = np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.float32)
        with self._lock:
            self._interpreter.set_tensor(self._input, square[None] / np.float32(255))
            self._interpreter.invoke()
            return self._interpreter.get_tensor(self._output)[0, :, :, 0].copy()


def missing(variant: str, host: Host) -> str:
    if importlib.util.find_spec("ai_edge_litert") is None:
        return "it needs the package ai-edge-litert: make install, or pip install 'clickmask[selfie]'"
    return host.weights.missing(NAME)


def load(variant: str, host: Host) -> ForegroundSegmenter:
    """Load the network. Raises NotReady."""
    network = LiteRt(host.weights.verify(NAME), host.threads)
    return ForegroundSegmenter(NAME, LABEL, network, is_one=False)
