"""Prompts in SAM's frame: pixels of the resized image, with pixel centres at whole numbers."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Logits, Mask, Point, Size

MASK_PROMPT_LOGIT = 8.0  # logit inside a given mask, its negative outside; SAM's own reach this


def resized_size(size: Size, side: int) -> Size:
    """Size of an image scaled to a long side of `side`, rounded like the reference, but not to 0, which
    breaks it."""
    scale = side / max(size)
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width


def mask_to_logits(mask: Mask, side: int) -> Logits:
    """(1, side / 4, side / 4) logits of `mask`, padded like the image: MASK_PROMPT_LOGIT inside, its negative
    outside, and in between if partly covered, so that the outline stays in place."""
    height, width = resized_size((mask.shape[0], mask.shape[1]), side)
    coverage = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    padded = np.zeros((side, side), np.float32)
    padded[:height, :width] = coverage
    quarter = padded.reshape(side // 4, 4, side // 4, 4).mean(axis=(1, 3))
    return ((2 * quarter - 1) * MASK_PROMPT_LOGIT)[None]


def to_sam(points: Sequence[Point] | NDArray[np.float64], size: Size, side: int) -> NDArray[np.float32]:
    """`points` of an image of `size` as (N, 2) points in SAM's frame. Each axis is scaled to the rounded
    size. The half is subtracted after scaling because SAM adds it there."""
    height, width = resized_size(size, side)
    scale = width / size[1], height / size[0]
    return (np.asarray(points, np.float64).reshape(-1, 2) * scale - 0.5).astype(np.float32)
