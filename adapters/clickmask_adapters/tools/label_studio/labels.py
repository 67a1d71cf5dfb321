"""Label Studio's annotations as submissions, as 1.23.2 sends and stores them. Pure."""

import base64
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple, cast
from urllib.parse import parse_qs, unquote, urlsplit

from clickmask.errors import InvalidRequest
from clickmask.images.decode import has_picture_ending
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Change,
    ProjectDeleted,
    ProjectDescribed,
    Region,
    Submission,
    TaskDeleted,
    Unreadable,
    Unsized,
)
from clickmask.types import Size
from clickmask_adapters.tools._json import Json, as_id, as_list, as_object, text_of
from clickmask_adapters.tools.label_studio import TOOL
from clickmask_adapters.tools.label_studio.label_config import LABELS, LabelConfig, config_of
from clickmask_adapters.tools.label_studio.shapes import labels_in, original_size, value_to_geometry

log = logging.getLogger(__name__)
AREAS = ("brush", "bitmask", "polygon", "vector", "rectangle", "ellipse")  # an open vector has none
KINDS = frozenset({*AREAS, "keypoint"})  # of regions of an image
ABOUT = ("ANNOTATION", "PROJECT_UPDATED", "PROJECT_DELETED", "TASKS_DELETED")  # so begin the actions below
PROPOSED_REGION = re.compile(r"([A-Za-z0-9_-]{16})-\d+")  # the id of a region that `clicks` made
MAX_ADDRESSES = 3  # of one in another's parameter
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")  # prefix of an upload's name
STORAGE_KEY = re.compile(r"(?!https?:|file:)[\w+.-]+://[^/]*(/.*)", re.IGNORECASE | re.DOTALL)
# Label Studio's routes that serve the file that a parameter names.
FILE_ROUTE = re.compile(r"/(data/local-files|storage-data/uploaded|presign|resolve)/?$")
FILE_PARAMETERS = {"data/local-files": "d", "storage-data/uploaded": "filepath"}  # else `fileuri`


def changes(event: Json) -> Iterator[Change]:
    """The changes that a webhook's event reports; none if it is not about labels.

    Each annotation is read in its turn, or is Unreadable. Raises InvalidRequest if the event is incomplete.
    """
    match event.get("action"):
        case str() as action if action.startswith(ABOUT) and len(event) == 1:
            raise InvalidRequest(
                f"the webhook sends {action} without a payload: switch on “Send payload” in Label Studio's "
                "Settings > Webhooks, or run `clickmask connect label-studio PROJECT`; then `clickmask pull "
                "label-studio PROJECT` takes in what was missed"
            )
        case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED":
            yield from _submitted(event, [(_part(event, "annotation"), _part(event, "task"))])
        case "ANNOTATIONS_CREATED":  # its lists have singular names
            tasks = {text_of(task.get("id")): task for task in _parts(event, "task")}
            made = _parts(event, "annotation")
            yield from _submitted(event, [(each, tasks.get(text_of(each.get("task")), {})) for each in made])
        case "ANNOTATIONS_DELETED":
            yield from (AnnotationDeleted(TOOL, _id(each)) for each in _parts(event, "annotations"))
        case "TASKS_DELETED":
            yield from (TaskDeleted(TOOL, _id(each)) for each in _parts(event, "tasks"))
        case "PROJECT_DELETED":  # sent only to webhooks of the whole organization
            yield ProjectDeleted(TOOL, _id(_part(event, "project")))
        case "PROJECT_UPDATED":
            yield described(_part(event, "project"))
        case _:
            pass


def _submitted(event: Json, pairs: Sequence[tuple[Json, Json]]) -> Iterator[Change]:
    project = _part(event, "project")
    config = config_of(project)
    if config.images:
        yield described(project)
    for annotation, task in pairs:
        yield from readable(annotation, task, config)


def described(project: Json) -> ProjectDescribed:
    """The title, and the labels of all controls that mark areas.

    Labels with a `category` come first, by its number; the others follow in the label config's order.
    """
    controls = config_of(project).controls
    drawing = [control for control in controls if control.kind in AREAS or control.type == LABELS]
    labels = [label for control in drawing for label in control.labels]
    labels.sort(key=lambda label: (label.category is None, label.category or 0))
    written = dict.fromkeys(label.written for label in labels)
    return ProjectDescribed(TOOL, _id(project), text_of(project.get("title") or ""), tuple(written))


