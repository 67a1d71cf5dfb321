"""Predictions as CVAT's JSON (read and measured with 2.73.0 and cvat-sdk 2.80.0). Pure. CVAT's points are in
the core's frame. Its boxes of masks are whole and inclusive, see `mask_points`."""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import orjson

from clickmask.masks.polygons import ring_area
from clickmask.masks.regions import mask_area
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Prediction, Size, one_by_one
from clickmask_adapters.tools.cvat import mask_points

CONFIDENCE = 0  # the attribute that CVAT's slider filters by
MIN_PART_SHARE = 0.01  # of a detected mask's area; smaller parts get no shape


def shapes_reply(found: list[Prediction]) -> bytes:
    """One shape per mask that is not empty, with the confidence that CVAT's slider filters by. Empties the
    list."""
    shapes = [
        {
            "type": "mask",
            "points": mask_points.mask_to_points(prediction.mask),
            "attributes": [{"spec_id": CONFIDENCE, "value": f"{prediction.score:.4f}"}],
        }
        for prediction in one_by_one(found)
        if prediction.mask.any()
    ]
    return orjson.dumps({"shapes": shapes})


def dense_reply(found: Sequence[Prediction], size: Size) -> memoryview:
    """The union of all masks, uncropped: CVAT since 2.60 would draw a crop at the image's corner."""
    mask = np.zeros(size, np.bool_)
    for prediction in found:
        mask |= prediction.mask
    return mask_points.mask_to_dense_reply(mask)


def detector_reply(found: Sequence[tuple[str, Prediction]], min_iou: float) -> bytes:
    """Each connected part as a mask and as a polygon, which CVAT takes if the task wants polygons.

    Parts of one object share a group. Parts without pixels or outline are left out: CVAT stores empty masks
    invisibly, and refuses a frame for an outline of two points. Outlines have as few points as `min_iou`
    allows, and no holes, as CVAT's polygons have none.
    """
    items: list[dict[str, Any]] = []
    for number, (label, prediction) in enumerate(found, 1):
        parts = [
            {
                "confidence": f"{prediction.score:.4f}",
                "label": label,
                "type": "mask",
                "points": (outer + box[:2]).reshape(-1).tolist(),
                "mask": orjson.Fragment(mask_points.mask_to_flat(part, after=box)),
            }
            for part, box in _parts(prediction.mask)
            for outer in sorted(simplify_mask(part, min_iou).rings, key=ring_area)[-1:]  # others are holes
            if len(outer) >= 3
        ]
        items += [part | {"group_id": number} for part in parts] if len(parts) > 1 else parts
    return orjson.dumps(items)


def _parts(mask: Mask) -> Iterator[tuple[Mask, mask_points.InclusiveBox]]:
    """Connected parts worth a shape, largest first and at least one, each cropped, with its box."""
    area = mask_area(mask)
    if not area:
        return
    crop, (left, top, _, _) = mask_points.mask_to_crop(mask)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop.view(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest_first = np.argsort(-areas, kind="stable")
    kept = [part for part in largest_first if areas[part] >= MIN_PART_SHARE * area] or largest_first[:1]
    for part in kept:
        x, y, width, height = (int(value) for value in stats[1 + part, :4])
        box = (left + x, top + y, left + x + width - 1, top + y + height - 1)
        yield labels[y : y + height, x : x + width] == 1 + part, box
