"""Label Studio's prediction contexts as prompts. Pure: no I/O, no state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.types import Box, Point, Prompt, Size
from clickmask_adapters.tools._json import (
    Json,
    as_coordinate,
    as_list,
    as_object,
    as_side,
    as_text,
    is_integer,
)
from clickmask_adapters.tools.label_studio.label_config import LABELS, Answer, LabelConfig

MARKS = frozenset({"keypoint", "keypointlabels", "rectangle", "rectanglelabels", LABELS})


@dataclass(frozen=True, eq=False)
class Request:
    """An annotator's prompt on one image, and the controls to answer with."""

    prompt: Prompt | None  # None if every mark is negative
    size: Size  # of the image, as Label Studio displays it
    to_name: str
    answers: tuple[Answer, ...]
    image_rotation: float  # of the rotate tool, in degrees; only echoed
    item_index: int | None  # among several images of a task; None if there is one


@dataclass(frozen=True)
class _Mark:
    """A point or a rectangle that the annotator drew; results that share an id are one mark."""

    result: Json
    labels: tuple[str, ...]
    is_rectangle: bool

    @property
    def target(self) -> tuple[str, int | None]:
        index = self.result.get("item_index")
        if index is not None and (not is_integer(index) or index < 0):
            raise InvalidRequest(f"item_index {str(index)[:40]!r} is not a whole number from 0 on")
        return as_text(self.result.get("to_name"), "the to_name of each result of the context"), index


def request(context: object, config: LabelConfig) -> Request:
    """Read the context of an interactive request. Raises InvalidInput or InvalidRequest.

    Label Studio sends all unanswered marks each time. The last one decides the image, the label and the
    answer; the last rectangle is the box. Finite points outside the image move to its edge.
    """
    results = as_list(as_object(context, "params.context").get("result"), "the result of params.context")
    groups: dict[object, list[Json]] = {}
    for number, each in enumerate(results):
        result = as_object(each, "each result of the context")
        as_text(result.get("type"), "the type of each result of the context")
        identity = result.get("id")
        groups.setdefault(identity if isinstance(identity, str) else number, []).append(result)
    marks = [mark for group in groups.values() if (mark := _mark(group))]
    if not marks:
        raise InvalidInput("the context has no point and no rectangle: point at something")
    last = marks[-1].result
    to_name, item_index = marks[-1].target
    here = [mark for mark in marks if mark.target == (to_name, item_index)]
    size = (
        as_side(last.get("original_height"), "original_height"),
        as_side(last.get("original_width"), "original_width"),
    )
    labels = next((mark.labels for mark in reversed(here) if mark.labels), ())
    rotation = last.get("image_rotation")
    from_name = as_text(last.get("from_name"), "the from_name of each result of the context")
    return Request(
        prompt=_prompt(here, size),
        size=size,
        to_name=to_name,
        answers=tuple(config.answers(to_name, from_name, labels)),
        image_rotation=0 if rotation is None else as_coordinate(rotation, "image_rotation"),
        item_index=item_index,
    )


def _mark(results: Sequence[Json]) -> _Mark | None:
    """The mark of `results` that share an id: the shape, and its labels. None if there is no shape."""
    shapes = [result for result in results if result["type"] != LABELS] or list(results)
    result = next((each for each in shapes if each["type"] in MARKS), None)
    if result is None:
        return None
    value = as_object(result.get("value"), "the value of each result of the context")
    is_rectangle = result["type"].startswith("rectangle") or (result["type"] == LABELS and "height" in value)
    labels = [label for each in results for label in _labels(each)]
    return _Mark(result, tuple(dict.fromkeys(labels)), is_rectangle)


def _labels(result: Json) -> Iterator[str]:
    value = result.get("value")
    for name in (result["type"], LABELS):
        found = value.get(name) if isinstance(value, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(found, list):
            yield from (label for label in cast("list[object]", found) if isinstance(label, str))


def _prompt(marks: Sequence[_Mark], size: Size) -> Prompt | None:
    """The prompt of `marks` on one image; None if all of them are negative."""
    foreground: list[Point] = []
    background: list[Point] = []
    box: Box | None = None
    for mark in marks:
        positive = mark.result.get("is_positive")
        if positive is not None and not isinstance(positive, bool):
            raise InvalidInput(f"is_positive {str(positive)[:40]!r} is neither true nor false")
        if mark.is_rectangle:
            box = _box(mark.result["value"], size)
        else:
            (background if positive is False else foreground).append(_point(mark.result["value"], size))
    if not foreground and box is None:
        return None
    return Prompt(tuple(foreground), tuple(background), box)


def _point(value: Json, size: Size) -> Point:
    height, width = size
    x, y = as_coordinate(value.get("x"), "x"), as_coordinate(value.get("y"), "y")
    return _clamp(x * width / 100, width), _clamp(y * height / 100, height)


def _box(value: Json, size: Size) -> Box:
    """The upright box around a rectangle, which turns clockwise about its first corner."""
    height, width = size
    x, across = (as_coordinate(value.get(name), name) * width / 100 for name in ("x", "width"))
    y, down = (as_coordinate(value.get(name), name) * height / 100 for name in ("y", "height"))
    angle = math.radians(as_coordinate(value.get("rotation") or 0, "rotation"))
    cos, sin = math.cos(angle), math.sin(angle)
    xs = [x, x + across * cos, x - down * sin, x + across * cos - down * sin]
    ys = [y, y + across * sin, y + down * cos, y + across * sin + down * cos]
    return (
        _clamp(min(xs), width),
        _clamp(min(ys), height),
        _clamp(max(xs), width),
        _clamp(max(ys), height),
    )


def _clamp(value: float, length: int) -> float:
    return min(max(value, 0.0), float(length))
