"""A segmenter that knows drawn objects by their colours, clicked all over a picture of any size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Image, Logits, Mask, Pixels, Prediction, Prompt, Size

LOW_SIDE = 256  # of logits, as SAM's


def painted(size: Size, objects: Sequence[Mask]) -> Pixels:
    """Each object in a colour of its own, on black."""
    pixels = np.zeros((*size, 3), np.uint8)
    for number, mask in enumerate(objects, 1):
        pixels[mask] = (number % 256, number // 256, 100)
    return pixels


class ColourSegmenter:
    """One answer to a click: what has the clicked pixel's colour, in as few pixels as SAM's logits. Its score
    is .9 or more on an object, and 0 on the ground."""

    name = "colours"

    def __init__(self) -> None:
        self.encoded: list[Size] = []

    def encode(self, image: Image) -> NDArray[np.int32]:
        self.encoded.append(image.size)
        red, green, blue = np.moveaxis(image.pixels.astype(np.int32), 2, 0)
        return (red + 256 * green) * (blue > 0)

    def decode(self, embedding: NDArray[np.int32], prompt: Prompt) -> list[Prediction]:
        raise NotImplementedError("it is only swept")

    def decode_clicks(
        self, embedding: NDArray[np.int32], points: NDArray[np.float64]
    ) -> tuple[Logits, NDArray[np.float32]]:
        height, width = embedding.shape
        scale = min(1.0, LOW_SIDE / max(height, width))
        low = max(1, round(width * scale)), max(1, round(height * scale))
        clicked = [int(embedding[int(y), int(x)]) for x, y in points]
        shares = {
            number: cv2.resize((embedding == number).astype(np.float32), low, interpolation=cv2.INTER_AREA)
            for number in set(clicked) - {0}
        }
        nothing = np.zeros(low[::-1], np.float32)
        logits = np.stack([40 * (shares.get(number, nothing) - 0.5) for number in clicked])[:, None]
        scores = np.array([[(0.9 + number % 97 / 1000) * (number > 0)] for number in clicked], np.float32)
        return logits.astype(np.float32), scores

    def enlarge(
        self, embedding: NDArray[np.int32], logits: Logits, size: Size, threshold: float = 0.0
    ) -> Mask:
        return np.asarray(cv2.resize(logits[0], size[::-1], interpolation=cv2.INTER_LINEAR)) > threshold
