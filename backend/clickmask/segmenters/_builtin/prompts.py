"""Inputs of the built-in network: a crop of an image at its own scale, and a prompt as maps of it.

A crop is scaled to a long side and padded to multiples of 32. Maps and logits have half that size.
`clickmask.training.click.prompts` trains with the same maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Box, Pixels, Point, Prompt, Size

Floats = NDArray[np.float32]

MULTIPLE = 32
NARROW, WIDE = 5.0, 32.0  # px; standard deviations of a click's two Gaussian bumps
CLICKED, REJECTED, CLICKED_WIDE, REJECTED_WIDE, BOX, MIDDLE, REGION = range(7)  # the maps in order
MAPS = 7


@dataclass(frozen=True)
class Crop:
    """The part `extent` of an image at `size`: (height, width), even, without the padding."""

    extent: Box
    size: Size

    @property
    def padded(self) -> Size:
        height, width = (-(-side // MULTIPLE) * MULTIPLE for side in self.size)
        return height, width

    def to_crop(self, points: Sequence[Point]) -> list[Point]:
        """`points` of the image in pixels of the crop."""
        x0, y0, x1, y1 = self.extent
        sx, sy = self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)
        return [((x - x0) * sx, (y - y0) * sy) for x, y in points]

    def contains(self, point: Point) -> bool:
        x0, y0, x1, y1 = self.extent
        return x0 <= point[0] <= x1 and y0 <= point[1] <= y1


def crop_of(extent: Box, side: int) -> Crop:
    """The crop of `extent` with a long side of `side` pixels."""
    width, height = extent[2] - extent[0], extent[3] - extent[1]
    scale = side / max(width, height)
    rows, columns = (max(2, 2 * round(length * scale / 2)) for length in (height, width))
    return Crop(extent, (rows, columns))


def network_input(pixels: Pixels, crop: Crop) -> Floats:
    """`pixels` of the crop's extent, resized, as (1, 3, H, W) in [-1, 1]; the padding is 0."""
    height, width = crop.size
    shrinks = pixels.shape[0] > height or pixels.shape[1] > width
    filtering = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = np.asarray(cv2.resize(pixels, (width, height), interpolation=filtering), np.float32)
    rows, columns = crop.padded
    padded = np.zeros((1, 3, rows, columns), np.float32)
    padded[0, :, :height, :width] = (resized / np.float32(127.5) - 1).transpose(2, 0, 1)
    return padded


def render(crop: Crop, prompt: Prompt, region: Floats | None) -> Floats:
    """(1, MAPS, H / 2, W / 2) maps of `prompt` and of `region`, the probabilities of the mask so far."""
    rows, columns = (side // 2 for side in crop.padded)
    maps = np.zeros((1, MAPS, rows, columns), np.float32)
    x = 2 * np.arange(columns, dtype=np.float32) + 1  # pixel centres, in px of the crop
    y = 2 * np.arange(rows, dtype=np.float32) + 1
    clicks = [
        (crop.to_crop([point for point in points if crop.contains(point)]), narrow, wide)
        for points, narrow, wide in (
            (prompt.foreground, CLICKED, CLICKED_WIDE),
            (prompt.background, REJECTED, REJECTED_WIDE),
        )
    ]
    for points, narrow, wide in clicks:
        for column, row in points:
            for channel, sigma in ((narrow, NARROW), (wide, WIDE)):
                bump = np.outer(_bump(y - row, sigma), _bump(x - column, sigma))
                np.maximum(maps[0, channel], bump, out=maps[0, channel])
    if prompt.box is not None:
        (x0, y0), (x1, y1) = crop.to_crop([prompt.box[:2], prompt.box[2:]])
        # boxes end at fractions of pixels: use the share of each pixel that is inside
        across = np.clip(x - x0 + 1, 0, 2) * np.clip(x1 - x + 1, 0, 2) / 4
        down = np.clip(y - y0 + 1, 0, 2) * np.clip(y1 - y + 1, 0, 2) / 4
        maps[0, BOX] = 2 * np.outer(down, across) - 1
        u, v = 2 * (x - x0) / max(x1 - x0, 1.0) - 1, 2 * (y - y0) / max(y1 - y0, 1.0) - 1
        maps[0, MIDDLE] = np.outer(np.maximum(1 - v**2, 0), np.maximum(1 - u**2, 0))
    if region is not None:
        maps[0, REGION] = 2 * region - 1
    return maps


def _bump(distance: Floats, sigma: float) -> Floats:
    return np.exp(distance**2 * np.float32(-0.5 / sigma**2))
