"""SAM's frame: pixels of the image resized to a long side of `side`, with pixel centres at whole numbers.
Prompts go into it. The mask of the image comes out of it from a decoder's coarse logits, in two steps, like
SAM's reference."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from clickmask.masks.regions import mask_coverage, mask_iou
from clickmask.types import Logits, Mask, Pixels, Point, Size

Floats = NDArray[np.float32]
Maps = Mapping[str, Floats]  # what an image encoder gives: (C, h, w) by name
Indices = NDArray[np.int64]

MASK_PROMPT_LOGIT = 8.0  # logit inside a given mask, its negative outside; SAM's own reach this
OUTLINE_ERRORS = (-5.0, -2.5, 0.0, 2.5, 5.0)  # cells of a decoder's logits
CELLS_AT_ONCE = 2048  # a batch whose arrays stay in the processor's cache and reuse warm memory
PIXELS_AT_ONCE = 2**19  # of those cells, which are large in a large image, at 40 bytes each


class SamPrompt(NamedTuple):
    """A prompt in SAM's frame."""

    points: Floats  # (N, 2)
    labels: NDArray[np.int32]  # (N,): 1 foreground, 0 background
    box: Floats | None = None  # (2, 2): the corners at the top left and the bottom right
    logits: Logits | None = None  # (1, side / 4, side / 4)


def resized_size(size: Size, side: int) -> Size:
    """Size of an image scaled to a long side of `side`, rounded like the reference, but not to 0, which
    breaks it."""
    scale = side / max(size)
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width


def resized_pixels(pixels: Pixels, resized: Size) -> Pixels:
    """`pixels` at the size `resized` by Pillow's antialiased filter, like the reference: OpenCV's give other
    pixels. One colour at a time, since Pillow copies each pixel of three bytes into four."""
    colours = (PillowImage.fromarray(np.asarray(cv2.extractChannel(pixels, band))) for band in range(3))
    small = [each.resize((resized[1], resized[0]), PillowImage.Resampling.BILINEAR) for each in colours]
    return np.stack([np.asarray(each) for each in small], axis=-1)


