"""Inputs of the built-in network (a crop of an image, a prompt as maps of it), and masks from its logits. A
crop is scaled to a long side and padded to multiples of 32. Maps and logits have half that size.
`clickmask.training.click.prompts` trains with the same maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.masks.regions import draw_above, mask_coverage, mask_iou
from clickmask.types import Box, Mask, Pixels, Point, Prompt, Size

Floats = NDArray[np.float32]

MULTIPLE = 32
NARROW, WIDE = 5.0, 32.0  # px; standard deviations of a click's two Gaussian bumps
CLICKED, REJECTED, CLICKED_WIDE, REJECTED_WIDE, BOX, MIDDLE, REGION = range(7)  # the maps in order
MAPS = 7

MAX_KEPT_PX = 1024  # longest side of the pixels kept for second passes
CROP_MARGIN = 1.7  # side of a crop, in sides of the object in it
MIN_CROP_PX = 64.0  # of the kept pixels
MAX_CROP_SHARE = 0.75  # of the image's long side; a larger crop is not worth a second pass
MIN_CONFIDENCE_LOGIT = 8.0  # logit of a pixel that a rule decides
MAX_BOX_OVERSHOOT = 0.05  # of a box's sides; how far a mask may leave it
CLICK_RADIUS = 0.15  # of the square root of the mask's area: the disc that a click overrules
MERGE_IOU = 0.9  # candidates with a larger IoU are one
EMPTY_MASK_RADIUS = 0.02  # of the image's long side: the disc round a click if nothing was found


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

    def inside(self, points: Sequence[Point]) -> list[Point]:
        """`to_crop` of the points that lie in the extent."""
        x0, y0, x1, y1 = self.extent
        return self.to_crop([(x, y) for x, y in points if x0 <= x <= x1 and y0 <= y <= y1])


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
    for points, narrow, wide in (
        (prompt.foreground, CLICKED, CLICKED_WIDE),
        (prompt.background, REJECTED, REJECTED_WIDE),
    ):
        for column, row in crop.inside(points):
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


@dataclass(frozen=True, eq=False)
class Pass:
    """The network's answer in a crop: logits (H / 2, W / 2) of one mask, and its predicted IoU."""

    crop: Crop
    logits: Floats
    predicted_iou: float


def probabilities(logits: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)


