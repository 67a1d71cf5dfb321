"""SAM's networks in ONNX files, without torch."""

import json
from pathlib import Path

import numpy as np

from clickmask.inference.sessions import EncodesOnCpu, Runtimes
from clickmask.segmenters._sam.frame import Floats, Maps, SamPrompt
from clickmask.types import Logits, Pixels

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of the training pixels, RGB
FINE = 32  # channels of the map that SAM-HQ adds
FOREGROUND, CORNERS, NO_POINT = 1, (2, 3), -1  # labels of SAM's prompt encoder


class OnnxSam(EncodesOnCpu):
    """`Networks` from a folder that `onnx_export` has filled."""

    def __init__(self, folder: Path, runtimes: Runtimes) -> None:
        described = json.loads((folder / "export.json").read_text())
        self.side: int = described["side"]
        blank = np.zeros((1, 3, self.side, self.side), np.float32)
        self._encoder = runtimes.encoder(folder / "encoder.onnx", {"pixels": blank})
        maps = {"features": np.zeros((256, self.side // 16, self.side // 16), np.float32)}
        if described.get("high_quality"):
            maps["fine"] = np.zeros((FINE, self.side // 4, self.side // 4), np.float32)
        click = SamPrompt(np.full((1, 2), self.side / 2, np.float32), np.ones(1, np.int32))
        self._decoder = runtimes.decoder(folder / "decoder.onnx", self._feeds(self.place(maps), click))

    @property
    def runtimes(self) -> tuple[str, str]:
        """The runtimes of the encoder and of the decoder."""
        return self._encoder.runtime, self._decoder.runtime

    def encode(self, pixels: Pixels) -> Maps:
        height, width = pixels.shape[:2]
        normal = (pixels.astype(np.float32) - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
        padded = np.zeros((1, 3, self.side, self.side), np.float32)
        padded[0, :, :height, :width] = normal.transpose(2, 0, 1)
        return {name: found[0] for name, found in self._encoder.run({"pixels": padded}).items()}

    def place(self, maps: Maps) -> Maps:
        return {name: each[None] for name, each in maps.items()}

    def decode(self, placed: Maps, prompt: SamPrompt, multimask: bool) -> tuple[Logits, Floats]:
        found = self._decoder.run(self._feeds(placed, prompt))
        wanted = slice(1, None) if multimask else slice(0, 1)  # the first is for unambiguous prompts
        return found["masks"][0, wanted], found["scores"][0, wanted]

    def _feeds(self, placed: Maps, prompt: SamPrompt) -> dict[str, Floats]:
        """Inputs of the decoder. Points alone end with a non-point, as in training; a box is two points."""
        points, labels, box, logits = prompt
        if box is not None:
            points = np.concatenate((points, box))
            labels = np.concatenate((labels, np.array(CORNERS, np.int32)))
        elif len(points):
            points = np.concatenate((points, np.zeros((1, 2), np.float32)))
            labels = np.append(labels, np.array(NO_POINT, np.int32))
        given = np.zeros((1, self.side // 4, self.side // 4), np.float32) if logits is None else logits
        return {
            **placed,
            "points": points[None],
            "labels": labels[None].astype(np.float32),
            "mask": given[None],
            "has_mask": np.full(1, logits is not None, np.float32),
        }
