"""Labels out of Label Studio: what an event means, and everything that a project has accepted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import orjson

from clickmask.errors import InvalidRequest, UnknownProject
from clickmask.ingest.apply import Page
from clickmask.labels.submissions import AnnotationDeleted, Change, ProjectDescribed, Submission, TaskDeleted
from clickmask.types import ImageRef
from clickmask_adapters.tools import NamedImage
from clickmask_adapters.tools.label_studio import label_config, labels
from clickmask_adapters.tools.label_studio.client import LabelStudioClient, LabelStudioError
from clickmask_adapters.tools.label_studio.labels import TOOL

PAGE = 50  # tasks: with 20 annotations of 100 kB each a page is 100 MB already
Json = Mapping[str, Any]


class LabelStudioLabels:
    """The labels of one Label Studio, for `clickmask.ingest.apply`."""

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client

    @property
    def origin(self) -> str | None:
        return self._client.url

    def changes(self, event: bytes, retry: bool = False) -> Iterator[Change]:
        """What the event means. Raises InvalidRequest for one that cannot be read.

        `retry`: without what it says of its project, which was taken in before and may be old by now.
        """
        try:
            parsed = orjson.loads(event)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest("the event is not JSON") from error
        if not isinstance(parsed, Mapping):
            raise InvalidRequest("an event of Label Studio is a JSON object")
        found = labels.changes(cast("Json", parsed))
        return (each for each in found if not (retry and isinstance(each, ProjectDescribed)))

    def locate(self, submission: Submission) -> ImageRef:
        return self._client.image_ref(int(submission.task), submission.address)

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        """The project's annotations, task by task from the one after `position`, a page at a time.

        Pages follow the tasks' numbers, so that tasks that come and go meanwhile neither shift nor
        hide others. Raises InvalidRequest for what names no project, UnknownProject for one that there
        is not, and LabelStudioError.
        """
        number = project_number(project)
        found = self._project(number)
        config = label_config.parse(found.get("label_config") or "<View/>")
        changes: list[Change] = [labels.described(found)]
        last = int(position) if position else 0
        while True:
            tasks, total = self._client.annotated_tasks(number, after=last, page_size=PAGE)
            for place, task in enumerate(tasks):
                last = task["id"]
                for annotation in task.get("annotations", []):
                    changes += labels.readable(annotation, {**task, "project": number}, config)
                yield Page(changes, str(last), remaining=total - place - 1)
                changes = []
            if len(tasks) < PAGE:
                return

    def gone(self, annotations: Sequence[tuple[str, str]]) -> Iterator[Change]:
        """Of these, (task, annotation), the deletions of what Label Studio no longer has."""
        for task in dict.fromkeys(task for task, _ in annotations):
            if not self._has(f"/api/tasks/{task}/"):
                yield TaskDeleted(TOOL, task)
                continue
            for annotation in (name for of, name in annotations if of == task):
                if not self._has(f"/api/annotations/{annotation}/"):
                    yield AnnotationDeleted(TOOL, annotation)

    def _project(self, number: int) -> Json:
        try:
            return self._client.project(number)
        except LabelStudioError as error:
            if error.status == 404:
                raise UnknownProject(f"Label Studio has no project {number}") from error
            raise

    def _has(self, path: str) -> bool:
        try:
            self._client.get(path)
        except LabelStudioError as error:
            if error.status == 404:
                return False
            raise
        return True


def project_number(project: str) -> int:
    """Raises InvalidRequest for what is none."""
    if not project.isascii() or not project.isdigit():
        raise InvalidRequest(f"{project[:40]!r} is not the number of a Label Studio project")
    return int(project)


log = logging.getLogger(__name__)


def project_images(client: LabelStudioClient, project: int) -> Iterator[NamedImage]:
    """Every image of every task, in Label Studio's order; tasks without one are left out.

    Raises LabelStudioError where Label Studio cannot be asked.
    """
    config = label_config.parse(client.project(project).get("label_config") or "<View/>")
    for task in client.all_tasks(project):
        for to_name in config.images:
            try:
                uris = config.image_uris(to_name, task["data"])
            except InvalidRequest as error:
                log.info("task %d: %s", task["id"], error)
                continue
            for number, uri in enumerate(uris, 1):
                name = f"task {task['id']}" + (f", image {number}" if len(uris) > 1 else "")
                # Located when its turn comes: the access token of now would have expired by then.
                yield NamedImage(name, partial(client.image_ref, task["id"], uri))
