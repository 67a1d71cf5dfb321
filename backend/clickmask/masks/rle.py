"""COCO's compressed run lengths (RLE): exact conversions, and areas, boxes and IoUs without drawing. Runs end
in few places, so eight pixels are compared at a time."""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from clickmask.masks.polygons import ring_crossings, toggles_to_mask
from clickmask.masks.regions import as_bytes
from clickmask.types import Box, Mask, Ring, Size

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]
MAX_WALKED_PX = 2**22  # along the edges of a polygon for pycocotools, at 40 bytes each


class Rle(TypedDict):
    """A mask as COCO's compressed run lengths, column by column."""

    size: list[int]  # [height, width]
    counts: str


def mask_to_rle(mask: Mask) -> Rle:
    """`mask` as COCO's compressed RLE."""
    height, width = mask.shape
    runs = np.diff(column_toggles(mask), prepend=0, append=mask.size)
    return {"size": [height, width], "counts": runs_to_counts(runs)}


def polygons_to_rle(rings: Sequence[Ring], size: Size) -> Rle:
    """The RLE of `polygons_to_mask(rings, size)`, without drawing it."""
    return toggles_to_rle(ring_crossings(rings, size, by_column=True)[1], size)


def rings_to_rles(rings: Sequence[Ring], size: Size) -> list[Rle]:
    """`polygons_to_rle` of each ring alone, faster than one by one."""
    owner, toggles = ring_crossings(rings, size, by_column=True)
    return [toggles_to_rle(toggles[owner == index], size) for index in range(len(rings))]


def box_to_rle(box: Box, size: Size) -> Rle:
    """The RLE of the pixels of an image of `size` whose centre is in `box`, as `polygons_to_mask` decides."""
    (height, width), (x0, y0, x1, y1) = size, box
    left, right = (int(np.clip(np.ceil(x - 0.5), 0, width)) for x in sorted((x0, x1)))
    top, bottom = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
    columns = np.arange(left, right) * height
    return toggles_to_rle(np.concatenate((columns + top, columns + bottom)), size)


def rle_to_mask(rle: Rle) -> Mask:
    """A new mask from COCO's compressed RLE. Raises ValueError if malformed or not of its size."""
    height, width = rle["size"]
    columns = toggles_to_mask(rle_toggles(rle), (width, height))
    return as_bytes(cv2.transpose(as_bytes(columns))).view(np.bool_)


