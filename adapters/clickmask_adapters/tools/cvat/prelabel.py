"""`clickmask prelabel cvat`: shapes for the jobs of a project that nobody has touched."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from clickmask.errors import Busy, ImageRefused, ImageUnavailable, InvalidImage
from clickmask.types import Prediction
from clickmask.workbench import Workbench
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools._prelabel import Step, require_trained
from clickmask_adapters.tools.cvat.answers import Drawable, drawable, shapes
from clickmask_adapters.tools.cvat.client import CvatClient, CvatError, client_of
from clickmask_adapters.tools.cvat.labels import TOOL, Frame, JobContent, frame_address, frames
from clickmask_adapters.tools.cvat.pull import container_of

Json = Mapping[str, Any]


def prelabel(workbench: Workbench, settings: Settings, project: str) -> Iterator[Step]:
    """Give each new job without annotations the objects that the model in service finds on its frames.

    All shapes of a job come in one request, so that stopped at any time it has all of them or none; a
    job in which somebody begins meanwhile gets none. Videos are left out: of these, CVAT's people track.
    Raises InvalidRequest for what names no project, AnnotatorNotReady and CvatError.
    """
    container = container_of(project)
    require_trained(workbench, TOOL, project)
    client = client_of(settings)
    # All of them first: each upload moves its job to the end of the pages.
    rows = {row["id"]: row for row, _ in client.jobs(container)}
    remaining = sum(row["frame_count"] for row in rows.values())
    for number, row in sorted(rows.items()):
        remaining -= row["frame_count"]
        if not _is_new(row):
            yield Step(remaining, images=row["frame_count"], untouched=1)
            continue
        try:
            yield from _Job(workbench, client, settings.min_iou, project).annotate(number, remaining)
        except CvatError as error:
            if not error.is_about_this:
                raise
            yield Step(remaining, left_out=(f"job {number}: {error}",))


class _Job:
    def __init__(self, workbench: Workbench, client: CvatClient, min_iou: float, project: str) -> None:
        self._workbench, self._client = workbench, client
        self._min_iou = min_iou
        self._project = project

    def annotate(self, number: int, later: int) -> Iterator[Step]:
        """One step a frame, and one for the upload. `later`: images of the jobs after this one."""
        content = self._client.read_job(number)
        wanted = [frame for frame in frames(content) if not frame.deleted]
        left = len(wanted)
        if not _is_empty(content):
            yield Step(later, images=left, untouched=1)
            return
        if any(frame.of_video for frame in wanted):
            yield Step(later, images=left, left_out=(f"job {number}: it is of a video",))
            return
        labels = drawable(content.labels)
        drawn: list[dict[str, Any]] = []
        objects = 0
        without: set[str] = set()
        for frame in wanted:
            left -= 1
            try:
                found = self._found(number, frame, labels)
            except (InvalidImage, ImageRefused, ImageUnavailable) as error:
                sentence = f"job {number}, frame {frame.number}: {error}"
                yield Step(later + left, images=1, left_out=(sentence,))
                continue
            without |= {label for label, _ in found} - labels.keys()
            found = [each for each in found if each[0] in labels]
            drawn += shapes(found, frame.number, labels, objects + 1, self._min_iou)
            objects += len(found)
            yield Step(later + left, images=1)
        yield self._upload(number, later, drawn, objects, without)

    def _upload(
        self, number: int, later: int, drawn: list[dict[str, Any]], objects: int, without: set[str]
    ) -> Step:
        names = ", ".join(sorted(without))
        left_out = (f"job {number}: it has no label to draw {names} with",) if without else ()
        # Looked at again: the frames have taken a while.
        if not _is_new(self._client.job(number)) or _shapes_in(self._client.annotations(number)):
            return Step(later, untouched=1, left_out=left_out)
        if drawn:
            self._client.add_shapes(number, drawn)
        return Step(later, containers=1, objects=objects, left_out=left_out)

    def _found(self, job: int, frame: Frame, labels: Mapping[str, Drawable]) -> list[tuple[str, Prediction]]:
        """Everything; what has no label to be drawn with is not remembered as shown."""
        # Asked for each time: another model may have been promoted since the one before.
        annotator, _ = require_trained(self._workbench, TOOL, self._project)
        ref = self._client.image_ref(frame_address(job, frame.number))
        missing: list[tuple[str, Prediction]] = []

        def can_be_drawn(label: str, prediction: Prediction) -> bool:
            if label not in labels:
                missing.append((label, prediction))
            return label in labels

        while True:
            try:
                made = self._workbench.prelabel(ref, annotator, TOOL, can_be_drawn)
                return [(label, each.prediction) for label, each in made] + missing
            except Busy as error:
                time.sleep(error.retry_after)


def _is_new(job: Json) -> bool:
    """Whether nobody has begun with it; neither is it one by which others are judged."""
    return (job["state"], job["stage"], job.get("type", "annotation"), job.get("dimension", "2d")) == (
        "new",
        "annotation",
        "annotation",
        "2d",
    )


def _is_empty(content: JobContent) -> bool:
    return _is_new(content.job) and not _shapes_in(content.annotations)


def _shapes_in(annotations: Json) -> bool:
    return any(annotations.get(kind) for kind in ("shapes", "tracks", "tags", "intervals"))
