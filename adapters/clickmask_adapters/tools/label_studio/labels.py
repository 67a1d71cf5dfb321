"""Label Studio's annotations as submissions, as 1.23.2 sends and stores them. Pure."""

import base64
import itertools
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
from clickmask_adapters.tools._json import Json, as_id, as_list, as_object, is_number, text_of
from clickmask_adapters.tools.label_studio import TOOL
from clickmask_adapters.tools.label_studio.label_config import LABELS, Control, LabelConfig, config_of
from clickmask_adapters.tools.label_studio.shapes import labels_in, original_size, value_to_geometry

log = logging.getLogger(__name__)
AREAS = ("brush", "bitmask", "polygon", "vector", "rectangle", "ellipse")  # an open vector has none
KINDS = frozenset({*AREAS, "keypoint"})  # of regions of an image
ABOUT = ("ANNOTATION", "PROJECT_UPDATED", "PROJECT_DELETED", "TASKS_DELETED")  # so begin the actions below
PROPOSED_REGION = re.compile(r"([A-Za-z0-9_-]{16})-\d+")  # the id of a region that `clicks` made
PLACE = frozenset(
    {"x", "points", "vertices", "rle", "imageDataURL", "sequence"}
)  # fields that place a region
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
    """The title, and the labels of all controls that mark areas of images.

    Labels with a `category` come first, by its number; the others follow in the label config's order.
    """
    config = config_of(project)
    drawing = [each for each in config.controls if each.kind in AREAS or each.type == LABELS]
    if config.repeated is None:  # else its images have their names only in a task
        drawing = [each for each in drawing if not config.images.keys().isdisjoint(each.to_names)]
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

    An image gets an Unsized if no region says its size, or if they disagree. Damaged regions, and those on an
    image that the task does not show, are left out, and each gets an Unreadable. Raises InvalidRequest if the
    annotation cannot be read at all.
    """
    every = list(_drawn(annotation, config)) if config.images else []
    asks_where = any(each.kind in (*AREAS, "keypoint") or each.labels_itself for each in config.controls)
    if not config.images or not (every or asks_where):  # a project of texts, or of choices about images
        return
    number, data = _id(task), _part(task, "data")
    shown = config.shown(number, data)
    uris = {(name, index): uri for name, found in shown for index, uri in enumerate(found)}
    if not uris:
        raise InvalidRequest(f"task {number} shows no image")
    drawn: dict[tuple[str, int], list[Drawn]] = {place: [] for place in uris}
    astray: list[Drawn] = []
    for each in every:
        place = _page(each.shape)
        if place in drawn:
            drawn[place].append(each)
        elif _kind(each.shape) in KINDS:  # else it is about a text or a time series
            astray.append(each)
    misplaced = dict(Counter(f"misplaced {_kind(each.shape)}" for each in astray))
    # Each of these may be the image that was meant, so none of them is an example of nothing.
    meant = {place for place, here in drawn.items() if not here} or {next(iter(drawn))}
    written = annotation.get("updated_at")
    try:
        updated_at = datetime.fromisoformat(text_of(written)).timestamp()
    except (ValueError, OverflowError):  # of a year that no clock shows
        raise InvalidRequest(f"updated_at {text_of(written)[:40]!r} is no time") from None
    author = annotation.get("completed_by")
    if isinstance(author, Mapping):  # the REST API gives some callers an object, others only the number
        author = cast("Json", author).get("id")
    for item, (place, uri) in enumerate(uris.items()):
        here = drawn[place]
        sizes = {size for each in here if (size := original_size(each.shape))}
        size = sizes.pop() if len(sizes) == 1 else None
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
            left_out=misplaced if place in meant else {},
        )
        if size:
            yield from _with_regions(empty, here, size)
        elif here and not empty.skipped:
            yield Unsized(empty, partial(_with_regions, empty, here))
        else:
            yield empty
    for each in astray:
        name, index = (text_of(each.shape.get(field) or 0)[:40] for field in ("to_name", "item_index"))
        of = f"task {number}, annotation {text_of(annotation.get('id'))}"
        where = f"the task shows no image {index} of {name!r}"
        yield Unreadable(f"{of}: region {each.region[:40]!r} is left out: {where}")


class Drawn(NamedTuple):
    """A result that draws a region, the region's own name in the annotation, and its category, if any."""

    shape: Json
    region: str
    category: str | None


