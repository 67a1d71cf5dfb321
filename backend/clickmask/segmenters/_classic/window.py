"""The part of an image that GrabCut sees for a prompt, and the frame of its pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clickmask.masks.regions import mask_box
from clickmask.segmenters._classic.small_image import SmallImage, enlarged, resized, size_of
from clickmask.types import Box, Mask, Pixels, Point, Prompt, Size

WINDOW_SIDE = 192  # px; longest side of the window: 256 takes twice the time and finds no more
MARGIN = 0.3  # of a box's sides, on each side: the background that its inside is compared with
MAX_CLICK_DISTANCE = 0.64  # of sqrt(height * width); anything further from every click is background


@dataclass(frozen=True, eq=False)
class Window:
    """A part of the image, scaled, and the prompt in the frame of these pixels."""

    pixels: Pixels  # (h, w, 3), longest side at most WINDOW_SIDE
    extent: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the whole image
    foreground: tuple[Point, ...]
    background: tuple[Point, ...]
    box: Box | None
    side: float  # sqrt(height * width) of the whole image

    @property
    def size(self) -> Size:
        return size_of(self.pixels)


def crop_for(embedding: SmallImage, prompt: Prompt) -> Window:
    """The window that a cut needs for `prompt`."""
    (height, width), (rows, columns) = embedding.whole, embedding.pixels.shape[:2]
    # a box around everything the prompt calls foreground, with room for the background
    start = prompt.box or (mask_box(prompt.mask) if prompt.mask is not None else None)
    reach = 0.0 if start is not None else MAX_CLICK_DISTANCE * math.sqrt(height * width)
    xs = [x + side for x, _ in prompt.foreground for side in (-reach, reach)]
    ys = [y + side for _, y in prompt.foreground for side in (-reach, reach)]
    if start is not None:
        across, down = (start[2] - start[0]) * MARGIN, (start[3] - start[1]) * MARGIN
        xs += [start[0] - across, start[2] + across]
        ys += [start[1] - down, start[3] + down]
    if not xs:  # only an empty mask: use the whole image
        xs, ys = [0.0, width], [0.0, height]
    # in pixels of the embedding, rounded outwards, and never empty
    left = min(max(math.floor(min(xs) * columns / width), 0), columns - 1)
    top = min(max(math.floor(min(ys) * rows / height), 0), rows - 1)
    right = min(max(math.ceil(max(xs) * columns / width), left + 1), columns)
    bottom = min(max(math.ceil(max(ys) * rows / height), top + 1), rows)
    extent = (
        left * width // columns,
        top * height // rows,
        -(-right * width // columns),
        -(-bottom * height // rows),
    )
    shrink = min(1.0, WINDOW_SIDE / max(right - left, bottom - top))
    size = max(1, round((bottom - top) * shrink)), max(1, round((right - left) * shrink))
    pixels = resized(embedding.pixels[top:bottom, left:right], size)
    sx, sy = size[1] / (extent[2] - extent[0]), size[0] / (extent[3] - extent[1])

    def framed(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple(((x - extent[0]) * sx, (y - extent[1]) * sy) for x, y in points)

    box = None
    if prompt.box is not None:
        corners = framed([prompt.box[:2], prompt.box[2:]])
        box = (*corners[0], *corners[1])
    side = math.sqrt(height * width) * sx
    return Window(pixels, extent, framed(prompt.foreground), framed(prompt.background), box, side)


def whole_mask(found: Mask, window: Window, size: Size) -> Mask:
    """`found` as a mask of the whole image, enlarged with a smooth outline."""
    x0, y0, x1, y1 = window.extent
    mask = np.zeros(size, np.bool_)
    mask[y0:y1, x0:x1] = enlarged(found, (y1 - y0, x1 - x0))
    return mask