def mask_to_logits(mask: Mask, side: int) -> Logits:
    """(1, side / 4, side / 4) logits of `mask`, padded like the image: MASK_PROMPT_LOGIT inside, its negative
    outside, and in between if partly covered, so that the outline stays in place."""
    height, width = resized_size((mask.shape[0], mask.shape[1]), side)
    padded = np.zeros((side, side), np.float32)
    padded[:height, :width] = mask_coverage(mask, (height, width))
    quarter = padded.reshape(side // 4, 4, side // 4, 4).mean(axis=(1, 3))
    return ((2 * quarter - 1) * MASK_PROMPT_LOGIT)[None]


def agreement(masks: NDArray[np.bool_], given: Mask) -> Floats:
    """(n,) how well each of `masks` (n, h, w) agrees with `given` (h, w), 0 to 1: the best IoU with it as it
    is, or grown or shrunk by a few cells. Somebody's outline is off by so much, and it must not matter more
    for a small object."""
    outside, inside = (
        cv2.distanceTransform(each, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for each in (np.where(given, np.uint8(0), np.uint8(1)), np.pad(given, 1).view(np.uint8))
    )
    depths = inside[1:-1, 1:-1] - outside
    if not given.any():  # nothing is near it
        return np.zeros(len(masks), np.float32)
    ious = [[mask_iou(mask, depths > -cells) for cells in OUTLINE_ERRORS] for mask in masks]
    return np.array(ious, np.float32).max(axis=1)


def middle(logits: Logits) -> Floats:
    """(1, 2), in SAM's frame: the point that is farthest from where `logits` (1, h, w) are not positive, or
    the most positive one of a mask that is too thin to have any."""
    inside = np.pad((logits[0] > 0).view(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    deepest = int((depth + logits[0] / (8 * MASK_PROMPT_LOGIT)).argmax())  # depths are whole steps apart
    row, column = np.unravel_index(deepest, depth.shape)
    return np.array([[4 * column + 1.5, 4 * row + 1.5]], np.float32)  # pixel centres at whole numbers


def to_sam(points: Sequence[Point] | NDArray[np.float64], size: Size, side: int) -> Floats:
    """`points` of an image of `size` as (N, 2) points in SAM's frame. Each axis is scaled to the rounded
    size. The half is subtracted after scaling because SAM adds it there."""
    height, width = resized_size(size, side)
    scale = width / size[1], height / size[0]
    return (np.asarray(points, np.float64).reshape(-1, 2) * scale - 0.5).astype(np.float32)


class Taps(NamedTuple):
    """The two source pixels around each of some pixels along one axis of the answer."""

    low: Indices  # non-decreasing
    high: Indices
    weight: Floats  # of the higher one
    first: int  # the pixel of the first entry


def logits_to_mask(logits: Floats, side: int, resized: Size, size: Size) -> Mask:
    """The pixels of the image of `size` at which `logits` (h, w) of the padded square are positive. They are
    enlarged to the square of `side` pixels, cut to the `resized` image in its corner, and brought to `size`:
    bilinear, pixel centres on pixel centres, bit-identical to torch's `interpolate` on a CPU. The second step
    only covers the positive pixels' box and only interpolates between pixels of different signs."""
    padded = np.asarray(cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
    inside = padded[: resized[0], : resized[1]]
    positive = inside > 0
    if resized == size:
        return positive
    rows, columns = (np.flatnonzero(positive.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return np.zeros(size, np.bool_)
    down, across = _taps(resized[0], size[0], rows), _taps(resized[1], size[1], columns)
    if not (down.low.size and across.low.size):
        return np.zeros(size, np.bool_)  # when shrinking, no pixel of the image samples a positive one
    top, left = int(down.low[0]), int(across.low[0])
    box = slice(top, int(down.high[-1]) + 1), slice(left, int(across.high[-1]) + 1)
    down, across = (
        taps._replace(low=taps.low - start, high=taps.high - start)
        for taps, start in ((down, top), (across, left))
    )
    # Cells reach from each pixel to its next ones, the edge repeated. Which are positive at all corners?
    pixels, corners = positive[box].view(np.uint8), np.ones((2, 2), np.uint8)
    everywhere, somewhere = (
        np.asarray(over_corners(pixels, corners, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE))
        for over_corners in (cv2.erode, cv2.dilate)
    )
    mask = _enlarged(everywhere.view(np.bool_), down, across, size)
    undecided = np.flatnonzero(everywhere != somewhere)
    _interpolate(np.ascontiguousarray(inside[box]), undecided, down, across, mask)
    return mask


def _taps(source: int, target: int, positive: Indices) -> Taps:
    """Taps from `source` to `target` pixels, for targets with a tap in the `positive` (sorted) sources.
    Float32 like torch: in float64 one pixel in millions falls on the other side."""
    scale = np.float32(source) / np.float32(target)
    at = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    begin = int(np.count_nonzero(high < positive[0]))  # both are sorted
    end = int(np.count_nonzero(low <= positive[-1]))
    return Taps(low[begin:end], high[begin:end], (at - low)[begin:end].astype(np.float32), begin)


def _enlarged(everywhere: Mask, down: Taps, across: Taps, size: Size) -> Mask:
    """The mask of `size` that is set where the cell is positive everywhere. Writes every byte once."""
    wide = np.zeros((everywhere.shape[0], size[1]), np.bool_)
    columns = cv2.transpose(everywhere.view(np.uint8))  # rows are copied whole, single pixels are not
    rows = cv2.transpose(np.take(columns, across.low, axis=0, mode="clip"))
    wide[:, across.first : across.first + len(across.low)] = np.asarray(rows).view(np.bool_)
    mask, end = np.empty(size, np.bool_), down.first + len(down.low)
    mask[: down.first] = mask[end:] = False
    np.take(wide, down.low, axis=0, out=mask[down.first : end], mode="clip")  # "raise" would copy it twice
    return mask


def _interpolate(source: Floats, cells: Indices, down: Taps, across: Taps, mask: Mask) -> None:
    """Fill the pixels of `cells` in `mask`: interpolate along the rows above and below, then between them.
    Cells with equally many pixels are done together."""
    height, width = source.shape
    flat, answer = source.ravel(), mask.ravel()
    tops = cast("Indices", np.searchsorted(down.low, np.arange(height + 1, dtype=np.int64)))
    lefts = cast("Indices", np.searchsorted(across.low, np.arange(width + 1, dtype=np.int64)))
    rows, columns = cells // width, cells % width
    heights, widths = np.diff(tops)[rows], np.diff(lefts)[columns]
    base = int(widths.max(initial=0)) + 1
    kinds = heights * base + widths
    for kind in np.flatnonzero(np.bincount(kinds)):
        alike, (high, wide) = np.flatnonzero(kinds == kind), divmod(int(kind), base)
        step = max(1, min(CELLS_AT_ONCE, PIXELS_AT_ONCE // max(1, high * wide)))
        for start in range(0, len(alike), step):
            some = alike[start : start + step]
            row, left = rows[some], columns[some]  # (n,)
            y = tops[row] + np.arange(high)[:, None]  # (k, n)
            x = lefts[left] + np.arange(wide)[:, None]  # (l, n)
            above, below = row * width, np.minimum(row + 1, height - 1) * width
            right = np.minimum(left + 1, width - 1)
            share = across.weight[x]  # (l, n)
            upper = flat[above + left] * (1 - share) + flat[above + right] * share
            lower = flat[below + left] * (1 - share) + flat[below + right] * share
            share = down.weight[y][:, None]  # (k, 1, n)
            at = ((down.first + y) * mask.shape[1])[:, None] + (across.first + x)  # (k, l, n)
            answer[at] = upper * (1 - share) + lower * share > 0
