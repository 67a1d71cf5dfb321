"""Label Studio's annotations as submissions, as 1.23.2 sends and stores them. Pure.

Coordinates are percent of the image as displayed, upright; the UI's rotate tool does not turn them.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import cast
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
from clickmask_adapters.tools._json import Json, as_id, as_list, as_object, as_side, is_number
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio.bit_mask import bit_mask_to_mask
from clickmask_adapters.tools.label_studio.brush_rle import brush_rle_to_mask
from clickmask_adapters.tools.label_studio.label_config import LABELS, LabelConfig

log = logging.getLogger(__name__)

TOOL = "label_studio"
AREAS = ("brush", "bitmask", "polygon", "rectangle", "ellipse")  # points and texts have no pixels
PROPOSED_REGION = re.compile(r"([A-Za-z0-9_-]{16})-\d+")  # the id of a region that `answers` made
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")  # prefix of an upload's name
DECIMALS = 9  # of a pixel: converting to percent and back changes no more than this
MAX_PERCENT = 1e9


def changes(event: Json) -> Iterator[Change]:
    """The changes that a webhook's event reports; none if it is not about labels.

    Each annotation is read in its turn, or is Unreadable. Raises InvalidRequest if the event is incomplete.
    """
    match event.get("action"):
        case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED":
            yield from _submitted(event, [(_part(event, "annotation"), _part(event, "task"))])
        case "ANNOTATIONS_CREATED":  # its lists have singular names
            tasks = {str(task.get("id")): task for task in _parts(event, "task")}
            made = _parts(event, "annotation")
            yield from _submitted(event, [(each, tasks.get(str(each.get("task")), {})) for each in made])
        case "ANNOTATIONS_DELETED":
            yield from (AnnotationDeleted(TOOL, _id(each)) for each in _parts(event, "annotations"))
        case "TASKS_DELETED":
            yield from (TaskDeleted(TOOL, _id(each)) for each in _parts(event, "tasks"))
        case "PROJECT_DELETED":  # sent only to webhooks of the whole organization
            yield ProjectDeleted(TOOL, _id(_part(event, "project")))
        case "PROJECT_UPDATED":
            yield described(_part(event, "project"))
        case _:
            return


def described(project: Json) -> ProjectDescribed:
    """The title, and the labels of all controls that mark areas, in the label config's order."""
    controls = config_of(project).controls
    drawing = [control for control in controls if control.kind in AREAS or control.type == LABELS]
    written = dict.fromkeys(label.written for control in drawing for label in control.labels)
    return ProjectDescribed(TOOL, _id(project), str(project.get("title") or ""), tuple(written))


def submissions(annotation: Json, task: Json, config: LabelConfig) -> list[Submission]:
    """One Submission for each image that the task shows, even if nothing was marked on it.

    Results without an area (points, texts, relations) and areas without a label are left out and logged.
    Raises InvalidRequest if a region is damaged: a part of an annotation is not an annotation.
    """
    number, data = _id(task), _part(task, "data")
    images: list[tuple[str, int, str]] = []
    for name in config.images:
        try:
            images += [(name, index, uri) for index, uri in enumerate(config.image_uris(name, data))]
        except InvalidRequest as error:
            log.info("%s: %s", TOOL, error)
    if not images:
        raise InvalidRequest(f"task {number} shows no image")
    drawn = list(_drawn(annotation, config))
    places = {(name, index) for name, index, _ in images}
    astray = [place for place, _, _ in drawn if place not in places]
    if astray:
        raise InvalidRequest(
            f"task {number}: a region is on an image that the task does not show, {astray[0]}"
        )
    written = annotation.get("updated_at")
    try:
        updated_at = datetime.fromisoformat(str(written)).timestamp()
    except ValueError:
        raise InvalidRequest(f"updated_at {str(written)[:40]!r} is no time") from None
    author = annotation.get("completed_by")
    if isinstance(author, Mapping):  # the REST API gives some callers an object, others only the number
        author = cast("Json", author).get("id")
    found: list[Submission] = []
    for item, (name, index, uri) in enumerate(images):
        here = [(size, region) for place, size, region in drawn if place == (name, index)]
        sizes = {size for size, _ in here}
        if len(sizes) > 1:
            raise InvalidRequest(f"regions of one image speak of different sizes: {sorted(sizes)}")
        submission = Submission(
            tool=TOOL,
            project=_id({"id": task.get("project") or annotation.get("project")}),
            task=number,
            annotation=_id(annotation),
            address=uri,
            name=_basename(uri, number),
            size=next(iter(sizes), None),
            regions=tuple(region for _, region in here),
            updated_at=updated_at,
            author="" if author is None else str(author),
            item=item,
            items=len(images),
            ground_truth=annotation.get("ground_truth") is True,
            skipped=annotation.get("was_cancelled") is True,
        )
        found.append(submission)
    return found


