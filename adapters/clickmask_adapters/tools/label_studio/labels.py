"""What Label Studio's annotations say, in the domain's words. Pure; as 1.23.2 sends and stores them.

An annotation speaks of the image as it is displayed, upright, in percent of its size; the rotate tool
of the UI does not turn its coordinates.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from clickmask.errors import InvalidRequest
from clickmask.labels.geometry import Brush, Ellipse, Geometry, Polygon, Rectangle
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Change,
    ProjectDeleted,
    ProjectDescribed,
    Region,
    Submission,
    TaskDeleted,
    Unreadable,
)
from clickmask.masks.rle import mask_to_rle
from clickmask.types import Point, Size
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio.bit_mask import bit_mask_to_mask
from clickmask_adapters.tools.label_studio.brush_rle import brush_rle_to_mask
from clickmask_adapters.tools.label_studio.label_config import LABELS, LabelConfig

log = logging.getLogger(__name__)

TOOL = "label_studio"
AREAS = ("brush", "bitmask", "polygon", "rectangle", "ellipse")  # what has pixels; points and texts have none
PROPOSED_REGION = re.compile(r"([A-Za-z0-9_-]{16})-\d+")  # a region that we proposed: `translate.regions`
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")  # what Label Studio puts before an upload's name
MAX_SIDE_PX = 10**6  # pixels; beyond any image that is decoded
_DECIMALS = 9  # of a pixel: what percents and back leave behind is no more than this

Json = Mapping[str, Any]


def changes(event: Json) -> Iterator[Change]:
    """What an event of the webhook means: nothing, for kinds that say nothing about labels.

    Lazy: of many annotations each is read when it is asked for, and one that cannot be read is
    Unreadable. Raises InvalidRequest where the event itself lacks what it must have.
    """
    match event.get("action"):
        case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED":
            yield from _submitted(event, [(_part(event, "annotation"), _part(event, "task"))])
        case "ANNOTATIONS_CREATED":  # lists under the singular names
            tasks = {str(task.get("id")): task for task in _parts(event, "task")}
            made = _parts(event, "annotation")
            yield from _submitted(event, [(each, tasks.get(str(each.get("task")), {})) for each in made])
        case "ANNOTATIONS_DELETED":
            yield from (AnnotationDeleted(TOOL, _id(each)) for each in _parts(event, "annotations"))
        case "TASKS_DELETED":
            yield from (TaskDeleted(TOOL, _id(each)) for each in _parts(event, "tasks"))
        case "PROJECT_DELETED":  # only webhooks of the whole organization are told
            yield ProjectDeleted(TOOL, _id(_part(event, "project")))
        case "PROJECT_UPDATED":
            yield described(_part(event, "project"))
        case _:
            return


def described(project: Json) -> ProjectDescribed:
    """Title, and the labels of all controls that mark areas, in the order of the label config."""
    drawing = [
        control
        for control in label_config.parse(_xml(project)).controls
        if control.kind in AREAS or control.type == LABELS
    ]
    written = dict.fromkeys(label.written for control in drawing for label in control.labels)
    return ProjectDescribed(TOOL, _id(project), str(project.get("title") or ""), tuple(written))


def submissions(annotation: Json, task: Json, config: LabelConfig) -> list[Submission]:
    """One Submission for each image that the task shows, also where nothing was marked on it.

    What marks no area (points, texts, relations) and areas without a label are left out, and
    logged. Raises InvalidRequest where a region is damaged: a part of an annotation is no annotation.
    """
    number, data = _id(task), _part(task, "data")
    images = [(name, index, uri) for name in config.images for index, uri in _uris(config, name, data)]
    if not images:
        raise InvalidRequest(f"task {number} shows no image")
    drawn = list(_drawn(annotation, config))
    places = {(name, index) for name, index, _ in images}
    astray = [place for place, _, _ in drawn if place not in places]
    if astray:
        raise InvalidRequest(
            f"task {number}: a region is on an image that the task does not show, {astray[0]}"
        )
    return [
        Submission(
            tool=TOOL,
            project=_id({"id": task.get("project") or annotation.get("project")}),
            task=number,
            annotation=_id(annotation),
            address=uri,
            name=_basename(uri, number),
            size=_size([size for place, size, _ in drawn if place == (name, index)]),
            regions=tuple(region for place, _, region in drawn if place == (name, index)),
            updated_at=_timestamp(annotation.get("updated_at")),
            author=_author(annotation.get("completed_by")),
            item=item,
            items=len(images),
            ground_truth=annotation.get("ground_truth") is True,
            skipped=annotation.get("was_cancelled") is True,
        )
        for item, (name, index, uri) in enumerate(images)
    ]


def readable(annotation: Json, task: Json, config: LabelConfig) -> Sequence[Submission | Unreadable]:
    """Its submissions, else why there are none: what one annotation holds must not keep the others out."""
    name = f"task {str(task.get('id'))[:40]}, annotation {str(annotation.get('id'))[:40]}"
    try:
        return submissions(annotation, task, config)
    except InvalidRequest as error:
        return [Unreadable(f"{name}: {error}")]
    except Exception as error:  # its author has drawn what nobody has thought of
        log.exception("%s: %s cannot be read", TOOL, name)
        return [Unreadable(f"{name} cannot be read ({type(error).__name__}); clickmask's log says why")]


def _submitted(event: Json, pairs: Sequence[tuple[Json, Json]]) -> Iterator[Change]:
    project = _part(event, "project")
    config = label_config.parse(_xml(project))
    yield described(project)
    for annotation, task in pairs:
        yield from readable(annotation, task, config)


def _drawn(annotation: Json, config: LabelConfig) -> Iterator[tuple[tuple[str, int], Size, Region]]:
    """The image, by its control's name and index, its size, and the region; several results of one id
    are one region."""
    groups: dict[str, list[Json]] = {}
    for number, result in enumerate(_parts(annotation, "result")):
        groups.setdefault(str(result.get("id") or f"region {number}"), []).append(result)
    has_labels = any(control.labels for control in config.controls)
    for name, results in groups.items():
        shape = next((each for each in results if _kind(each) in AREAS), None)
        if shape is None:
            log.info("%s: region %s of type %s marks no area", TOOL, name[:40], results[0].get("type"))
            continue
        labels = [label for each in results for label in _labels(each)]
        if not labels and not has_labels:  # a project that only asks where, not what
            labels = [str(shape.get("from_name"))]
        if not labels:
            log.info("%s: region %s has no label", TOOL, name[:40])
            continue
        size = _pixels(shape, "original_height"), _pixels(shape, "original_width")
        try:
            geometry = _geometry(_kind(shape), _part(shape, "value"), size)
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidRequest(f"region {name[:40]!r} is damaged: {error}") from error
        ours = PROPOSED_REGION.fullmatch(name)
        place = str(shape.get("to_name")), int(shape.get("item_index") or 0)
        yield place, size, Region(name, labels[0], geometry, ours[1] if ours else None)


def _geometry(kind: str, value: Json, size: Size) -> Geometry:
    """Raises ValueError, TypeError or LookupError where `value` is not what its kind has."""
    if kind == "brush":
        return Brush(mask_to_rle(brush_rle_to_mask(value["rle"], size)))
    if kind == "bitmask":
        return Brush(mask_to_rle(bit_mask_to_mask(value["imageDataURL"], size)))
    if kind == "polygon":
        ring = tuple(_point(x, y, size) for x, y in value["points"])
        if len(ring) < 3:
            raise ValueError(f"a polygon of {len(ring)} points")
        return Polygon((ring,))
    x, y = _point(value["x"], value["y"], size)
    degrees = _number(value.get("rotation") or 0)
    if kind == "ellipse":
        across, down = _point(value["radiusX"], value["radiusY"], size)
        return Ellipse((x, y), (across, down), degrees)
    across, down = _point(value["width"], value["height"], size)
    if not degrees:
        return Rectangle((x, y, _rounded(x + across), _rounded(y + down)))
    # It turns clockwise about its first corner; ours about its centre.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre_x, centre_y = x + (across * cos - down * sin) / 2, y + (across * sin + down * cos) / 2
    sides = (centre_x - across / 2, centre_y - down / 2, centre_x + across / 2, centre_y + down / 2)
    x0, y0, x1, y1 = map(_rounded, sides)
    return Rectangle((x0, y0, x1, y1), degrees)


def _point(x: object, y: object, size: Size) -> Point:
    return _rounded(_number(x) * size[1] / 100), _rounded(_number(y) * size[0] / 100)


def _rounded(pixels: float) -> float:
    return round(pixels, _DECIMALS)


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:  # not NaN either
        return float(value)
    raise ValueError(f"{str(value)[:40]!r} is no finite number")


def _kind(result: Json) -> str:
    return str(result.get("type")).removesuffix(LABELS)


def _labels(result: Json) -> list[str]:
    """As they are written; of several the first is the region's category."""
    found = _part(result, "value").get(str(result.get("type")))
    return (
        [label for label in cast("list[object]", found) if isinstance(label, str)] if _listed(found) else []
    )


