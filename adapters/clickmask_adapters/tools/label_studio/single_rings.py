"""Masks as rings of which each is a region by itself: a Label Studio polygon has no holes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clickmask.bridges import join_holes
from clickmask.masks import group_rings, mask_area, mask_iou, mask_to_parts, polygons_to_mask, remove_specks
from clickmask.simplify import simplify_mask
from clickmask.types import Mask, Ring

LEAST_PART = 0.01  # of a mask's area: what is smaller is not worth a region of its own


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
    kept = remove_specks(mask, math.ceil(LEAST_PART * area))
    kept_area = mask_area(kept)
    if not kept_area:  # more than a hundred crumbs
        kept = mask_to_parts(mask)[0]
        kept_area = mask_area(kept)
    parts = group_rings(simplify_mask(kept, min_iou).rings)
    rings = [join_holes(outer, holes) for outer, holes in parts]
    height, width = mask.shape
    drawn = polygons_to_mask(rings, (height, width))
    return SingleRings(rings, mask_iou(drawn, mask), area - kept_area)