def readable(
    annotation: Json, task: Json, config: LabelConfig
) -> Sequence[Submission | Unsized | Unreadable]:
    """The submissions of an annotation. An unreadable one is one Unreadable, and does not keep others out."""
    name = f"task {text_of(task.get('id'))[:40]}, annotation {text_of(annotation.get('id'))[:40]}"
    try:
        return list(submissions(annotation, task, config))
    except InvalidRequest as error:
        return [Unreadable(f"{name}: {error}")]
    except Exception as error:  # its author may have drawn something unforeseen
        log.exception("%s: %s cannot be read", TOOL, name)
        return [Unreadable(f"{name} cannot be read ({type(error).__name__}); clickmask's log says why")]


def submissions(
    annotation: Json, task: Json, config: LabelConfig
) -> Iterator[Submission | Unsized | Unreadable]:
    """One Submission for each image that the task shows, even if nothing was marked on it.

    An image of which no region says the size gets an Unsized. Damaged regions are left out, and each gets an
    Unreadable. Raises InvalidRequest if the annotation cannot be read at all.
    """
    if not config.images:  # a project of texts, for instance
        return
    number, data = _id(task), _part(task, "data")
    shown = config.shown(number, data)
    uris = {(name, index): uri for name, found in shown for index, uri in enumerate(found)}
    if not uris:
        raise InvalidRequest(f"task {number} shows no image")
    drawn: dict[tuple[str, int], list[Drawn]] = {place: [] for place in uris}
    for each in _drawn(annotation, config):
        index = each.shape.get("item_index") or 0
        place = text_of(each.shape.get("to_name")), index if isinstance(index, int) else -1
        if place in drawn:
            drawn[place].append(each)
        elif _kind(each.shape) in KINDS:  # else it is about a text or a time series
            where = f"{place[0][:80]!r}, {place[1]}"
            raise InvalidRequest(
                f"task {number}: a region is on an image that the task does not show, {where}"
            )
    written = annotation.get("updated_at")
    try:
        updated_at = datetime.fromisoformat(text_of(written)).timestamp()
    except (ValueError, OverflowError):  # of a year that no clock shows
        raise InvalidRequest(f"updated_at {text_of(written)[:40]!r} is no time") from None
    author = annotation.get("completed_by")
    if isinstance(author, Mapping):  # the REST API gives some callers an object, others only the number
        author = cast("Json", author).get("id")
    for item, (place, uri) in enumerate(uris.items()):
        here, sizes = drawn[place], set[Size]()
        for each in here:
            with suppress(InvalidRequest):  # such a region is found damaged below
                sizes |= {size} if (size := original_size(each.shape)) else set()
        if len(sizes) > 1:
            raise InvalidRequest(f"regions of one image speak of different sizes: {sorted(sizes)[:3]}")
        size = next(iter(sizes), None)
        empty = Submission(
            tool=TOOL,
            project=_id({"id": task.get("project") or annotation.get("project")}),
            task=number,
            annotation=_id(annotation),
            address=uri,
            name=_basename(uri, number),
            size=size,
            regions=(),
            updated_at=updated_at,
            author="" if author is None else text_of(author),
            item=item,
            items=len(uris),
            ground_truth=annotation.get("ground_truth") is True,
            skipped=annotation.get("was_cancelled") is True,
        )
        if size:
            yield from _with_regions(empty, here, size)
        elif here and not empty.skipped:
            yield Unsized(empty, partial(_with_regions, empty, here))
        else:
            yield empty


class Drawn(NamedTuple):
    """A result that draws a region, the region's own name in the annotation, and its category, if any."""

    shape: Json
    region: str
    category: str | None


def _drawn(annotation: Json, config: LabelConfig) -> Iterator[Drawn]:
    """The annotation's regions. Results that share an id label one region; two shapes are two regions."""
    groups: dict[str, list[Json]] = {}
    for number, result in enumerate(_parts(annotation, "result")):
        groups.setdefault(text_of(result.get("id") or f"region {number}"), []).append(result)
    has_labels = any(control.labels or control.takes_any_label for control in config.controls)
    for name, results in groups.items():
        shared = [result for result in results if result.get("type") == LABELS]
        by_page: dict[tuple[str, str], str | None] = {}  # the first label of those on a page
        for each in shared:
            by_page[_page(each)] = by_page.get(_page(each)) or _label(each)
        anywhere = next(filter(None, map(_label, shared)), None)
        for number, shape in enumerate(filter(_draws, results), 1):
            label = _label(shape) or by_page.get(_page(shape), anywhere)
            if label is None and not has_labels:  # the project asks only where, not what
                label = text_of(shape.get("from_name"))
            yield Drawn(shape, name if number == 1 else f"{name}~{number}", label)


