"""CVAT's requests as prompts and images. Pure: no I/O, no state."""

import math
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.types import Point, Prompt, Size
from clickmask_adapters.tools._json import Json, as_coordinate, as_list, parse_object

SHAPES_SINCE = (2, 60)  # older versions of CVAT draw only dense masks
MAX_BOXES = 100
MAX_POINTS = 10_000  # of all boxes together; CLICKMASK_MAX_POINTS is for each prompt
IMAGE = re.compile(rb'"image"[ \t\r\n]*:[ \t\r\n]*"')


@dataclass(frozen=True)
class Pointed:
    """An annotator's points and boxes, as CVAT sends them; they may lie outside the image."""

    foreground: tuple[Point, ...]
    background: tuple[Point, ...]
    boxes: tuple[tuple[Point, Point], ...]  # two opposite corners each

    def prompts(self, size: Size) -> list[Prompt]:
        """One prompt per box, in order, or one without a box; none if nothing positive is left.

        Points move into the image of `size` and belong to the nearest box, the first of those equally near;
        boxes without area are left out.
        """
        height, width = size
        foreground, background, corners = (
            np.asarray(given, np.float64).reshape(-1, 2).clip(0, (width, height))
            for given in (self.foreground, self.background, self.boxes)
        )
        corners = corners.reshape(-1, 2, 2)  # (boxes, corners, 2)
        low, high = corners.min(axis=1), corners.max(axis=1)
        boxes = np.hstack([low, high])[(low < high).all(axis=1)]
        if not len(boxes):
            return [Prompt(_pairs(foreground), _pairs(background))] if len(foreground) else []

        def nearest(points: NDArray[np.float64]) -> NDArray[np.intp]:
            xy = points[:, None]
            apart = np.maximum(boxes[:, :2] - xy, xy - boxes[:, 2:]).clip(min=0)  # (points, boxes, 2)
            return np.hypot(apart[..., 0], apart[..., 1]).argmin(axis=1)

        of_foreground, of_background = nearest(foreground), nearest(background)
        return [
            Prompt(
                _pairs(foreground[of_foreground == index]),
                _pairs(background[of_background == index]),
                (x0, y0, x1, y1),
            )
            for index, (x0, y0, x1, y1) in enumerate(boxes.tolist())
        ]


def split_image(body: bytes) -> tuple[Json, memoryview]:
    """The request, perhaps without its "image", and that image's base64. Raises InvalidRequest. CVAT sends
    the original image with every click: orjson takes 13 ms for 6 MiB (8 of text), a search 0.3 ms."""
    begin = IMAGE.search(body)
    end = body.find(b'"', begin.end()) if begin else -1
    if begin and end > begin.end() and body.find(b"\\", begin.end(), end) < 0:
        asked = parse_object(body[: begin.end()] + body[end:], "the request")
        if asked.get("image") == "":  # else this is a nested "image", not the request's own
            return asked, memoryview(body)[begin.end() : end]
    asked = parse_object(body, "the request")
    text = asked.get("image")
    if not isinstance(text, str) or not text:
        raise InvalidRequest("the request has no image")
    return asked, memoryview(text.encode())


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


def _points(asked: Json, name: str, most: int) -> tuple[Point, ...]:
    given = asked.get(name)
    pairs = [] if given is None else as_list(given, name)
    if len(pairs) > most:  # checked before they are read: a million take seconds
        raise InvalidInput(f"{name} has at most {most} points")
    found: list[Point] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(xy := cast("list[object]", pair)) != 2:
            raise InvalidRequest(f"each point of {name} is [x, y]")
        found.append((as_coordinate(xy[0], name, math.inf), as_coordinate(xy[1], name, math.inf)))
    return tuple(found)


def _pairs(points: NDArray[np.float64]) -> tuple[Point, ...]:
    return tuple((x, y) for x, y in points.tolist())
