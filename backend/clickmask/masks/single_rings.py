"""Masks as single rings, for formats without holes and parts such as Label Studio's polygons. Bridges of no
width (a line there and back) join the rings. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clickmask.masks.polygons import group_rings, polygons_to_mask, row_crossings
from clickmask.masks.regions import keep_parts, mask_area, mask_iou
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Ring

MIN_PART_SHARE = 0.01  # of the mask's area; smaller parts get no region


@dataclass(frozen=True, eq=False)
class SingleRings:
    """Rings that together cover a mask, largest part first."""

    rings: list[Ring]
    iou: float  # with the mask
    lost_area: int  # pixels of the parts that were too small to keep


def mask_to_single_rings(mask: Mask, min_iou: float) -> SingleRings:
    """One ring per part of at least 1 % of the mask's area, holes joined, with as few points as `min_iou`
    allows. `iou` compares the filled rings with `mask`, which must not be empty."""
    kept = keep_parts(mask, MIN_PART_SHARE)
    rings = [join_holes(*part) for part in group_rings(simplify_mask(kept, min_iou).rings)]
    height, width = mask.shape
    drawn = polygons_to_mask(rings, (height, width))
    return SingleRings(rings, mask_iou(drawn, mask), mask_area(mask) - mask_area(kept))


def join_holes(outer: Ring, holes: Sequence[Ring]) -> Ring:
    """`outer` with each hole joined to the nearest edge on its left by a level bridge, which adds no pixel.
    Bridges start at a hole's leftmost point and holes go from left to right, so that only joined rings are in
    the way. `outer` and holes must have opposite directions; they may touch but not cross."""
    ring = outer
    for hole in sorted(holes, key=lambda hole: float(hole[:, 0].min())):
        first = int(hole[:, 0].argmin())
        x, y = float(hole[first, 0]), float(hole[first, 1])
        edges, crossings = row_crossings(ring, np.roll(ring, -1, axis=0), y)
        crossings[crossings > x + 1e-9] = -np.inf
        nearest = int(crossings.argmax())
        after, foot = int(edges[nearest]), (min(float(crossings[nearest]), x), y)
        way_round = np.roll(hole, -first, axis=0)
        there_and_back = np.concatenate(([foot], way_round, way_round[:1], [foot]))
        ring = np.concatenate((ring[: after + 1], there_and_back, ring[after + 1 :]))
        ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
    return ring


def join_parts(rings: Sequence[Ring]) -> Ring:
    """One ring from separate ones, bridged at their nearest vertices; by the even-odd rule it covers the
    same."""
    joined, *others = rings
    for ring in others:
        apart = ((joined[:, None, :] - ring[None, :, :]) ** 2).sum(axis=2)
        leaves, lands = np.unravel_index(int(apart.argmin()), apart.shape)
        way_round = np.roll(ring, -int(lands), axis=0)
        joined = np.concatenate((joined[: int(leaves) + 1], way_round, way_round[:1], joined[int(leaves) :]))
    return joined
