"""A segmenter that draws discs, and an annotator of drawn scenes: quick, exact, and they count."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Image, Mask, Prediction, Prompt
from support import drawn

RADIUS = 10.0


class DiscSegmenter:
    """A disc of 10 px round each foreground point, and the mask, less one round each background point.

    A box alone gives the box. The embedding is a copy of the image's first channel.
    """

    name = "disc"

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.hold: threading.Event | None = None

    def encode(self, image: Image) -> NDArray[np.uint8]:
        if self.hold:
            assert self.hold.wait(10)
        self.encoded.append(image.digest)
        return image.pixels[..., 0].copy()

    def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        mask = disc_mask(embedding.shape[:2], prompt.foreground)
        if prompt.box and not prompt.foreground:
            x0, y0, x1, y1 = (round(side) for side in prompt.box)
            mask[y0:y1, x0:x1] = True
        mask |= prompt.mask if prompt.mask is not None else False
        return [Prediction(mask & ~disc_mask(mask.shape, prompt.background), 0.75, self.name)]


class DrawnAnnotator:
    """Finds the objects of `drawn.scene` by their colours; in any other picture, nothing.

    Each label's mask is all of its colour, with a score of its own.
    """

    name = "drawn"
    labels = tuple(drawn.COLOURS)

    def __init__(self) -> None:
        self.annotated: list[str] = []
        self.hold: threading.Event | None = None

    def annotate(self, image: Image) -> list[tuple[str, Prediction]]:
        self.annotated.append(image.digest)
        if self.hold:
            assert self.hold.wait(10)
        colours = np.array([drawn.GROUND, *drawn.COLOURS.values()], np.float64)
        smooth = cv2.medianBlur(image.pixels, 5).astype(np.float64)
        distances = np.linalg.norm(smooth[:, :, None] - colours, axis=3)  # (H, W, colours)
        nearest = np.where(distances.min(axis=2) < 40, distances.argmin(axis=2), 0)
        found: list[tuple[str, Prediction]] = []
        for index, label in enumerate(self.labels):
            mask = nearest == index + 1
            if mask.any():
                found.append((label, Prediction(mask, 0.9 - index / 10, self.name)))
        return found


def disc_mask(size: tuple[int, ...], centres: Sequence[tuple[float, float]]) -> Mask:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    mask = np.zeros(size[:2], bool)
    for centre_x, centre_y in centres:
        mask |= np.hypot(x - centre_x, y - centre_y) < RADIUS
    return mask
