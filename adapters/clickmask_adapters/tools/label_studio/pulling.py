"""Labels out of Label Studio: what an event means, and everything that a project has accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import orjson

from clickmask.errors import InvalidRequest, UnknownProject
from clickmask.intake import Pulled
from clickmask.labels import AnnotationDeleted, Change, ProjectDescribed, Submission, TaskDeleted
from clickmask.types import ImageRef
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio import accepted, label_config
from clickmask_adapters.tools.label_studio.accepted import TOOL
from clickmask_adapters.tools.label_studio.client import LabelStudioClient, LabelStudioError, client_of

PAGE = 50  # tasks: with 20 annotations of 100 kB each a page is 100 MB already

Json = Mapping[str, Any]


def accepting(settings: Settings) -> LabelStudioLabels:
    """The labels of the Label Studio that the settings name."""
    return LabelStudioLabels(client_of(settings))


class LabelStudioLabels:
    """The labels of one Label Studio, for `clickmask.intake`."""

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client

    @property
    def origin(self) -> str | None:
        return self._client.url

    def changes(self, event: bytes, again: bool = False) -> Iterator[Change]:
        """What the event means. Raises InvalidRequest for one that cannot be read.

        `again`: without what it says of its project, which was taken in before and may be old by now.
        """
        try:
            parsed = orjson.loads(event)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest("the event is not JSON") from error
        if not isinstance(parsed, Mapping):
            raise InvalidRequest("an event of Label Studio is a JSON object")
        found = accepted.changes(cast("Json", parsed))
        return (each for each in found if not (again and isinstance(each, ProjectDescribed)))

    def locate(self, submission: Submission) -> ImageRef:
        return self._client.image_ref(int(submission.task), submission.address)

    def pull(self, project: str, position: str | None = None) -> Iterator[Pulled]:
        """The project's annotations, task by task from the one after `position`, a page at a time.

        Pages follow the tasks' numbers, so that tasks that come and go meanwhile neither shift nor
        hide others. Raises InvalidRequest for what names no project, UnknownProject for one that there
        is not, and LabelStudioError.
        """
        number = project_number(project)
        found = self._project(number)
        config = label_config.parse(found.get("label_config") or "<View/>")
        changes: list[Change] = [accepted.described(found)]
        last = int(position) if position else 0
        while True:
            tasks, total = self._client.annotated_tasks(number, after=last, page_size=PAGE)
            for place, task in enumerate(tasks):
                last = task["id"]
                for annotation in task.get("annotations", []):
                    changes += accepted.readable(annotation, {**task, "project": number}, config)
                yield Pulled(changes, str(last), remaining=total - place - 1)
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
