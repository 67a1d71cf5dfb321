"""CVAT's requests as prompts. Pure: no I/O, no state."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.types import Box, Point, Prompt, Size
from clickmask_adapters.tools._json import Json, as_coordinate, as_list

SHAPES_SINCE = (2, 60)  # older versions of CVAT draw only dense masks
MAX_BOXES = 100
MAX_POINTS = 10_000  # of all boxes together; CLICKMASK_MAX_POINTS is for each prompt


@dataclass(frozen=True)
class Pointed:
    """An annotator's points and boxes, as CVAT sends them; they may lie outside the image."""

    foreground: tuple[Point, ...]
    background: tuple[Point, ...]
    boxes: tuple[tuple[Point, Point], ...]  # two opposite corners each

    def prompts(self, size: Size) -> list[Prompt]:
        """One prompt per box, in order, or one without a box; none if nothing positive is left.

        Points move into the image of `size` and belong to the nearest box; boxes without area are left out.
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
    """Whether the caller draws `shapes`. CVAT names its version since 2.4; a caller without one is older."""
    version = re.match(r"CVAT/(\d{1,4})\.(\d{1,4})", user_agent)
    return version is not None and (int(version[1]), int(version[2])) >= SHAPES_SINCE


def pointed(asked: Json) -> Pointed:
    """The points and boxes of a request. Raises InvalidRequest, or InvalidInput for wrong numbers."""
    corners = _points(asked, "obj_bbox", 2 * MAX_BOXES)
    if len(corners) % 2:
        raise InvalidRequest(f"obj_bbox has {len(corners)} points: each box has two, its corners")
    boxes = tuple(zip(corners[::2], corners[1::2], strict=True))
    foreground, background = (_points(asked, name, MAX_POINTS) for name in ("pos_points", "neg_points"))
    if len(foreground) + len(background) > MAX_POINTS:
        raise InvalidInput(f"a request has at most {MAX_POINTS} points")
    return Pointed(foreground, background, boxes)


def threshold(asked: Json) -> float:
    """The lowest score that is wanted; CVAT leaves it out if all are."""
    value = asked.get("threshold")
    return 0.0 if value is None else as_coordinate(value, "threshold", math.inf)


def _points(asked: Json, name: str, most: int) -> tuple[Point, ...]:
    given = asked.get(name)
    if given is None:
        return ()
    pairs = as_list(given, name)
    if len(pairs) > most:  # checked before they are read: a million take seconds
        raise InvalidInput(f"{name} has at most {most} points")
    found: list[Point] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(xy := cast("list[object]", pair)) != 2:
            raise InvalidRequest(f"each point of {name} is [x, y]")
        found.append((as_coordinate(xy[0], name, math.inf), as_coordinate(xy[1], name, math.inf)))
    return tuple(found)


def _clamped(point: Point, size: Size) -> Point:
    height, width = size
    return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))


def _box(corners: tuple[Point, Point], size: Size) -> Box | None:
    (ax, ay), (bx, by) = (_clamped(corner, size) for corner in corners)
    box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _nearest(points: Sequence[Point], boxes: Sequence[Box]) -> list[int]:
    """The index of each point's nearest box, the first of those equally near."""
    xy = np.reshape(points, (-1, 1, 2))
    corners = np.reshape(boxes, (1, -1, 4))
    apart = np.maximum(corners[..., :2] - xy, xy - corners[..., 2:]).clip(min=0)  # (points, boxes, 2)
    return np.hypot(apart[..., 0], apart[..., 1]).argmin(axis=1).tolist()


def _only(points: Sequence[Point], owners: Sequence[int], owner: int) -> tuple[Point, ...]:
    return tuple(point for point, index in zip(points, owners, strict=True) if index == owner)
