"""Predictions as CVAT's JSON (read and measured with 2.73.0 and cvat-sdk 2.80.0). Pure.

CVAT's points are in the core's frame. Its boxes of masks are whole and inclusive, see `mask_points`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import orjson

from clickmask.masks.polygons import group_rings, ring_area
from clickmask.masks.regions import mask_area, mask_box
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Prediction, Size
from clickmask_adapters.tools._json import Json
from clickmask_adapters.tools.cvat.mask_points import (
    InclusiveBox,
    mask_to_crop,
    mask_to_dense_reply,
    mask_to_flat,
    mask_to_points,
)

CONFIDENCE = 0  # the attribute that CVAT's slider filters by
MIN_PART_SHARE = 0.01  # of a detected mask's area; smaller parts get no shape
MASKS: Final = frozenset({"mask", "any", "unknown"})  # label types that take a mask; `unknown` is old
DRAWN: Final = MASKS | {"polygon", "rectangle"}


@dataclass(frozen=True)
class Drawable:
    """A CVAT label with which a model's objects can be drawn."""

    id: int
    type: str


def shapes_reply(found: Sequence[Prediction]) -> bytes:
    """One shape per mask that is not empty, with the confidence that CVAT's slider filters by."""
    shapes = [
        {
            "type": "mask",
            "points": mask_to_points(prediction.mask),
            "attributes": [{"spec_id": CONFIDENCE, "value": _confidence(prediction)}],
        }
        for prediction in found
        if prediction.mask.any()
    ]
    return orjson.dumps({"shapes": shapes})


def dense_reply(found: Sequence[Prediction], size: Size) -> memoryview:
    """The union of all masks, uncropped: CVAT since 2.60 would draw a crop at the image's corner."""
    mask = np.zeros(size, np.bool_)
    for prediction in found:
        mask |= prediction.mask
    return mask_to_dense_reply(mask)


def detector_reply(found: Sequence[tuple[str, Prediction]], min_iou: float) -> bytes:
    """Each connected part as a mask and as a polygon, which CVAT takes if the task wants polygons.

    Parts of one object share a group. Parts without pixels or outline are left out: CVAT stores empty masks
    invisibly, and refuses a frame for an outline of two points. Outlines have as few points as `min_iou`
    allows.
    """
    items: list[dict[str, Any]] = []
    for number, (label, prediction) in enumerate(found, 1):
        parts = [
            {
                "confidence": _confidence(prediction),
                "label": label,
                "type": "mask",
                "points": outline,
                "mask": orjson.Fragment(mask_to_flat(part, after=box)),
            }
            for part, box in _parts(prediction.mask)
            if len(outline := _outline(part, box, min_iou)) >= 6
        ]
        items += [part | {"group_id": number} for part in parts] if len(parts) > 1 else parts
    return orjson.dumps(items)


def _parts(mask: Mask) -> Iterator[tuple[Mask, InclusiveBox]]:
    """Connected parts worth a shape, largest first and at least one, each cropped, with its box."""
    area = mask_area(mask)
    if not area:
        return
    crop, (left, top, _, _) = mask_to_crop(mask)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop.view(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest_first = np.argsort(-areas, kind="stable")
    kept = [part for part in largest_first if areas[part] >= MIN_PART_SHARE * area] or largest_first[:1]
    for part in kept:
        x, y, width, height = (int(value) for value in stats[1 + part, :4])
        box = (left + x, top + y, left + x + width - 1, top + y + height - 1)
        yield labels[y : y + height, x : x + width] == 1 + part, box


def _outline(part: Mask, box: InclusiveBox, min_iou: float) -> list[float]:
    """The outer ring of a connected mask as x, y, x, y, ...: CVAT's polygons have no holes."""
    rings = simplify_mask(part, min_iou).rings
    if not rings:
        return []
    outer = max(rings, key=ring_area)
    return (outer + box[:2]).reshape(-1).tolist()


def _confidence(prediction: Prediction) -> str:
    return f"{prediction.score:.4f}"


def drawable(labels: Sequence[Json]) -> dict[str, Drawable]:
    """The labels of a job that can mark a model's objects, by name."""
    typed = ((label, str(label.get("type") or "any")) for label in labels)
    return {str(label["name"]): Drawable(label["id"], kind) for label, kind in typed if kind in DRAWN}


def shapes(
    found: Sequence[tuple[str, Prediction]],
    frame: int,
    labels: Mapping[str, Drawable],
    first_group: int,
    min_iou: float,
) -> list[dict[str, Any]]:
    """Shapes for CVAT's API of the objects on one frame, all with one of `labels`.

    Polygons of one object share the group `first_group` plus its place. They have as few points as an IoU of
    `min_iou` with the mask allows.
    """
    made: list[dict[str, Any]] = []
    for place, (name, prediction) in enumerate(found):
        label = labels[name]
        parts = list(_points(prediction.mask, label.type, min_iou))
        common: dict[str, Any] = {
            "type": "mask" if label.type in MASKS else label.type,
            "label_id": label.id,
            "frame": frame,
            "group": first_group + place if len(parts) > 1 else 0,
            "source": "auto",
            "score": prediction.score,
            "occluded": False,
            "attributes": [],
        }
        made += [common | {"points": points} for points in parts]
    return made


def _points(mask: Mask, kind: str, min_iou: float) -> Iterator[Sequence[float]]:
    if kind in MASKS:
        yield mask_to_points(mask)
    elif kind == "rectangle":
        yield list(mask_box(mask) or ())
    else:  # CVAT's polygons have no holes
        for outer, _ in group_rings(simplify_mask(mask, min_iou).rings):
            yield outer.reshape(-1).tolist()
