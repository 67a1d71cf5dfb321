"""Label Studio's prediction contexts as prompts. Pure: no I/O, no state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from clickmask.errors import InvalidPrompt, InvalidRequest
from clickmask.types import Box, Point, Prompt, Size
from clickmask_adapters.tools.label_studio.label_config import LABELS, Answer, LabelConfig

Json = Mapping[str, Any]
MARKS = frozenset({"keypoint", "keypointlabels", "rectangle", "rectanglelabels", LABELS})
MAX_SIDE_PX = 10**6  # pixels; beyond any image that is decoded


@dataclass(frozen=True, eq=False)
class Request:
    """What an annotator pointed at on one image, and what to answer with."""

    prompt: Prompt | None  # None: only at where the object is not
    size: Size  # of the image, as Label Studio displays it
    to_name: str
    answers: tuple[Answer, ...]
    image_rotation: float  # of the rotate tool, in degrees: only echoed
    item_index: int | None  # of several images in a task; None where there is one


@dataclass(frozen=True)
class _Mark:
    """A point or a rectangle that the annotator drew; several results of one id are one mark."""

    result: Json
    labels: tuple[str, ...]
    is_rectangle: bool

    @property
    def target(self) -> tuple[str, int | None]:
        index = self.result.get("item_index")
        if index is not None and (not _is_integer(index) or index < 0):
            raise InvalidRequest(f"item_index {str(index)[:40]!r} is no whole number from 0 on")
        return _text(self.result, "to_name"), index


def request(context: object, config: LabelConfig) -> Request:
    """Read the context of an interactive request.

    All marks that wait for an answer are sent again each time; the last one decides which image,
    label and answer are meant. Of several rectangles the last is the box. Finite points outside
    of the image are moved to its edge. Raises InvalidPrompt or InvalidRequest.
    """
    marks = _marks(context)
    if not marks:
        raise InvalidPrompt("the context has no point and no rectangle: point at something")
    last = marks[-1].result
    to_name, item_index = marks[-1].target
    here = [mark for mark in marks if mark.target == (to_name, item_index)]
    size = _pixels(last, "original_height"), _pixels(last, "original_width")
    labels = next((mark.labels for mark in reversed(here) if mark.labels), ())
    rotation = last.get("image_rotation")
    return Request(
        prompt=_prompt(here, size),
        size=size,
        to_name=to_name,
        answers=tuple(config.answers(to_name, _text(last, "from_name"), labels)),
        image_rotation=0 if rotation is None else _finite(rotation, "image_rotation"),
        item_index=item_index,
    )


def _marks(context: object) -> list[_Mark]:
    """Points and rectangles in their order, each once; other results are no marks."""
    if not _is_object(context) or not isinstance(context.get("result"), list):
        raise InvalidRequest("params.context is an object with a list `result`")
    groups: dict[object, list[Json]] = {}
    for number, result in enumerate(cast("list[object]", context["result"])):
        if not _is_object(result) or not isinstance(result.get("type"), str):
            raise InvalidRequest("each result of the context is an object with a type")
        identity = result.get("id")
        groups.setdefault(identity if isinstance(identity, str) else number, []).append(result)
    return [mark for results in groups.values() if (mark := _mark(results))]


def _mark(results: Sequence[Json]) -> _Mark | None:
    """`results` share an id: the shape, and what labels it. None if it is neither of the two."""
    shapes = [result for result in results if result["type"] != LABELS] or list(results)
    result = next((each for each in shapes if each["type"] in MARKS), None)
    if result is None:
        return None
    value = result.get("value")
    if not _is_object(value):
        raise InvalidRequest("each result of the context has an object `value`")
    is_rectangle = result["type"].startswith("rectangle") or (result["type"] == LABELS and "height" in value)
    labels = [label for each in results for label in _labels(each)]
    return _Mark(result, tuple(dict.fromkeys(labels)), is_rectangle)


def _labels(result: Json) -> Iterator[str]:
    value = result.get("value")
    for name in (result["type"], LABELS):
        found = value.get(name) if _is_object(value) else None
        if isinstance(found, list):
            yield from (label for label in cast("list[object]", found) if isinstance(label, str))


def _prompt(marks: Sequence[_Mark], size: Size) -> Prompt | None:
    """None where all marks say only where the object is not."""
    foreground: list[Point] = []
    background: list[Point] = []
    box: Box | None = None
    for mark in marks:
        positive = mark.result.get("is_positive")
        if positive is not None and not isinstance(positive, bool):
            raise InvalidPrompt(f"is_positive {str(positive)[:40]!r} is neither true nor false")
        if mark.is_rectangle:
            box = _box(mark.result["value"], size)
        else:
            (background if positive is False else foreground).append(_point(mark.result["value"], size))
    if not foreground and box is None:
        return None
    return Prompt(tuple(foreground), tuple(background), box)


def _point(value: Json, size: Size) -> Point:
    height, width = size
    x, y = _finite(value.get("x"), "x"), _finite(value.get("y"), "y")
    return _clamp(x * width / 100, width), _clamp(y * height / 100, height)


def _box(value: Json, size: Size) -> Box:
    """The upright box round a rectangle, which turns clockwise about its first corner."""
    height, width = size
    x, y = _finite(value.get("x"), "x") * width / 100, _finite(value.get("y"), "y") * height / 100
    across = _finite(value.get("width"), "width") * width / 100
    down = _finite(value.get("height"), "height") * height / 100
    angle = math.radians(_finite(value.get("rotation") or 0, "rotation"))
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


def _finite(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:  # not NaN either
        return value
    raise InvalidPrompt(f"{name} {str(value)[:40]!r} is no finite number")


def _pixels(result: Json, name: str) -> int:
    value = result.get(name)
    if not _is_integer(value) or not 0 < value <= MAX_SIDE_PX:
        raise InvalidRequest(f"{name} {str(value)[:40]!r} is no number of pixels")
    return value


def _text(result: Json, name: str) -> str:
    value = result.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"each result of the context names its {name}")
    return value


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