def rle_toggles(rle: Rle) -> Indices:
    """Column-major indices at which a run of the mask begins and after which it ends, in turn.

    Raises ValueError if the RLE is malformed or not of its size.
    """
    height, width = rle["size"]
    code = np.frombuffer(rle["counts"].encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(code) or code[-1] & 0x20 or code.min() < 0 or code.max() > 0x3F:
        raise ValueError(f"{rle['counts'][:20]!r} is no compressed RLE")
    last = np.flatnonzero(code & 0x20 == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    shift = 5 * (np.arange(len(code)) - np.repeat(first, last - first + 1))
    if shift.max() > 30:
        raise ValueError("the RLE has a run longer than any image")
    runs = np.add.reduceat((code & 0x1F) << shift, first) - ((code[last] >> 4 & 1) << shift[last] + 5)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"the RLE's {runs.sum()} pixels do not fit its size {height} x {width}")
    return np.cumsum(runs)[: len(runs) // 2 * 2]


def rle_area(rle: Rle) -> int:
    """Number of pixels in the mask."""
    return int(cast("Any", coco).area(_as_bytes(rle)))


def rle_box(rle: Rle) -> list[float]:
    """COCO's box: x, y, width, height in px; all 0 for an empty mask."""
    return [float(side) for side in cast("Any", coco).toBbox(_as_bytes(rle))]


def rle_iou(one: Rle, other: Rle) -> float:
    """IoU of two masks; 0 if their sizes differ, since they show different images."""
    if list(one["size"]) != list(other["size"]):
        return 0.0
    return float(cast("Any", coco).iou([_as_bytes(one)], [_as_bytes(other)], [0])[0, 0])


def rle_ious(ones: Sequence[Rle], others: Sequence[Rle]) -> NDArray[np.float64]:
    """(n, m) IoUs of masks of the same size, each of `ones` with each of `others`."""
    first, second = ([_as_bytes(rle) for rle in rles] for rles in (ones, others))
    return cast("Any", coco).iou(first, second, [0] * len(second))


def rle_overlap(one: Rle, other: Rle) -> int:
    """Number of pixels in both masks, which have the same size."""
    both = cast("Any", coco).merge([_as_bytes(one), _as_bytes(other)], intersect=True)
    return int(cast("Any", coco).area(both))


def unite(rles: Sequence[Rle]) -> Rle:
    """The union of masks of the same size."""
    return as_rle(cast("Any", coco).merge([_as_bytes(rle) for rle in rles]))


def rings_to_rle(rings: Sequence[Sequence[float]], size: Size) -> Rle:
    """The union of polygons, each x, y, x, y ..., filled by pycocotools, which rounds vertices. Raises
    ValueError if that would take too long: it walks along each edge, however far outside it is."""
    for ring in rings:
        corners = np.array(ring[: len(ring) // 2 * 2], np.float64).reshape(-1, 2)
        walked = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1, initial=0).sum()
        if not (walked <= MAX_WALKED_PX and np.abs(corners).max(initial=0) <= MAX_WALKED_PX):
            raise ValueError(f"a polygon with edges of {walked:.3g} pixels together, or too far outside")
    return as_rle(coco.merge(cast("Any", coco).frPyObjects(list(rings), *size)))


def as_rle(encoded: Any) -> Rle:
    """An RLE from a file or from pycocotools, whose counts are bytes."""
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return Rle(size=[int(length) for length in encoded["size"]], counts=text)


def row_toggles(mask: Mask) -> Indices:
    """Sorted row-major indices of pixels that differ from the previous one; never 0."""
    flat = np.ascontiguousarray(mask).view(np.uint8).reshape(-1)
    return _differing(flat[1:], flat[:-1]) + 1


def column_toggles(mask: Mask) -> Indices:
    """Sorted column-major indices of pixels that differ from the previous one, the first from background."""
    height, width = mask.shape
    if not mask.size:
        return np.zeros(0, np.int64)
    flat = np.ascontiguousarray(mask).view(np.uint8).reshape(-1)
    edges = _differing(flat[width:], flat[:-width])
    top, bottom = np.flatnonzero(mask[0]) * height, (np.flatnonzero(mask[-1]) + 1) * height
    # Nothing changes between a column's last pixel and the next one's first if both are set.
    ends = np.setxor1d(top, bottom, assume_unique=True)
    toggles = np.concatenate((edges % width * height + edges // width + 1, ends[ends < mask.size]))
    toggles.sort()
    return toggles


def runs_to_counts(runs: Indices) -> str:
    """COCO's text of run lengths (maskApi.c, rleToString). Each character holds five bits, lowest first, and
    a sixth that says that more follow; a number's topmost bit is the sign. From the fourth run on, a number
    is the difference from the run two before."""
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    # A number takes one character for every five bits of its two's complement.
    bounds = 16 * 32 ** np.arange(6)
    lengths = 1 + np.searchsorted(bounds, np.where(numbers < 0, -1 - numbers, numbers), side="right")
    owner = np.repeat(np.arange(len(numbers)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    code = numbers[owner] >> 5 * place & 0x1F
    code[place < lengths[owner] - 1] |= 0x20
    return (code + 48).astype(np.uint8).tobytes().decode("ascii")


def toggles_to_rle(toggles: Indices, size: Size) -> Rle:
    """The RLE of unsorted column-major toggles; an even number of them at one pixel changes nothing."""
    height, width = size
    turns, counts = np.unique(toggles, return_counts=True)
    turns = turns[(counts % 2 == 1) & (turns < height * width)]
    runs = np.diff(turns, prepend=0, append=height * width)
    return {"size": [height, width], "counts": runs_to_counts(runs)}


def _as_bytes(rle: Rle) -> Any:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}


def _differing(one: Bytes, other: Bytes) -> Indices:
    """Sorted indices at which two flat arrays of equal length differ."""
    whole = len(one) // 8 * 8
    ones, others = one[:whole].view(np.uint64), other[:whole].view(np.uint64)
    words = np.flatnonzero(ones != others)
    places = np.flatnonzero((ones[words] ^ others[words]).view(np.uint8) != 0)  # `!= 0` is faster
    rest = np.flatnonzero(one[whole:] != other[whole:]) + whole
    return np.append(8 * words[places >> 3] + (places & 7), rest)
