"""Pixel regions of a mask: area, box, IoU, size, parts, specks, pinholes. See `polygons` for connectivity."""

from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Box, Mask, Size

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]
Floats = NDArray[np.float32]

PIXELS_AT_ONCE = 2**22  # of a large mask, so that it takes little more memory than its own


def mask_area(mask: Mask) -> int:
    """Number of pixels in the mask."""
    return cv2.countNonZero(as_bytes(mask))


def mask_box(mask: Mask) -> Box | None:
    """The outer edges of the mask in px, or None if it is empty."""
    x, y, width, height = cv2.boundingRect(as_bytes(mask)) if mask.size else (0, 0, 0, 0)
    return (float(x), float(y), float(x + width), float(y + height)) if width else None


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of the same size; 1 for two empty masks."""
    if a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape} have no IoU")
    union = cv2.countNonZero(cv2.bitwise_or(as_bytes(a), as_bytes(b)))
    return cv2.countNonZero(cv2.bitwise_and(as_bytes(a), as_bytes(b))) / union if union else 1.0


def draw_above(values: Floats, threshold: float, mask: Mask) -> None:
    """Set `mask` (H, W), a view perhaps, where `values` (h, w), brought to its size, are above `threshold`:
    bilinear, pixel centres on pixel centres."""
    height, width = mask.shape
    if height > PIXELS_AT_ONCE:  # then a single column is too much
        values, mask = np.ascontiguousarray(values.T), mask.T
        height, width = mask.shape
    step = max(1, PIXELS_AT_ONCE // height)
    if step < width:  # along the rows first, then a few columns at a time
        wide = cv2.resize(values, (width, values.shape[0]), interpolation=cv2.INTER_LINEAR)
        values = np.asarray(wide, np.float32)
    for left in range(0, width, step):
        part = mask[:, left : left + step]
        some = values[:, left : left + step] if step < width else values
        resized = cv2.resize(some, (part.shape[1], height), interpolation=cv2.INTER_LINEAR)
        np.greater(resized, threshold, out=part)


def mask_above(values: Floats, threshold: float, size: Size) -> Mask:
    """A new mask of `size`, as `draw_above` draws it."""
    mask = np.empty(size, np.bool_)
    draw_above(values, threshold, mask)
    return mask


def mask_coverage(mask: Mask, size: Size) -> Floats:
    """The share of each pixel of a smaller image of `size` that `mask` covers."""
    height, width = mask.shape
    step = max(1, PIXELS_AT_ONCE // width)
    if step >= height:
        return _shrunk(mask, size)
    rows = [_shrunk(each, (len(each), size[1])) for each in np.split(mask, range(step, height, step))]
    return _shrunk(np.concatenate(rows), size)


def keep_parts(mask: Mask, min_share: float = 0.0, most: int | None = None) -> Mask:
    """A copy with the connected parts of at least `min_share` of the mask's area, or the `most` largest of
    these. The largest part always stays."""
    kept = np.zeros_like(mask)
    inside = box_slices(mask)
    labels, areas = _label(as_bytes(mask[inside]), connectivity=4)
    parts = areas[1:]  # without the background
    order = np.argsort(-parts, kind="stable")[:most]
    large = np.zeros(len(areas), bool)
    large[1 + order] = parts[order] >= min_share * parts.sum()
    large[1 + order[:1]] = True
    kept[inside] = large[labels]
    return kept


def fill_pinholes(mask: Mask, max_area: int) -> Mask:
    """A copy with holes of at most `max_area` pixels filled: background that even diagonal steps cannot leave
    and that does not reach the image's edge."""
    filled = mask.copy()
    inside = box_slices(mask)
    labels, areas = _label(np.pad(1 - as_bytes(mask[inside]), 1, constant_values=1), connectivity=8)
    small = areas <= max_area
    small[0] = small[labels[0, 0]] = False  # the mask and its surroundings
    if small.any():
        filled[inside] |= small[labels[1:-1, 1:-1]]
    return filled


def as_bytes(mask: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(mask).view(np.uint8)


def box_slices(mask: Mask) -> tuple[slice, slice]:
    """The rows and columns of the mask's box, empty slices for an empty mask."""
    x0, y0, x1, y1 = mask_box(mask) or (0, 0, 0, 0)
    return slice(int(y0), int(y1)), slice(int(x0), int(x1))


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """A mask of an image of `size` of which only a part is kept: nothing is set outside of it."""

    part: Mask
    top: int
    left: int
    size: Size

    def whole(self) -> Mask:
        """The mask of the whole image, a new array."""
        mask = np.zeros(self.size, np.bool_)
        height, width = self.part.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.part
        return mask


def crop_mask(mask: Mask) -> CroppedMask:
    """`mask`, cropped to its box: a copy, unless that would save less than half."""
    rows, columns = box_slices(mask)
    part = mask[rows, columns]
    part = part.copy() if 2 * part.size < mask.size else part
    return CroppedMask(part, rows.start, columns.start, (mask.shape[0], mask.shape[1]))


def _shrunk(values: NDArray[Any], size: Size) -> Floats:
    floats = values.astype(np.float32, copy=False)
    return np.asarray(cv2.resize(floats, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _label(mask: Bytes, connectivity: int) -> tuple[Indices, Indices]:
    """The label of each pixel (0 where `mask` is 0), and the pixel count of each label."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    return cast("Indices", labels), cast("Indices", stats[:count, cv2.CC_STAT_AREA])
