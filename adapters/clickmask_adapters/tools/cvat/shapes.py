"""Objects that a model found, as the shapes that CVAT's API stores (cvat-sdk 2.80.0). Pure.

The points are in CVAT's coordinates, which are the core's; those of masks are in `mask_points`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clickmask.masks import group_rings, mask_box
from clickmask.simplify import simplify_mask
from clickmask.types import Mask, Prediction
from clickmask_adapters.tools.cvat.mask_points import mask_to_points

MASKS: Final = frozenset({"mask", "any", "unknown"})  # types of labels that take a mask; `unknown` is old
DRAWN: Final = MASKS | {"polygon", "rectangle"}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Drawable:
    """A label of CVAT's that a model's objects can be drawn with."""

    id: int
    type: str


def drawable(labels: Sequence[Json]) -> dict[str, Drawable]:
    """Those of a job's labels that mark areas as the models find them, by name."""
    typed = ((label, str(label.get("type") or "any")) for label in labels)
    return {str(label["name"]): Drawable(label["id"], kind) for label, kind in typed if kind in DRAWN}


def shapes(
    found: Sequence[tuple[str, Prediction]],
    frame: int,
    labels: Mapping[str, Drawable],
    first_group: int,
    min_iou: float,
) -> list[dict[str, Any]]:
    """What CVAT stores of the objects on one frame, which all have one of `labels`.

    The parts of an object, as polygons, share a group: `first_group` plus the object's place. `min_iou`
    bounds the points of polygons.
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