def _size(sizes: Sequence[Size]) -> Size | None:
    if len(set(sizes)) > 1:
        raise InvalidRequest(f"regions of one image speak of different sizes: {sorted(set(sizes))}")
    return sizes[0] if sizes else None


def _uris(config: LabelConfig, name: str, data: Json) -> list[tuple[int, str]]:
    try:
        return list(enumerate(config.image_uris(name, data)))
    except InvalidRequest as error:
        log.info("%s: %s", TOOL, error)
        return []


def _basename(uri: str, task: str) -> str:
    """The name that the image had before it came to Label Studio, as far as its address tells."""
    if uri[:5].lower() == "data:":
        subtype = re.match(r"data:image/(\w+)", uri, re.IGNORECASE)
        return f"task-{task}.{subtype[1].lower() if subtype else 'img'}"
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"task-{task}"
    path = unquote(parts.path)
    if path.endswith("/data/local-files/"):
        path = "/" + parse_qs(parts.query).get("d", [""])[0]
    elif "/data/upload/" in path:
        path = UPLOADED.sub("", path)
    return PurePosixPath(path).name or f"task-{task}"


def _author(completed_by: object) -> str:
    """The number of the user; the REST API gives an object for some callers."""
    if isinstance(completed_by, Mapping):
        completed_by = cast("Json", completed_by).get("id")
    return "" if completed_by is None else str(completed_by)


def _timestamp(written: object) -> float:
    try:
        return datetime.fromisoformat(str(written)).timestamp()
    except ValueError:
        raise InvalidRequest(f"updated_at {str(written)[:40]!r} is no time") from None


def _pixels(result: Json, name: str) -> int:
    value = result.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_SIDE_PX:
        raise InvalidRequest(f"{name} {str(value)[:40]!r} is no number of pixels")
    return value


def _xml(project: Json) -> str:
    return str(project.get("label_config") or "<View/>")


def _id(described: Json) -> str:
    number = described.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidRequest(f"the event names something by {str(number)[:40]!r}, which is no number")
    return str(number)


def _part(event: Json, name: str) -> Json:
    found = event.get(name)
    if not isinstance(found, Mapping):
        raise InvalidRequest(f"the event has no object {name!r}")
    return cast("Json", found)


def _parts(event: Json, name: str) -> list[Json]:
    found = event.get(name)
    if not _listed(found) or not all(isinstance(each, Mapping) for each in cast("list[object]", found)):
        raise InvalidRequest(f"the event has no list of objects {name!r}")
    return cast("list[Json]", found)


def _listed(found: object) -> bool:
    return isinstance(found, list)
