"""Label Studio's marks as prompts, and predictions as its regions (recorded with 1.23.2). Pure.

Coordinates are percent of the image as displayed: EXIF applied, Label Studio's own rotate tool not.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS
from clickmask.labels.geometry import rasterise
from clickmask.masks.regions import mask_box
from clickmask.masks.single_rings import SingleRings, mask_to_single_rings
from clickmask.types import Box, Mask, Point, Prediction, Prompt, Size
from clickmask_adapters.tools._json import Json, as_coordinate, as_list, as_object, as_text, text_of
from clickmask_adapters.tools.label_studio import shapes
from clickmask_adapters.tools.label_studio.label_config import LABELS, Answer, LabelConfig

REGIONS = frozenset({"brush", "bitmask", "polygon", "ellipse"})  # each is a mask to be refined
MARKS = frozenset({"keypoint", "rectangle", *REGIONS})
MAX_PIXELS = DEFAULT_LIMITS.max_pixels  # of an image on which a region is drawn
MAX_DRAWN = 8 * MAX_PIXELS  # pixels that the regions of one context may have together
EACH = "each result of the context"
MAX_LABELS = 1000  # of the mark that decides: each control that answers is asked for each


@dataclass(frozen=True, eq=False)
class Request:
    """An annotator's prompt on one image, and the controls to answer with."""

    prompt: Prompt | None  # None if every mark is negative
    size: Size  # of the image, as Label Studio displays it
    to_name: str
    answers: tuple[Answer, ...]
    image_rotation: float  # of the rotate tool, in degrees; only echoed
    item_index: int | None  # among several images of a task; None if there is one


class _Mark(NamedTuple):
    """A point, a rectangle or a region that the annotator drew."""

    kind: str  # one of MARKS, or LABELS
    shape: Json
    value: Json
    labels: list[str]
    image: tuple[str, int | None]  # to_name and item_index


def request(context: object, config: LabelConfig) -> Request:
    """Read the context of an interactive request. Raises InvalidInput or InvalidRequest.

    Label Studio sends all unanswered marks each time. The last one decides the image, the label and the
    answer; the last rectangle is the box. Regions are one mask, which later negative ones are cut out of.
    Finite points outside the image move to its edge.
    """
    marks = _marks(context)
    if not marks:
        raise InvalidInput("the context has no point, rectangle or region: point at something")
    _, last, _, _, (to_name, item_index) = marks[-1]
    here = [mark for mark in marks if mark.image == (to_name, item_index)]
    size = shapes.original_size(last)
    if size is None:
        raise InvalidRequest("the prompt does not say original_height and original_width")
    height, width = size
    regions_here = sum(mark.kind in REGIONS for mark in here)
    if regions_here * height * width > MAX_DRAWN:
        raise InvalidInput(f"the context has {regions_here} regions on an image of {height * width} pixels")
    foreground: list[Point] = []
    background: list[Point] = []
    box: Box | None = None
    mask: Mask | None = None
    unreadable: InvalidInput | None = None
    for kind, shape, value, _, _ in here:
        positive = shape.get("is_positive")
        if positive is not None and not isinstance(positive, bool):
            raise InvalidInput(f"is_positive {text_of(positive)[:40]!r} is neither true nor false")
        if kind in REGIONS:
            try:
                drawn = _region(kind, value, size)
            except InvalidInput as error:  # the points beside it may be answered
                unreadable = error
                continue
            before = np.zeros(size, np.bool_) if mask is None else mask
            mask = before & ~drawn if positive is False else before | drawn
        elif kind == "rectangle" or (kind == LABELS and "height" in value):
            box = _box(value, height, width)
        else:
            x, y = (as_coordinate(value.get(axis), axis) for axis in ("x", "y"))
            point = _clamp(x * width / 100, width), _clamp(y * height / 100, height)
            (background if positive is False else foreground).append(point)
    mask = mask if mask is not None and mask.any() else None
    pointed = foreground or box is not None or mask is not None
    if unreadable and not pointed:
        raise unreadable
    prompt = Prompt(tuple(foreground), tuple(background), box, mask) if pointed else None
    labels = next((mark.labels for mark in reversed(here) if mark.labels), marks[-1].labels)
    rotation = last.get("image_rotation")
    degrees = 0 if rotation is None else as_coordinate(rotation, "image_rotation")
    from_name = as_text(last.get("from_name"), f"the from_name of {EACH}")
    if len(labels := list(dict.fromkeys(labels))) > MAX_LABELS:
        raise InvalidRequest(f"a mark has at most {MAX_LABELS} labels, not {len(labels)}")
    answers = config.answers(to_name, from_name, labels)
    return Request(prompt, (height, width), to_name, tuple(answers), degrees, item_index)