def _draws(result: Json) -> bool:
    """Whether the result draws a region: it is neither a choice, a text, a relation nor a mere label."""
    kind = text_of(result.get("type"))
    return _kind(result) in KINDS or (kind.endswith(LABELS) and kind != LABELS)


def _page(result: Json) -> tuple[str, str]:
    return text_of(result.get("to_name")), text_of(result.get("item_index") or 0)


def _label(result: Json) -> str | None:
    """The first label that the result writes."""
    return next(iter(labels_in(result.get("value"), text_of(result.get("type")))), None)


def _with_regions(
    submission: Submission, drawn: Sequence[Drawn], size: Size
) -> list[Submission | Unreadable]:
    """`submission` with the regions of `drawn` on an image of `size`, and an Unreadable per damaged one."""
    regions: list[Region] = []
    left_out, damaged = Counter[str](), list[Unreadable]()
    for each in drawn:
        kind = _kind(each.shape) if _kind(each.shape) in KINDS else "other shape"
        try:
            original_size(each.shape)
            geometry = value_to_geometry(kind, _part(each.shape, "value"), size) if kind in AREAS else None
        except (InvalidRequest, ValueError, TypeError, LookupError, AttributeError) as error:
            left_out[f"damaged {kind}"] += 1
            of = f"task {submission.task}, annotation {submission.annotation}"
            damaged.append(Unreadable(f"{of}: region {each.region[:40]!r} is damaged and left out: {error}"))
            continue
        if geometry is None or each.category is None:
            left_out[kind if geometry is None else f"unlabelled {kind}"] += 1
            continue
        ours = PROPOSED_REGION.fullmatch(text_of(each.shape.get("id")))
        regions.append(Region(each.region, each.category, geometry, ours[1] if ours else None))
    return [replace(submission, regions=tuple(regions), left_out=dict(left_out)), *damaged]


def _kind(result: Json) -> str:
    return text_of(result.get("type")).removesuffix(LABELS)


def _basename(uri: str, task: str, depth: int = 0) -> str:
    """The image's name before it came to Label Studio, as far as its address tells."""
    uri = uri.replace("\0", "").replace("%00", "")  # no name has one, and PostgreSQL keeps none
    if depth > MAX_ADDRESSES:
        return f"task-{task}"
    if uri[:5].lower() == "data:":
        subtype = re.match(r"data:image/(\w{1,16})", uri, re.IGNORECASE)
        return f"task-{task}.{subtype[1].lower() if subtype else 'img'}"
    if key := STORAGE_KEY.match(uri):  # as it is: neither `#` nor `%` has a meaning in it
        return PurePosixPath(key[1]).name or f"task-{task}"
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"task-{task}"
    path, query = unquote(parts.path), parse_qs(parts.query)
    if route := FILE_ROUTE.search(path):
        parameter = FILE_PARAMETERS.get(route[1], "fileuri")
        named = query.get(parameter, [""])[0]
        if parameter == "fileuri":
            with suppress(ValueError):  # it may stand there as it is, too
                named = base64.b64decode(named + "=" * (-len(named) % 4), b"-_", validate=True).decode()
            return _basename(named, task, depth + 1)
        path = f"/{named}"
    elif not has_picture_ending(path):  # https://host/download?file=cat.jpg
        files = (text for texts in query.values() for text in texts if has_picture_ending(text))
        path = next(files, path)
    if "/data/upload/" in path or (route and route[1] == "storage-data/uploaded"):
        path = UPLOADED.sub("", path)
    return PurePosixPath(path).name or f"task-{task}"


def _id(described: Json) -> str:
    return str(as_id(described.get("id"), "the id of something in the event"))


def _part(event: Json, name: str) -> Json:
    return as_object(event.get(name), f"{name} of the event")


def _parts(event: Json, name: str) -> list[Json]:
    return [as_object(each, f"each {name} of the event") for each in as_list(event.get(name), name)]
