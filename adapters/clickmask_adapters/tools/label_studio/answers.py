"""Predictions as Label Studio's JSON (recorded with 1.23.2). Pure.

Coordinates are percent of the image as displayed: EXIF applied, Label Studio's own rotate tool not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clickmask.masks.regions import mask_box
from clickmask.masks.single_rings import SingleRings, mask_to_single_rings
from clickmask.types import Mask, Prediction
from clickmask_adapters.tools.label_studio.bit_mask import mask_to_bit_mask
from clickmask_adapters.tools.label_studio.brush_rle import mask_to_brush_rle
from clickmask_adapters.tools.label_studio.label_config import LABELS, Answer
from clickmask_adapters.tools.label_studio.prompts import Request


@dataclass(frozen=True, eq=False)
class Regions:
    """An answer's regions as JSON with arrays in it, and the polygons among them."""

    json: list[dict[str, Any]]
    polygons: SingleRings | None


def regions(proposal: str, prediction: Prediction, asked: Request, min_iou: float) -> Regions:
    """The prediction as regions of every control that answers; none if its mask is empty.

    Region ids begin with `proposal`. Polygons have as few points as `min_iou` with the mask allows.
    """
    mask = prediction.mask
    if not mask.any():
        return Regions([], None)
    polygons: SingleRings | None = None
    written: list[dict[str, Any]] = []
    number = 0
    for answer in asked.answers:
        if answer.control.kind == "polygon":
            polygons = polygons or mask_to_single_rings(mask, min_iou)
            percent = (100 * ring / asked.size[::-1] for ring in polygons.rings)
            values = [{"points": np.ascontiguousarray(ring), "closed": True} for ring in percent]
        else:
            values = [_whole_value(answer.control.kind, mask)]
        for value in values:
            written += _region(f"{proposal}-{number}", value, answer, prediction.score, asked)
            number += 1
    return Regions(written, polygons)


def _region(
    region: str, value: dict[str, Any], answer: Answer, score: float, asked: Request
) -> Iterator[dict[str, Any]]:
    """One result, or two with the same id if a `Labels` tag labels what a bare `Brush` draws."""
    common = {
        "id": region,
        "to_name": asked.to_name,
        "original_width": asked.size[1],
        "original_height": asked.size[0],
        "image_rotation": asked.image_rotation,
        "score": score,
    }
    if asked.item_index is not None:
        common["item_index"] = asked.item_index
    control, labelled_by = answer.control, answer.labels_control
    own = {control.type: list(answer.labels)} if control.labels_itself else {}
    yield common | {"from_name": control.name, "type": control.type, "value": value | own}
    if labelled_by:
        labels = {LABELS: list(answer.labels)}
        yield common | {"from_name": labelled_by.name, "type": LABELS, "value": value | labels}


def _whole_value(kind: str, mask: Mask) -> dict[str, Any]:
    if kind == "brush":
        return {"format": "rle", "rle": mask_to_brush_rle(mask)}
    if kind == "bitmask":
        return {"imageDataURL": mask_to_bit_mask(mask)}
    height, width = mask.shape
    x0, y0, x1, y1 = mask_box(mask) or (0.0, 0.0, 0.0, 0.0)
    return {
        "x": 100 * x0 / width,
        "y": 100 * y0 / height,
        "width": 100 * (x1 - x0) / width,
        "height": 100 * (y1 - y0) / height,
        "rotation": 0,
    }