def _marks(context: object) -> list[_Mark]:
    """The marks, in order: results that share an id are one, and those without a shape are none."""
    results = as_list(as_object(context, "params.context").get("result"), "the result of params.context")
    groups: dict[object, list[Json]] = {}
    for number, each in enumerate(results):
        result = as_object(each, EACH)
        as_text(result.get("type"), f"the type of {EACH}")
        identity = result.get("id")
        groups.setdefault(identity if isinstance(identity, str) else number, []).append(result)
    marks: list[_Mark] = []
    for group in groups.values():
        drawn = [result for result in group if result["type"] != LABELS] or group
        marked = ((_kind(each), each) for each in drawn)
        kind, shape = next((each for each in marked if each[0] in (*MARKS, LABELS)), ("", None))
        if shape is None:
            continue
        index = shape.get("item_index")
        if index is not None and (type(index) is not int or index < 0):
            raise InvalidRequest(f"item_index {text_of(index)[:40]!r} is not a whole number from 0 on")
        value = as_object(shape.get("value"), f"the value of {EACH}")
        image = as_text(shape.get("to_name"), f"the to_name of {EACH}"), index
        written = ((each.get("value"), kind) for each in group for kind in (each["type"], LABELS))
        labels = [label for each in written for label in shapes.labels_in(*each)]
        marks.append(_Mark(kind, shape, value, labels, image))
    return marks


def _kind(result: Json) -> str:
    """The type of a result without what says that it labels, and LABELS of a label alone."""
    return result["type"].removesuffix(LABELS) or LABELS


def _region(kind: str, value: Json, size: Size) -> Mask:
    """The pixels of a region that is drawn on an image of `size`. Raises InvalidInput."""
    if math.prod(size) > MAX_PIXELS:
        raise InvalidInput(f"a region on an image of {math.prod(size)} pixels, more than {MAX_PIXELS}")
    try:
        geometry = shapes.value_to_geometry(kind, value, size)
        return rasterise(geometry, size) if geometry else np.zeros(size, np.bool_)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidInput(f"the {kind} of the context cannot be read") from error


def _box(value: Json, height: int, width: int) -> Box:
    """The upright box around a rectangle, which turns clockwise about its first corner."""
    x, across = (as_coordinate(value.get(name), name) * width / 100 for name in ("x", "width"))
    y, down = (as_coordinate(value.get(name), name) * height / 100 for name in ("y", "height"))
    angle = math.radians(as_coordinate(value.get("rotation") or 0, "rotation"))
    cos, sin = math.cos(angle), math.sin(angle)
    xs = [x, x + across * cos, x - down * sin, x + across * cos - down * sin]
    ys = [y, y + across * sin, y + down * cos, y + across * sin + down * cos]
    return (_clamp(min(xs), width), _clamp(min(ys), height), _clamp(max(xs), width), _clamp(max(ys), height))


def _clamp(value: float, length: int) -> float:
    return min(max(value, 0.0), float(length))


def regions(
    proposal: str, prediction: Prediction, asked: Request, min_iou: float
) -> tuple[list[dict[str, Any]], SingleRings | None]:
    """The prediction's regions as JSON with arrays, and the polygons among them; none if its mask is empty.

    Each of `asked.answers` draws it once. Region ids begin with `proposal`. Polygons have as few points as
    `min_iou` with the mask allows.
    """
    mask, (height, width) = prediction.mask, asked.size
    written: list[dict[str, Any]] = []
    polygons: SingleRings | None = None
    if not mask.any():
        return written, polygons
    image = {"original_width": width, "original_height": height, "image_rotation": asked.image_rotation}
    common = {"to_name": asked.to_name, **image, "score": prediction.score}
    if asked.item_index is not None:
        common["item_index"] = asked.item_index
    numbers = itertools.count()
    for answer in asked.answers:
        kind = answer.controls[0].kind
        if kind == "polygon":
            polygons = polygons or mask_to_single_rings(mask, min_iou)
            percent = (100 * ring / (width, height) for ring in polygons.rings)
            values = [{"points": np.ascontiguousarray(ring), "closed": True} for ring in percent]
        elif kind == "brush":
            values = [{"format": "rle", "rle": shapes.mask_to_brush_rle(mask)}]
        elif kind == "bitmask":
            values = [{"imageDataURL": shapes.mask_to_bit_mask(mask)}]
        else:
            x0, y0, x1, y1 = mask_box(mask) or (0.0, 0.0, 0.0, 0.0)
            sides = {"width": 100 * (x1 - x0) / width, "height": 100 * (y1 - y0) / height}
            values = [{"x": 100 * x0 / width, "y": 100 * y0 / height, **sides, "rotation": 0}]
        for value in values:
            region = {"id": f"{proposal}-{next(numbers)}", **common}
            # A `Labels` tag that labels what a bare `Brush` draws gives a second result with the same id.
            for control in answer.controls:
                labels = {control.type: list(answer.labels)} if control.labels_itself else {}
                tag = {"from_name": control.name, "type": control.type}
                written.append({**region, **tag, "value": value | labels})
    return written, polygons