def readable(annotation: Json, task: Json, config: LabelConfig) -> Sequence[Submission | Unreadable]:
    """The submissions of an annotation. An unreadable one is one Unreadable, and does not keep others out."""
    name = f"task {str(task.get('id'))[:40]}, annotation {str(annotation.get('id'))[:40]}"
    try:
        return submissions(annotation, task, config)
    except InvalidRequest as error:
        return [Unreadable(f"{name}: {error}")]
    except Exception as error:  # its author may have drawn something unforeseen
        log.exception("%s: %s cannot be read", TOOL, name)
        return [Unreadable(f"{name} cannot be read ({type(error).__name__}); clickmask's log says why")]


def _submitted(event: Json, pairs: Sequence[tuple[Json, Json]]) -> Iterator[Change]:
    project = _part(event, "project")
    config = config_of(project)
    yield described(project)
    for annotation, task in pairs:
        yield from readable(annotation, task, config)


def _drawn(annotation: Json, config: LabelConfig) -> Iterator[tuple[tuple[str, int], Size, Region]]:
    """Image (its control's name and its index), size and region; results that share an id are one."""
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
        if not labels and not has_labels:  # the project asks only where, not what
            labels = [str(shape.get("from_name"))]
        if not labels:
            log.info("%s: region %s has no label", TOOL, name[:40])
            continue
        height, width = (as_side(shape.get(side), side) for side in ("original_height", "original_width"))
        try:
            geometry = _geometry(_kind(shape), _part(shape, "value"), (height, width))
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidRequest(f"region {name[:40]!r} is damaged: {error}") from error
        ours = PROPOSED_REGION.fullmatch(name)
        place = str(shape.get("to_name")), int(shape.get("item_index") or 0)
        yield place, (height, width), Region(name, labels[0], geometry, ours[1] if ours else None)


def _geometry(kind: str, value: Json, size: Size) -> Geometry:
    """The geometry of a shape. Raises ValueError, TypeError or LookupError if `value` is damaged."""
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
    # Label Studio turns it clockwise about its first corner; we turn it about its centre.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre_x, centre_y = x + (across * cos - down * sin) / 2, y + (across * sin + down * cos) / 2
    sides = (centre_x - across / 2, centre_y - down / 2, centre_x + across / 2, centre_y + down / 2)
    x0, y0, x1, y1 = map(_rounded, sides)
    return Rectangle((x0, y0, x1, y1), degrees)


def _point(x: object, y: object, size: Size) -> Point:
    return _rounded(_number(x) * size[1] / 100), _rounded(_number(y) * size[0] / 100)


def _rounded(pixels: float) -> float:
    return round(pixels, DECIMALS)


def _number(value: object) -> float:
    if not is_number(value, MAX_PERCENT):
        raise ValueError(f"{str(value)[:40]!r} is no finite number")
    return float(value)


def _kind(result: Json) -> str:
    return str(result.get("type")).removesuffix(LABELS)


def _labels(result: Json) -> list[str]:
    """Labels as they are written; the first is the region's category."""
    found = _part(result, "value").get(str(result.get("type")))
    if not isinstance(found, list):
        return []
    return [label for label in cast("list[object]", found) if isinstance(label, str)]


def _basename(uri: str, task: str) -> str:
    """The image's name before it came to Label Studio, as far as its address tells."""
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


def config_of(project: Json) -> LabelConfig:
    """The project's label config. Raises InvalidRequest if it is not XML."""
    return label_config.parse(str(project.get("label_config") or "<View/>"))


def _id(described: Json) -> str:
    return str(as_id(described.get("id"), "the id of something in the event"))


def _part(event: Json, name: str) -> Json:
    return as_object(event.get(name), f"{name} of the event")


def _parts(event: Json, name: str) -> list[Json]:
    return [as_object(each, f"each {name} of the event") for each in as_list(event.get(name), name)]