def _drawn(annotation: Json, config: LabelConfig) -> Iterator[Drawn]:
    """The annotation's regions. Results that share an id label one region; two shapes are two regions.

    A region of which only a choice or another remark is left comes without a category.
    """
    groups: dict[str, list[Json]] = {}
    for number, result in enumerate(_parts(annotation, "result")):
        groups.setdefault(text_of(result.get("id") or f"region {number}"), []).append(result)
    has_labels = any(control.labels or control.takes_any_label for control in config.controls)
    taken, spelling = set(groups), {control.name: _spelling(control) for control in config.controls}

    def label_of(result: Json, kind: str) -> str | None:
        """The first label that the result writes, as the label config spells it now."""
        known = spelling.get(text_of(result.get("from_name")), {})
        return next((known.get(text, text) for text in labels_in(result.get("value"), kind)), None)

    for name, results in groups.items():
        shapes = [each for each in results if _draws(each)] or list(filter(_remarks, results))[:1]
        by_page: dict[tuple[str, int], str | None] = {}  # the first label of those on a page
        for each in results:
            if each.get("type") == LABELS:
                by_page[_page(each)] = by_page.get(_page(each)) or label_of(each, LABELS)
        pages, free = set(map(_page, shapes)), itertools.count(2)
        # An importer may leave the page of a label out.
        anywhere = next((label for page, label in by_page.items() if label and page not in pages), None)
        for number, shape in enumerate(shapes):
            label = label_of(shape, text_of(shape.get("type"))) or by_page.get(_page(shape), anywhere)
            label = label or label_of(shape, LABELS)
            if label is None and not has_labels:  # the project asks only where, not what
                label = text_of(shape.get("from_name"))
            region = name
            if number:
                region = next(each for each in (f"{name}~{n}" for n in free) if each not in taken)
                taken.add(region)
            yield Drawn(shape, region, label)


def _spelling(control: Control) -> dict[str, str]:
    """The texts that results of `control` write for its labels, by value and by alias. An alias wins."""
    by_value = {label.value: label.written for label in reversed(control.labels)}
    return by_value | {label.alias: label.alias for label in control.labels if label.alias}


def _draws(result: Json) -> bool:
    """Whether the result draws a region: it is neither a choice, a text, a relation nor a mere label."""
    kind = text_of(result.get("type"))
    return _kind(result) in KINDS or (kind.endswith(LABELS) and kind != LABELS)


def _remarks(result: Json) -> bool:
    """Whether the result is about a region, of which it repeats the place."""
    value = result.get("value")
    return isinstance(value, Mapping) and not PLACE.isdisjoint(cast("Json", value))


def _page(result: Json) -> tuple[str, int]:
    """The name of the image, and its index; -1 for what is no index."""
    index = result.get("item_index") or 0
    return text_of(result.get("to_name")), int(index) if is_number(index) and index == int(index) else -1


def _with_regions(
    submission: Submission, drawn: Sequence[Drawn], size: Size
) -> list[Submission | Unreadable]:
    """`submission` with the regions of `drawn` on an image of `size`, and an Unreadable per damaged one."""
    regions: list[Region] = []
    left_out, damaged = Counter(submission.left_out), list[Unreadable]()
    for each in drawn:
        kind = _kind(each.shape) if _kind(each.shape) in KINDS else "other shape"
        if not _draws(each.shape):
            kind = "remark about a region without a shape"
        try:
            if (said := original_size(each.shape)) and said != size:
                raise ValueError("it was drawn on an image of {1}x{0} pixels".format(*said))
            geometry = value_to_geometry(kind, _part(each.shape, "value"), size) if kind in AREAS else None
        except (InvalidRequest, ValueError, TypeError, LookupError, AttributeError) as error:
            left_out[f"damaged {kind}"] += 1
            of = f"task {submission.task}, annotation {submission.annotation}"
            why = error if isinstance(error, InvalidRequest | ValueError) else "its value is incomplete"
            damaged.append(Unreadable(f"{of}: region {each.region[:40]!r} is damaged and left out: {why}"))
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
    uri = uri.strip().replace("\0", "").replace("%00", "")  # no name has one, and PostgreSQL keeps none
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
    elif not has_picture_ending(path):  # https://host/download?file=cat.jpg, https://host/cat.jpg/raw
        texts = [text for found in query.values() for text in found]
        files = (*texts, *(text.partition("?")[0] for text in texts), *reversed(PurePosixPath(path).parts))
        path = next(filter(has_picture_ending, files), path)
    if "/data/upload/" in path or (route and route[1] == "storage-data/uploaded"):
        path = UPLOADED.sub("", path)
    return PurePosixPath(path.replace("\\", "/")).name or f"task-{task}"


def _id(described: Json) -> str:
    return str(as_id(described.get("id"), "the id of something in the event"))


def _part(event: Json, name: str) -> Json:
    return as_object(event.get(name), f"{name} of the event")


def _parts(event: Json, name: str) -> list[Json]:
    return [as_object(each, f"each {name} of the event") for each in as_list(event.get(name), name)]
