"""Labels and images as Label Studio 1.23.2 sends and stores them: an event's changes, a whole project."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import PurePosixPath
from typing import cast
from urllib.parse import parse_qs, unquote, urlsplit

from clickmask.errors import InvalidRequest, NotFound
from clickmask.ingest.apply import Page
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
from clickmask.types import ImageRef, Size
from clickmask_adapters.tools import NamedImage
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import Json, as_id, as_list, as_object, parse_object, project_number
from clickmask_adapters.tools.label_studio import TOOL
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import LABELS, LabelConfig, config_of
from clickmask_adapters.tools.label_studio.shapes import labels_in, original_size, value_to_geometry

log = logging.getLogger(__name__)
PAGE = 50  # tasks: with 20 annotations of 100 kB each a page is 100 MB already
AREAS = ("brush", "bitmask", "polygon", "rectangle", "ellipse")  # points and texts have no pixels
PROPOSED_REGION = re.compile(r"([A-Za-z0-9_-]{16})-\d+")  # the id of a region that `clicks` made
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")  # prefix of an upload's name


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
            pass


def _submitted(event: Json, pairs: Sequence[tuple[Json, Json]]) -> Iterator[Change]:
    project = _part(event, "project")
    config = config_of(project)
    yield described(project)
    for annotation, task in pairs:
        yield from readable(annotation, task, config)


def described(project: Json) -> ProjectDescribed:
    """The title, and the labels of all controls that mark areas, in the label config's order."""
    controls = config_of(project).controls
    drawing = [control for control in controls if control.kind in AREAS or control.type == LABELS]
    written = dict.fromkeys(label.written for control in drawing for label in control.labels)
    return ProjectDescribed(TOOL, _id(project), str(project.get("title") or ""), tuple(written))


def readable(annotation: Json, task: Json, config: LabelConfig) -> Sequence[Submission | Unreadable]:
    """The submissions of an annotation. An unreadable one is one Unreadable, and does not keep others out."""
    name = f"task {str(task.get('id'))[:40]}, annotation {str(annotation.get('id'))[:40]}"
    try:
        return list(submissions(annotation, task, config))
    except InvalidRequest as error:
        return [Unreadable(f"{name}: {error}")]
    except Exception as error:  # its author may have drawn something unforeseen
        log.exception("%s: %s cannot be read", TOOL, name)
        return [Unreadable(f"{name} cannot be read ({type(error).__name__}); clickmask's log says why")]


def submissions(annotation: Json, task: Json, config: LabelConfig) -> Iterator[Submission]:
    """One Submission for each image that the task shows, even if nothing was marked on it.

    Results without an area (points, texts, relations) and areas without a label are left out and logged.
    Raises InvalidRequest if a region is damaged: a part of an annotation is not an annotation.
    """
    number, data = _id(task), _part(task, "data")
    shown = config.shown(number, data)
    uris = {(name, index): uri for name, found in shown for index, uri in enumerate(found)}
    if not uris:
        raise InvalidRequest(f"task {number} shows no image")
    drawn = list(_drawn(annotation, config))
    if astray := [place for place, _, _ in drawn if place not in uris]:
        said = f"a region is on an image that the task does not show, {astray[0]}"
        raise InvalidRequest(f"task {number}: {said}")
    written = annotation.get("updated_at")
    try:
        updated_at = datetime.fromisoformat(str(written)).timestamp()
    except ValueError:
        raise InvalidRequest(f"updated_at {str(written)[:40]!r} is no time") from None
    author = annotation.get("completed_by")
    if isinstance(author, Mapping):  # the REST API gives some callers an object, others only the number
        author = cast("Json", author).get("id")
    for item, (place, uri) in enumerate(uris.items()):
        sizes = {size for at, size, _ in drawn if at == place}
        if len(sizes) > 1:
            raise InvalidRequest(f"regions of one image speak of different sizes: {sorted(sizes)}")
        yield Submission(
            tool=TOOL,
            project=_id({"id": task.get("project") or annotation.get("project")}),
            task=number,
            annotation=_id(annotation),
            address=uri,
            name=_basename(uri, number),
            size=next(iter(sizes), None),
            regions=tuple(region for at, _, region in drawn if at == place),
            updated_at=updated_at,
            author="" if author is None else str(author),
            item=item,
            items=len(uris),
            ground_truth=annotation.get("ground_truth") is True,
            skipped=annotation.get("was_cancelled") is True,
        )


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
        labels = [text for each in results for text in labels_in(_part(each, "value"), str(each.get("type")))]
        if not labels and not has_labels:  # the project asks only where, not what
            labels = [str(shape.get("from_name"))]
        if not labels:
            log.info("%s: region %s has no label", TOOL, name[:40])
            continue
        size = original_size(shape)
        try:
            geometry = value_to_geometry(_kind(shape), _part(shape, "value"), size)
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidRequest(f"region {name[:40]!r} is damaged: {error}") from error
        ours = PROPOSED_REGION.fullmatch(name)
        place = str(shape.get("to_name")), int(shape.get("item_index") or 0)
        yield place, size, Region(name, labels[0], geometry, ours[1] if ours else None)