def coverage(mask: Mask, crop: Crop) -> Floats:
    """(H / 2, W / 2) share of each of the crop's cells that `mask` covers."""
    height, width = (side // 2 for side in crop.size)
    padded = np.zeros([side // 2 for side in crop.padded], np.float32)
    padded[:height, :width] = mask_coverage(mask, (height, width))
    return padded


def constrain(logits: Floats, crop: Crop, prompt: Prompt) -> Floats:
    """`logits` without what cannot be meant: padding, pixels far from the box, parts without a click."""
    height, width = (side // 2 for side in crop.size)
    inside = np.full_like(logits, -MIN_CONFIDENCE_LOGIT)
    top, left, bottom, right = 0, 0, height, width
    if prompt.box is not None:
        (x0, y0), (x1, y1) = crop.to_crop([prompt.box[:2], prompt.box[2:]])
        across, down = MAX_BOX_OVERSHOOT * (x1 - x0) + 2, MAX_BOX_OVERSHOOT * (y1 - y0) + 2
        left, top = max(left, int((x0 - across) / 2)), max(top, int((y0 - down) / 2))
        right, bottom = min(right, int((x1 + across) / 2) + 1), min(bottom, int((y1 + down) / 2) + 1)
    inside[top:bottom, left:right] = logits[top:bottom, left:right]
    foreground = [(x / 2, y / 2) for x, y in crop.inside(prompt.foreground)]
    background = [(x / 2, y / 2) for x, y in crop.inside(prompt.background)]
    _decide(inside, foreground, background, MIN_CONFIDENCE_LOGIT)
    _decide(inside, background, foreground, -MIN_CONFIDENCE_LOGIT)
    return _clicked(inside, foreground)


def _decide(logits: Floats, points: list[Point], others: list[Point], logit: float) -> None:
    """Draw a disc of `logit`, in place, at each of `points` (x, y) where the network disagrees. In uniform
    areas it may overrule a click, but a person has decided."""
    radius = max(1.5, CLICK_RADIUS * float(np.count_nonzero(logits > 0)) ** 0.5)
    y, x = np.ogrid[: logits.shape[0], : logits.shape[1]]
    for column, row in points:
        if (logits[_cell((column, row), logits)] > 0) == (logit > 0):
            continue
        reach = min([radius, *(math.dist((column, row), other) / 2 for other in others)])
        logits[(x + 0.5 - column) ** 2 + (y + 0.5 - row) ** 2 <= reach**2] = logit
        if reach > 0:
            logits[_cell((column, row), logits)] = logit


def _clicked(logits: Floats, points: list[Point]) -> Floats:
    """`logits`, negative in each part without one of `points`; unchanged if no part has one."""
    _, labels = cv2.connectedComponents((logits > 0).view(np.uint8), connectivity=8)
    clicked = {int(labels[_cell(point, logits)]) for point in points} - {0}
    if not clicked:
        return logits
    return np.where((labels == 0) | np.isin(labels, list(clicked)), logits, np.float32(-MIN_CONFIDENCE_LOGIT))


def _cell(point: Point, logits: Floats) -> tuple[int, int]:
    return min(int(point[1]), logits.shape[0] - 1), min(int(point[0]), logits.shape[1] - 1)


def different(passes: list[Pass]) -> list[Pass]:
    """`passes`, best first, without empty ones and near repeats of a better one; at least one."""
    kept: list[Pass] = []
    for seen in sorted(passes, key=lambda seen: -seen.predicted_iou):
        mask = seen.logits > 0
        if mask.any() and all(mask_iou(mask, other.logits > 0) < MERGE_IOU for other in kept):
            kept.append(seen)
    return kept or passes[:1]


def crop_around(seen: Pass, prompt: Prompt, size: Size) -> Box | None:
    """The square around the mask and the prompt, moved into the image; None if it is most of the image."""
    rows, columns = np.nonzero(seen.logits > 0)
    x0, y0, x1, y1 = seen.crop.extent
    sx, sy = 2 * (x1 - x0) / seen.crop.size[1], 2 * (y1 - y0) / seen.crop.size[0]
    corners = list(prompt.foreground)
    if rows.size:
        corners += [(float(columns.min()) * sx, float(rows.min()) * sy)]
        corners += [(float(columns.max() + 1) * sx, float(rows.max() + 1) * sy)]
    if prompt.box is not None:
        corners += [prompt.box[:2], prompt.box[2:]]
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    smallest = MIN_CROP_PX * max(1.0, max(size) / MAX_KEPT_PX)
    side = max(CROP_MARGIN * max(max(xs) - min(xs), max(ys) - min(ys)), smallest)
    if side > MAX_CROP_SHARE * max(size):
        return None
    edges: list[tuple[float, float]] = []
    for values, length in ((xs, size[1]), (ys, size[0])):
        low = (min(values) + max(values) - side) / 2
        low = min(max(low, 0.0), max(0.0, length - side))
        edges.append((low, min(low + side, float(length))))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def resample(seen: Pass, crop: Crop) -> Floats:
    """(H / 2, W / 2) logits of `seen` in another crop, bilinear; -MIN_CONFIDENCE_LOGIT in the padding."""
    height, width = (side // 2 for side in crop.size)
    (x0, y0), (x1, y1) = seen.crop.to_crop([crop.extent[:2], crop.extent[2:]])
    across = (x0 + (np.arange(width, dtype=np.float32) + 0.5) * ((x1 - x0) / width)) / 2 - 0.5
    down = (y0 + (np.arange(height, dtype=np.float32) + 0.5) * ((y1 - y0) / height)) / 2 - 0.5
    x, y = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
    padded = np.full([side // 2 for side in crop.padded], -MIN_CONFIDENCE_LOGIT, np.float32)
    padded[:height, :width] = cv2.remap(seen.logits, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return padded


def paste(seen: Pass, crop: Crop, before: Floats) -> Floats:
    """`before`, the logits of the whole image's `crop`, replaced by those of a closer pass."""
    if seen.crop == crop:
        return before
    corners = crop.to_crop([seen.crop.extent[:2], seen.crop.extent[2:]])
    left, top, right, bottom = (round(edge / 2) for corner in corners for edge in corner)
    whole = np.full_like(before, -MIN_CONFIDENCE_LOGIT)
    height, width = (side // 2 for side in seen.crop.size)
    if bottom > top and right > left:
        size = right - left, bottom - top
        part = cv2.resize(seen.logits[:height, :width], size, interpolation=cv2.INTER_AREA)
        whole[top:bottom, left:right] = part[: whole.shape[0] - top, : whole.shape[1] - left]
    return whole


def whole_mask(seen: Pass, prompt: Prompt, size: Size) -> Mask:
    """The mask of `seen` in the whole image, never empty."""
    height, width = (side // 2 for side in seen.crop.size)
    x0, y0, x1, y1 = (round(edge) for edge in seen.crop.extent)
    mask = np.zeros(size, np.bool_)
    draw_above(seen.logits[:height, :width], 0.0, mask[y0:y1, x0:x1])
    if mask.any():
        return mask
    # Nothing was found: the prompt itself is the mask, as its mask, the box's ellipse, or discs.
    if prompt.mask is not None and prompt.mask.any():
        return prompt.mask.copy()
    radius = EMPTY_MASK_RADIUS * max(size)
    discs = [(point, radius, radius) for point in prompt.foreground]
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        discs = [(((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0) / 2, (y1 - y0) / 2)]
    for (column, row), across, down in discs or [((size[1] / 2, size[0] / 2), size[1] / 2, size[0] / 2)]:
        _draw_ellipse(mask, (column, row), max(across, 0.5), max(down, 0.5))
        mask[min(int(row), size[0] - 1), min(int(column), size[1] - 1)] = True
    return mask


def _draw_ellipse(mask: Mask, centre: Point, across: float, down: float) -> None:
    """Set the pixels of `mask` whose centre is in the ellipse with these half axes, row by row: all rows at
    once would take eight times the memory of the mask."""
    x = (np.arange(mask.shape[1], dtype=np.float64) + 0.5 - centre[0]) / across
    first, last = math.floor(centre[1] - down), math.ceil(centre[1] + down)
    for row in range(max(0, first), min(mask.shape[0], last + 1)):
        mask[row] |= x**2 + ((row + 0.5 - centre[1]) / down) ** 2 <= 1
