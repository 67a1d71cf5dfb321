"""Masks as JSON text, a digit a pixel, written by hand: of 12 Mpx that is 24 MB. Pure."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Mask

Characters = NDArray[np.uint8]

ZERO, COMMA, OPEN, CLOSE = b"0,[]"
HEAD, TAIL = b'{"mask":[', b"]}"
PIXELS_AT_ONCE = 2**16  # stays in a processor's cache: only the text itself is new memory


def mask_to_dense_reply(mask: Mask) -> memoryview:
    """`{"mask":[[0,1,...],...]}` with a list of 0 and 1 for each row.

    Raises ValueError for a mask without pixels.
    """
    _require_pixels(mask)
    height, width = mask.shape
    text = np.empty(len(HEAD) + height * (2 * width + 2) + len(TAIL) - 1, np.uint8)
    text[: len(HEAD)] = np.frombuffer(HEAD, np.uint8)
    # A row is "[0,1,1]," in pairs of what is before a digit and the digit; the last pair is "],".
    rows = text[len(HEAD) : len(text) + 1 - len(TAIL)].reshape(height, 2 * width + 2)
    step = max(1, PIXELS_AT_ONCE // width)
    before = np.full((step, width), COMMA, np.uint8)
    before[:, 0] = OPEN
    for top in range(0, height, step):
        digits = _digits(mask[top : top + step])
        pairs = cv2.merge([before[: len(digits)], digits])
        rows[top : top + step, : 2 * width] = pairs.reshape(len(digits), 2 * width)
    rows[:, 2 * width] = CLOSE
    rows[:, 2 * width + 1] = COMMA
    text[len(text) - len(TAIL) :] = np.frombuffer(TAIL, np.uint8)
    return text.data


def mask_to_flat(mask: Mask, after: tuple[int, ...] = ()) -> bytes:
    """A JSON list of 0 and 1, row by row, and of the numbers `after` them.

    Raises ValueError for a mask without pixels.
    """
    _require_pixels(mask)
    pairs = cv2.merge([np.full(mask.shape, COMMA, np.uint8), _digits(mask)])
    numbers = (b",%d" % number for number in after)
    return b"".join((b"[", pairs.reshape(-1).data[1:], *numbers, b"]"))


def _digits(mask: Mask) -> Characters:
    return np.bitwise_or(mask, ZERO, dtype=np.uint8)


def _require_pixels(mask: Mask) -> None:
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask of shape {mask.shape} has no pixels to write")