def _kind(result: Json) -> str:
    return str(result.get("type")).removesuffix(LABELS)


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


def _id(described: Json) -> str:
    return str(as_id(described.get("id"), "the id of something in the event"))


def _part(event: Json, name: str) -> Json:
    return as_object(event.get(name), f"{name} of the event")


def _parts(event: Json, name: str) -> list[Json]:
    return [as_object(each, f"each {name} of the event") for each in as_list(event.get(name), name)]


class LabelStudioLabels:
    """A `clickmask.ingest.apply.LabelSource`: the labels of one Label Studio."""

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client

    @property
    def origin(self) -> str | None:
        return self._client.url

    def changes(self, event: bytes, retry: bool = False) -> Iterator[Change]:
        """The changes that the event reports. Raises InvalidRequest if it cannot be read.

        `retry` leaves out the project's description, which was ingested before and may be old by now.
        """
        found = changes(parse_object(event, "the event"))
        return (each for each in found if not (retry and isinstance(each, ProjectDescribed)))

    def locate(self, submission: Submission) -> ImageRef:
        return self._client.image_ref(int(submission.task), submission.address)

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        """The project's annotations, one page per task, starting after the task `position`.

        Tasks come by number, so those that come and go meanwhile neither shift nor hide others. Raises
        InvalidRequest if `project` is not a number, NotFound if Label Studio does not have it, and ToolError.
        """
        number = project_number(project, "Label Studio")
        try:
            found = self._client.project(number)
        except ToolError as error:
            if error.status == 404:
                raise NotFound(f"Label Studio has no project {number}") from error
            raise
        config = config_of(found)
        read: list[Change] = [described(found)]
        last = int(position) if position else 0
        while True:
            tasks, total = self._client.annotated_tasks(number, after=last, page_size=PAGE)
            for place, task in enumerate(tasks):
                last = task["id"]
                for annotation in task.get("annotations", []):
                    read += readable(annotation, {**task, "project": number}, config)
                yield Page(read, str(last), remaining=total - place - 1)
                read = []
            if len(tasks) < PAGE:
                return

    def gone(self, annotations: Sequence[tuple[str, str]]) -> Iterator[Change]:
        """Deletions of those `annotations`, (task, annotation), that Label Studio no longer has."""
        for task in dict.fromkeys(task for task, _ in annotations):
            if not self._client.has(f"/api/tasks/{task}/"):
                yield TaskDeleted(TOOL, task)
                continue
            for annotation in (name for of, name in annotations if of == task):
                if not self._client.has(f"/api/annotations/{annotation}/"):
                    yield AnnotationDeleted(TOOL, annotation)


def project_images(client: LabelStudioClient, project: str) -> Iterator[NamedImage]:
    """Images of all tasks that have any, in Label Studio's order. Raises InvalidRequest and ToolError."""
    number = project_number(project, "Label Studio")
    config = config_of(client.project(number))
    for task in client.all_tasks(number):
        for _, uris in config.shown(task["id"], task["data"]):
            for place, uri in enumerate(uris, 1):
                name = f"task {task['id']}" + (f", image {place}" if len(uris) > 1 else "")
                # Located when its turn comes: an access token of now would have expired by then.
                yield NamedImage(name, partial(client.image_ref, task["id"], uri))
