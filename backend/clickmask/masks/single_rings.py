"""Rings joined to one by bridges of no width, a line there and back, for formats of single rings.

Masks as rings of which each is a region by itself: a Label Studio polygon has no holes. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clickmask.masks.polygons import group_rings, polygons_to_mask
from clickmask.masks.regions import mask_area, mask_iou, mask_to_parts, remove_specks
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Point, Ring


def join_holes(outer: Ring, holes: Sequence[Ring]) -> Ring:
    """`outer` with each hole cut out along a level bridge to what is on the hole's left.

    Level, because a level line passes through no pixel's membership; from the leftmost point of
    the hole, and holes from left to right, because then nothing is in the way but what was joined.
    The rings must have opposite direction and may touch, not cross.
    """
    ring = outer
    for hole in sorted(holes, key=lambda hole: float(hole[:, 0].min())):
        first = int(hole[:, 0].argmin())
        x, y = float(hole[first, 0]), float(hole[first, 1])
        after, foot = _left_of(ring, (x, y))
        way_round = np.roll(hole, -first, axis=0)
        there_and_back = np.concatenate(([foot], way_round, way_round[:1], [foot]))
        ring = np.concatenate((ring[: after + 1], there_and_back, ring[after + 1 :]))
        ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
    return ring


def join_parts(rings: Sequence[Ring]) -> Ring:
    """One ring of several that lie apart, each bridged from what is joined by the shortest way between
    two vertices. By the even-odd rule it covers what they covered."""
    joined, *others = rings
    for ring in others:
        apart = ((joined[:, None, :] - ring[None, :, :]) ** 2).sum(axis=2)
        leaves, lands = np.unravel_index(int(apart.argmin()), apart.shape)
        way_round = np.roll(ring, -int(lands), axis=0)
        joined = np.concatenate((joined[: int(leaves) + 1], way_round, way_round[:1], joined[int(leaves) :]))
    return joined


def _left_of(ring: Ring, point: Point) -> tuple[int, Point]:
    """The edge of `ring`, by its first vertex, that a level ray to the left of `point` meets first,
    and where."""
    x, y = point
    after = np.roll(ring, -1, axis=0)
    edges = np.flatnonzero((ring[:, 1] <= y) != (after[:, 1] <= y))
    (x0, y0), (x1, y1) = ring[edges].T, after[edges].T
    crossings = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    crossings[crossings > x + 1e-9] = -np.inf
    nearest = int(crossings.argmax())
    return int(edges[nearest]), (min(float(crossings[nearest]), x), y)


MIN_PART_SHARE = 0.01  # of a mask's area: what is smaller is not worth a region of its own


@dataclass(frozen=True, eq=False)
class SingleRings:
    """Rings that together show a mask, largest part first, and their IoU with that mask."""

    rings: list[Ring]
    iou: float
    lost_area: int  # pixels of the parts that were too small to be kept


def mask_to_single_rings(mask: Mask, min_iou: float) -> SingleRings:
    """One ring for each part of at least 1 % of the mask's area, in as few points as `min_iou` takes.

    Holes are joined to the outside by a bridge of no width, a line there and back. `iou` is that
    of these very rings, drawn, with `mask`, which must not be empty.
    """
    area = mask_area(mask)
    kept = remove_specks(mask, math.ceil(MIN_PART_SHARE * area))
    kept_area = mask_area(kept)
    if not kept_area:  # more than a hundred crumbs
        kept = mask_to_parts(mask)[0]
        kept_area = mask_area(kept)
    parts = group_rings(simplify_mask(kept, min_iou).rings)
    rings = [join_holes(outer, holes) for outer, holes in parts]
    height, width = mask.shape
    drawn = polygons_to_mask(rings, (height, width))
    return SingleRings(rings, mask_iou(drawn, mask), area - kept_area)
