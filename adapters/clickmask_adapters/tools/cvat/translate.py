"""Between the JSON of CVAT's functions (read and measured with 2.73.0) and the core's vocabulary. Pure.

CVAT's points are those of the core: continuous pixels of the upright image, from its corner. Its
boxes of masks are not: they are whole and inclusive; see `mask_points`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import orjson

from clickmask.errors import InvalidPrompt, InvalidRequest
from clickmask.masks import mask_area, ring_area
from clickmask.simplify import simplify_mask
from clickmask.types import Box, Mask, Point, Prediction, Prompt, Size
from clickmask_adapters.tools.cvat.dense import mask_to_dense_reply, mask_to_flat
from clickmask_adapters.tools.cvat.mask_points import InclusiveBox, mask_to_crop, mask_to_points

Json = Mapping[str, Any]

CONFIDENCE = 0  # the attribute that CVAT's slider filters by
SHAPES_SINCE = (2, 60)  # before, CVAT drew nothing but a dense mask
MOST_BOXES = 100
MOST_POINTS = 10_000  # before they are dealt out to the boxes; CLICKMASK_MAX_POINTS is for each prompt
LEAST_PART = 0.01  # of a detected mask's area: what is smaller is not worth a shape of its own


@dataclass(frozen=True)
class Pointed:
    """What an annotator pointed at, where CVAT said it: it may lie outside of the image."""

    foreground: tuple[Point, ...]
    background: tuple[Point, ...]
    boxes: tuple[tuple[Point, Point], ...]  # two opposite corners each

    def prompts(self, size: Size) -> list[Prompt]:
        """One for each box, in their order, or one without a box; none if nothing positive is left.

        What lies outside of the image of `size` is moved to its edge, and a box without area is none.
        Of several boxes, each takes the points that lie nearer to it than to the others.
        """
        foreground, background = (
            tuple(_clamped(point, size) for point in points) for points in (self.foreground, self.background)
        )
        boxes = [box for corners in self.boxes if (box := _box(corners, size))]
        if not boxes:
            return [Prompt(foreground, background)] if foreground else []
        nearest = [_nearest(points, boxes) for points in (foreground, background)]
        return [
            Prompt(_only(foreground, nearest[0], index), _only(background, nearest[1], index), box)
            for index, box in enumerate(boxes)
        ]


def understands_shapes(user_agent: str) -> bool:
    """Whether the caller draws `shapes`. CVAT says which it is since 2.4: whoever does not, does not."""
    version = re.match(r"CVAT/(\d{1,4})\.(\d{1,4})", user_agent)
    return version is not None and (int(version[1]), int(version[2])) >= SHAPES_SINCE


def pointed(asked: Json) -> Pointed:
    """Raises InvalidRequest for what is no list of points, InvalidPrompt for what is no number."""
    corners = _points(asked, "obj_bbox", 2 * MOST_BOXES)
    if len(corners) % 2:
        raise InvalidRequest(f"obj_bbox has {len(corners)} points: each box has two, its corners")
    boxes = tuple(zip(corners[::2], corners[1::2], strict=True))
    foreground, background = (_points(asked, name, MOST_POINTS) for name in ("pos_points", "neg_points"))
    if len(foreground) + len(background) > MOST_POINTS:
        raise InvalidPrompt(f"a request has at most {MOST_POINTS} points")
    return Pointed(foreground, background, boxes)


def threshold(asked: Json) -> float:
    """The least score that is wanted; CVAT leaves it out where all are."""
    value = asked.get("threshold")
    return 0.0 if value is None else _number(value, "threshold")


def shapes_reply(found: Sequence[Prediction]) -> bytes:
    """One shape for each mask that is not empty, with the confidence that CVAT's slider filters by."""
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
    """All masks in one, which is never cropped: CVAT since 2.60 draws it at the image's corner."""
    mask = np.zeros(size, np.bool_)
    for prediction in found:
        mask |= prediction.mask
    return mask_to_dense_reply(mask)


def detector_reply(found: Sequence[tuple[str, Prediction]], min_iou: float) -> bytes:
    """Each connected part as a mask and as a polygon: CVAT takes the polygon where the task wants one.

    The parts of one object share a group. What is empty, or has no outline, is left out: CVAT stores an
    empty mask unseen, and refuses the whole frame for an outline of two points. `min_iou` bounds the
    points of the outlines.
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
    """The connected parts worth a shape, largest first, and at least one: cropped, with their boxes."""
    area = mask_area(mask)
    if not area:
        return
    crop, (left, top, _, _) = mask_to_crop(mask)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop.view(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest_first = np.argsort(-areas, kind="stable")
    kept = [part for part in largest_first if areas[part] >= LEAST_PART * area] or largest_first[:1]
    for part in kept:
        x, y, width, height = (int(value) for value in stats[1 + part, :4])
        box = (left + x, top + y, left + x + width - 1, top + y + height - 1)
        yield labels[y : y + height, x : x + width] == 1 + part, box


def _outline(part: Mask, box: InclusiveBox, min_iou: float) -> list[float]:
    """x, y, x, y, ... of the outer ring of a connected mask: CVAT's polygons have no holes."""
    rings = simplify_mask(part, min_iou).rings
    if not rings:
        return []
    outer = max(rings, key=ring_area)
    return (outer + box[:2]).reshape(-1).tolist()


def _confidence(prediction: Prediction) -> str:
    return f"{prediction.score:.4f}"


def _points(asked: Json, name: str, most: int) -> tuple[Point, ...]:
    given = asked.get(name)
    if given is None:
        return ()
    if not isinstance(given, list):
        raise InvalidRequest(f"{name} is a list of points")
    if len(cast("list[object]", given)) > most:  # before they are read: a million take seconds
        raise InvalidPrompt(f"{name} has at most {most} points")
    found: list[Point] = []
    for point in cast("list[object]", given):
        if not isinstance(point, list) or len(pair := cast("list[object]", point)) != 2:
            raise InvalidRequest(f"each point of {name} is [x, y]")
        found.append((_number(pair[0], name), _number(pair[1], name)))
    return tuple(found)


def _number(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise InvalidPrompt(f"{name}: {str(value)[:40]!r} is no finite number")


def _clamped(point: Point, size: Size) -> Point:
    height, width = size
    return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))


def _box(corners: tuple[Point, Point], size: Size) -> Box | None:
    (ax, ay), (bx, by) = (_clamped(corner, size) for corner in corners)
    box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _nearest(points: Sequence[Point], boxes: Sequence[Box]) -> list[int]:
    """Of each point the index of its nearest box, the first of those equally near."""
    xy = np.reshape(points, (-1, 1, 2))
    corners = np.reshape(boxes, (1, -1, 4))
    apart = np.maximum(corners[..., :2] - xy, xy - corners[..., 2:]).clip(min=0)  # (points, boxes, 2)
    return np.hypot(apart[..., 0], apart[..., 1]).argmin(axis=1).tolist()


def _only(points: Sequence[Point], owners: Sequence[int], owner: int) -> tuple[Point, ...]:
    return tuple(point for point, index in zip(points, owners, strict=True) if index == owner)
