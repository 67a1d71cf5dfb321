"""The image at the small size that the classic methods use, so that a click costs milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Box, Image, Mask, Pixels, Point, Prompt, Size

SMOOTHING = 0.7  # px of the small image, for enlarging a mask


@dataclass(frozen=True, eq=False)
class SmallImage:
    """An embedding: the small pixels and the original size."""

    pixels: Pixels  # (h, w, 3), read-only
    whole: Size

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    @property
    def size(self) -> Size:
        return size_of(self.pixels)

    def to_small(self, prompt: Prompt) -> Prompt:
        """`prompt` in the frame of the small pixels; a box keeps an area, a thin mask its pixels."""
        (height, width), (rows, columns) = self.whole, self.size
        sx, sy = columns / width, rows / height

        def scaled(points: Sequence[Point]) -> tuple[Point, ...]:
            return tuple((x * sx, y * sy) for x, y in points)

        box = prompt.box
        if box is not None:
            box = (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
        mask = prompt.mask
        if mask is not None:
            mask = resized(mask.view(np.uint8) * np.uint8(255), self.size) > 0
        return Prompt(scaled(prompt.foreground), scaled(prompt.background), box, mask)


def shrink(image: Image, side: int) -> SmallImage:
    """`image` with a long side of at most `side` pixels."""
    scale = min(1.0, side / max(image.size))
    height, width = (max(1, round(length * scale)) for length in image.size)
    pixels = resized(image.pixels, (height, width))
    pixels.flags.writeable = False
    return SmallImage(pixels, image.size)


def lab(pixels: Pixels) -> NDArray[np.float32]:
    """(h, w, 3) CIE L*a*b* (D65), in which distances roughly match what an eye sees."""
    return np.asarray(cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def size_of(array: NDArray[Any]) -> Size:
    """(height, width) of an array, its first two axes."""
    height, width = array.shape[:2]
    return height, width


def pixel_at(point: Point, size: Size) -> tuple[int, int]:
    """Row and column of the pixel that contains `point`; on the far edges, the last one."""
    return min(int(point[1]), size[0] - 1), min(int(point[0]), size[1] - 1)


def disc(size: Size, centre: Point, radius: float) -> Mask:
    """Pixels whose centre is at most `radius` away, and always the one that contains `centre`, if any."""
    x, y = pixel_centres(size)
    found = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    if 0 <= centre[0] <= size[1] and 0 <= centre[1] <= size[0]:
        found[pixel_at(centre, size)] = True
    return found


def in_box(size: Size, box: Box) -> Mask:
    """The pixels whose centre is in `box`, at least the one in its middle."""
    x, y = pixel_centres(size)
    found = (box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])
    found[pixel_at(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), size)] = True
    return found


def pixel_centres(size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x (1, w) and y (h, 1) of the pixel centres."""
    height, width = size
    return np.arange(width, dtype=np.float64)[None] + 0.5, np.arange(height, dtype=np.float64)[:, None] + 0.5


def parts_at(mask: Mask, points: Sequence[Point]) -> Mask:
    """The 4-connected parts of `mask` that contain one of `points`."""
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    here = {int(labels[pixel_at(point, size_of(mask))]) for point in points}
    return mask & np.isin(labels, list(here))


def parts_touching(mask: Mask, start: Mask) -> Mask:
    """The 4-connected parts of `mask` that contain a pixel of `start`."""
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    return mask & np.isin(labels, np.unique(labels[start & mask]))


def without_rejected(mask: Mask, foreground: Sequence[Point], background: Sequence[Point]) -> Mask:
    """`mask` without what background clicks reject, reduced to the parts with a foreground click, if any.

    A part with only background clicks goes. If it has both kinds, each pixel belongs to the nearest click.
    """
    kept = mask.copy()
    if background:
        x, y = pixel_centres(size_of(mask))
        to_foreground, to_background = (
            np.min([np.hypot(x - column, y - row) for column, row in points], axis=0, initial=np.inf)
            for points in (foreground, background)
        )
        kept &= ~parts_at(mask, background) | (to_foreground <= to_background)
    return parts_at(kept, foreground) if foreground else kept


def resized(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A copy of `pixels` at `size`."""
    if pixels.shape[:2] == size:
        return pixels.copy()
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def enlarged(mask: Mask, size: Size) -> Mask:
    """A new mask of `size` from the smaller `mask`, with a smooth outline."""
    if mask.shape == size:
        return mask.copy()
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), SMOOTHING)
    return np.asarray(cv2.resize(soft, size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5)
