"""Labels out of CVAT: what an event means, and everything that a project has accepted."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import orjson

from clickmask.errors import InvalidRequest, UnknownProject
from clickmask.ingest.apply import Page
from clickmask.labels.submissions import AnnotationDeleted, Change, ProjectDescribed, Submission, TaskDeleted
from clickmask.types import ImageRef
from clickmask_adapters.tools.cvat.client import CvatClient, CvatError
from clickmask_adapters.tools.cvat.labels import (
    AREAS,
    TOOL,
    JobAccepted,
    JobContent,
    JobRejected,
    is_accepted,
    is_rejected,
    meaning,
    project_of,
    readable,
    timestamp,
)

log = logging.getLogger(__name__)

MAX_REMEMBERED_JOBS = 10_000  # jobs
DRAWABLE = AREAS | {"any", "unknown"}  # types of a label: a tag or a skeleton is no category of pixels

Json = Mapping[str, Any]


class CvatLabels:
    """The labels of one CVAT, for `clickmask.ingest.apply`. Called from one thread at a time."""

    def __init__(self, client: CvatClient) -> None:
        self._client = client
        self._taken: dict[int, float] = {}  # the date with which a job was read to its end

    @property
    def origin(self) -> str | None:
        return self._client.url

    def locate(self, submission: Submission) -> ImageRef:
        return self._client.image_ref(submission.address)

    def changes(self, event: bytes, retry: bool = False) -> Iterator[Change]:
        """What the event means. A job is read again only if it was saved since it was read, or `retry`.

        Raises InvalidRequest for what is no event, CvatError where CVAT cannot be asked now.
        """
        means = meaning(_parsed(event))
        if not isinstance(means, JobAccepted | JobRejected):
            if means is not None:
                yield means
            return
        if not retry and self._taken.get(means.job, 0.0) >= means.updated_at:
            return
        content = self._content(means.job)
        if content is None:
            return
        yield from self._changes_of(content)
        # Only now: whoever takes them may have failed in between, and will ask again.
        if len(self._taken) >= MAX_REMEMBERED_JOBS:
            self._taken.clear()
        self._taken[means.job] = timestamp(content.job)

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        """The jobs of a project, or of `task-<id>`, from `position` on, oldest update first, one a part.

        Those that are neither accepted nor rejected have no changes. A job that is saved meanwhile
        comes again. Raises InvalidRequest for what names no project, UnknownProject for one that there
        is not, and CvatError.
        """
        container = container_of(project)
        self._require(container)
        for job, remaining in self._client.jobs(container, position):
            judged = is_accepted(job) or is_rejected(job)
            content = self._content(job["id"]) if judged else None
            changes = self._changes_of(content) if content else []
            yield Page(changes, job["updated_date"], remaining)

    def gone(self, annotations: Sequence[tuple[str, str]]) -> Iterator[Change]:
        """The deletions of those of `annotations`, (task, job), that CVAT no longer has."""
        for task in dict.fromkeys(task for task, _ in annotations):
            if _is_gone(partial(self._client.task, int(task))):
                yield TaskDeleted(TOOL, task)
                continue
            for job in (job for of, job in annotations if of == task):
                if _is_gone(partial(self._client.job, int(job))):
                    yield AnnotationDeleted(TOOL, job)

    def _require(self, container: Mapping[str, int]) -> None:
        """Raise UnknownProject unless it is there: CVAT lists the jobs of what is not as none."""
        ((name, number),) = container.items()
        ask = self._client.project if name == "project_id" else self._client.task
        if _is_gone(partial(ask, number)):
            raise UnknownProject(f"CVAT has no {name.removesuffix('_id')} {number}")

    def _content(self, job: int) -> JobContent | None:
        """None where the job is gone: its deletion is an event of its own, and found by a pull."""
        try:
            return self._client.read_job(job)
        except CvatError as error:
            if error.status != 404:
                raise
            log.info("%s: job %d is gone", TOOL, job)
            return None

    def _changes_of(self, content: JobContent) -> list[Change]:
        drawn = readable(content)
        if not any(isinstance(each, Submission) for each in drawn):
            return [*drawn]
        return [self._describe(content.job, content.labels), *drawn]

    def _describe(self, job: Json, labels: Sequence[Json]) -> ProjectDescribed:
        number = job["project_id"]
        row = self._client.project(number) if number is not None else self._client.task(job["task_id"])
        categories = [str(label["name"]) for label in labels if label.get("type", "any") in DRAWABLE]
        return ProjectDescribed(TOOL, project_of(job), str(row["name"]), tuple(categories))


def container_of(project: str) -> dict[str, int]:
    """What CVAT's API filters by: {"project_id": 3} for 3, {"task_id": 7} for task-7."""
    named = re.fullmatch(r"(task-)?(\d{1,9})", project)
    if not named:
        raise InvalidRequest(f"{project[:40]!r} is neither the number of a CVAT project nor task-NUMBER")
    return {"task_id" if named[1] else "project_id": int(named[2])}


def _is_gone(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except CvatError as error:
        if error.status == 404:
            return True
        raise
    return False


def _parsed(event: bytes) -> Json:
    try:
        parsed = orjson.loads(event)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the event is not JSON") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("an event of CVAT is a JSON object")
    return cast("Json", parsed)
