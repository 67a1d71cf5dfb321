"""COCO's run lengths, measured and joined by pycocotools without being drawn.

Its stubs know less than it takes, and it wants `counts` as bytes, where files and ours have text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from clickmask.masks import Rle
from clickmask.types import Size


def rle_area(rle: Rle) -> int:
    """Number of pixels."""
    return int(cast("Any", coco).area(_as_bytes(rle)))


def rle_box(rle: Rle) -> list[float]:
    """As COCO has it: x, y, width, height; all 0 where nothing is covered."""
    return [float(side) for side in cast("Any", coco).toBbox(_as_bytes(rle))]


def rle_iou(one: Rle, other: Rle) -> float:
    """0 for masks of different sizes, which are not of one picture."""
    if list(one["size"]) != list(other["size"]):
        return 0.0
    return float(cast("Any", coco).iou([_as_bytes(one)], [_as_bytes(other)], [0])[0, 0])


def rle_ious(rles: Sequence[Rle]) -> NDArray[np.float64]:
    """(n, n), of each with each; all of one size."""
    written = [_as_bytes(rle) for rle in rles]
    return cast("Any", coco).iou(written, written, [0] * len(written))


def unite(rles: Sequence[Rle]) -> Rle:
    """What any of them covers; all of one size."""
    return as_rle(cast("Any", coco).merge([_as_bytes(rle) for rle in rles]))


def rings_to_rle(rings: Sequence[Sequence[float]], size: Size) -> Rle:
    """What pycocotools makes of polygons, x and y in turn, which it rounds: all that any covers."""
    return as_rle(coco.merge(cast("Any", coco).frPyObjects(list(rings), *size)))


def as_rle(encoded: Any) -> Rle:
    """What pycocotools gives, or a file has."""
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return Rle(size=[int(length) for length in encoded["size"]], counts=text)


def _as_bytes(rle: Rle) -> Any:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
