"""Labels and images from CVAT: the changes in an event, and everything in a project."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from clickmask.caches import Lru
from clickmask.errors import InvalidRequest, NotFound
from clickmask.ingest.apply import Page
from clickmask.labels.submissions import AnnotationDeleted, Change, ProjectDescribed, Submission, TaskDeleted
from clickmask.types import ImageRef
from clickmask_adapters.tools import NamedImage
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import parse_object
from clickmask_adapters.tools.cvat import labels
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.labels import TOOL, JobContent, JobJudged, frame_address, frames

log = logging.getLogger(__name__)
MAX_REMEMBERED_JOBS = 10_000
DRAWABLE = labels.AREAS | {"any", "unknown"}  # label types; a tag or a skeleton is not a category of pixels


class CvatLabels:
    """A `clickmask.ingest.apply.LabelSource`: the labels of one CVAT. Called from one thread at a time."""

    def __init__(self, client: CvatClient) -> None:
        self._client = client
        self._taken = Lru[int, float](max_count=MAX_REMEMBERED_JOBS)  # job: its date when last fully read

    @property
    def origin(self) -> str | None:
        return self._client.url

    def locate(self, submission: Submission) -> ImageRef:
        return self._client.image_ref(submission.address)

    def changes(self, event: bytes, retry: bool = False) -> Iterator[Change]:
        """The changes that the event reports. A job is read again only on `retry` or if it was saved since.
        Raises InvalidRequest if the event cannot be read, ToolError if CVAT cannot be asked now."""
        means = labels.meaning(parse_object(event, "the event"))
        if not isinstance(means, JobJudged):
            yield from [means] if means else []
            return
        seen = self._taken.get(means.job) or 0.0
        if (retry or seen < means.updated_at) and (content := self._content(means.job)):
            yield from self._changes_of(content)
            # Only now: a caller that failed in between will ask again.
            self._taken.put(means.job, labels.timestamp(content.job))

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        """The jobs of a project, or of `task-<id>`, from `position` on, oldest update first, one per page.

        Only accepted and rejected jobs have changes; one that is saved meanwhile comes again. Raises
        InvalidRequest if `project` is not a name, NotFound if CVAT does not have it, and ToolError.
        """
        container = container_of(project)
        ((name, number),) = container.items()
        resource = name.removesuffix("_id")
        if not self._client.has(f"/api/{resource}s/{number}"):  # CVAT would list no jobs without an error
            raise NotFound(f"CVAT has no {resource} {number}")
        for job, remaining in self._client.jobs(container, position):
            judged = labels.is_accepted(job) or labels.is_rejected(job)
            content = self._content(job["id"]) if judged else None
            changes = self._changes_of(content) if content else []
            yield Page(changes, job["updated_date"], remaining)

    def gone(self, annotations: Sequence[tuple[str, str]], project: str) -> Iterator[Change]:
        """Deletions of those `annotations`, (task, job), that CVAT no longer has, and submissions of those
        whose task it has moved from `project` to another, which is no event and changes no job's date."""
        for task in dict.fromkeys(task for task, _ in annotations):
            try:
                row = self._client.task(int(task))
            except ToolError as error:
                if error.status != 404:
                    raise
                yield TaskDeleted(TOOL, task)
                continue
            for job in (job for of, job in annotations if of == task):
                if not self._client.has(f"/api/jobs/{int(job)}"):
                    yield AnnotationDeleted(TOOL, job)
                elif labels.project_of(row) != project and (content := self._content(int(job))):
                    yield from self._changes_of(content)

    def _content(self, job: int) -> JobContent | None:
        """A job's content; None if it is gone, which has an event of its own and is found by a pull."""
        try:
            return self._client.read_job(job)
        except ToolError as error:
            if error.status != 404:
                raise
            log.info("%s: job %d is gone", TOOL, job)
            return None

    def _changes_of(self, content: JobContent) -> list[Change]:
        drawn = labels.readable(content)
        if not any(isinstance(each, Submission) for each in drawn):
            return [*drawn]
        job = content.job
        project = job["project_id"]
        row = self._client.project(project) if project is not None else self._client.task(job["task_id"])
        categories = [str(label["name"]) for label in content.labels if label.get("type", "any") in DRAWABLE]
        return [ProjectDescribed(TOOL, labels.project_of(job), str(row["name"]), tuple(categories)), *drawn]


def container_of(project: str) -> dict[str, int]:
    """A filter of CVAT's API: {"project_id": 3} for 3, {"task_id": 7} for task-7. Raises InvalidRequest."""
    named = re.fullmatch(r"(task-)?(\d{1,9})", project)
    if not named:
        raise InvalidRequest(f"{project[:40]!r} is neither the number of a CVAT project nor task-NUMBER")
    return {"task_id" if named[1] else "project_id": int(named[2])}


def project_images(client: CvatClient, project: str) -> Iterator[NamedImage]:
    """Every frame of a project, or of `task-<id>`, by number, but no deleted frames and point clouds; a frame
    comes once, though jobs overlap. Raises InvalidRequest for a wrong name, and ToolError."""
    rows: dict[int, Mapping[str, object]] = {row["id"]: row for row, _ in client.jobs(container_of(project))}
    seen: set[tuple[object, int]] = set()
    for job, row in sorted(rows.items()):
        if row.get("dimension") == "3d":
            continue
        content = JobContent(row, client.meta(job), (), {})
        for frame in frames(content):
            if not frame.deleted and (row["task_id"], frame.number) not in seen:
                seen.add((row["task_id"], frame.number))
                locate = partial(client.image_ref, frame_address(job, frame.number))
                yield NamedImage(f"job {job}, frame {frame.number}", locate)
