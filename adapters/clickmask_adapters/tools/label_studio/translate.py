"""Between Label Studio's JSON (recorded with 1.23.2) and the vocabulary of the core. Pure.

Label Studio counts in percent of the image as it is displayed: EXIF applied, its own rotate tool
not. Only this file knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import numpy as np

from clickmask.errors import InvalidPrompt, InvalidRequest
from clickmask.masks import mask_box
from clickmask.types import Box, Mask, Point, Prediction, Prompt, Ring, Size
from clickmask_adapters.tools.label_studio.bit_mask import mask_to_bit_mask
from clickmask_adapters.tools.label_studio.brush_rle import mask_to_brush_rle
from clickmask_adapters.tools.label_studio.label_config import LABELS, Answer, LabelConfig
from clickmask_adapters.tools.label_studio.single_rings import SingleRings, mask_to_single_rings

Json = Mapping[str, Any]

MARKS = frozenset({"keypoint", "keypointlabels", "rectangle", "rectanglelabels", LABELS})
LONGEST_SIDE = 10**6  # pixels; beyond any image that is decoded


@dataclass(frozen=True, eq=False)
class Request:
    """What an annotator pointed at on one image, and what to answer with."""

    prompt: Prompt | None  # None: only at where the object is not
    size: Size  # of the image, as Label Studio displays it
    to_name: str
    answers: tuple[Answer, ...]
    image_rotation: float  # of the rotate tool, in degrees: only echoed
    item_index: int | None  # of several images in a task; None where there is one


@dataclass(frozen=True, eq=False)
class Regions:
    """The answer's regions as JSON with arrays in it, and the polygons among them."""

    json: list[dict[str, Any]]
    polygons: SingleRings | None


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


def regions(proposal: str, prediction: Prediction, asked: Request, min_iou: float) -> Regions:
    """The prediction as regions of every control that answers; none if its mask is empty.

    The ids of the regions begin with `proposal`. `min_iou` bounds the points of polygons.
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
            values = [_polygon_value(ring, asked.size) for ring in polygons.rings]
        else:
            values = [_whole_value(answer.control.kind, mask)]
        for value in values:
            written += _region(f"{proposal}-{number}", value, answer, prediction.score, asked)
            number += 1
    return Regions(written, polygons)


def _region(
    region: str, value: dict[str, Any], answer: Answer, score: float, asked: Request
) -> Iterator[dict[str, Any]]:
    """One result, or two of one id where a `Labels` tag labels what a bare `Brush` draws."""
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


def _polygon_value(ring: Ring, size: Size) -> dict[str, Any]:
    height, width = size
    return {"points": np.ascontiguousarray(100 * ring / (width, height)), "closed": True}


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
    if not _is_integer(value) or not 0 < value <= LONGEST_SIDE:
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
