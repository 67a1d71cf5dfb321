"""A labeling tool whose events are the changes themselves, pickled."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

from clickmask.errors import ClickmaskError
from clickmask.labels.geometry import Rectangle
from clickmask.labels.submissions import Change, Region, Submission
from clickmask.types import ImageRef
from support.pictures import SIZE, png_data_uri

TOOL = "fake"
OTHER = png_data_uri(200)


class FakeTool:
    """An event is a list of changes; an exception among them is raised where it stands."""

    origin = "http://fake"

    def __init__(self) -> None:
        self.located: list[Submission] = []
        self.asked: list[bool] = []  # whether again, of each event
        self.failing: Exception | None = None

    def changes(self, event: bytes, retry: bool = False) -> Iterable[Change]:
        self.asked.append(retry)
        for change in pickle.loads(event):  # what a test made itself
            if isinstance(change, Exception):
                raise change
            yield change

    def locate(self, submission: Submission) -> ImageRef:
        self.located.append(submission)
        if self.failing:
            raise self.failing
        return ImageRef(submission.address)


def event(*changes: Change | ClickmaskError | Exception) -> bytes:
    return pickle.dumps(list(changes))


def box(number: int = 0, region: str = "r", category: str = "cat", proposal: str | None = None) -> Region:
    """A rectangle of 10 x 10 px."""
    return Region(region, category, Rectangle((number, number, number + 10, number + 10)), proposal)


def submitted(
    *regions: Region, annotation: str = "1", task: str = "1", at: float = 1.0, **more: object
) -> Submission:
    """Of project 1, on a grey picture."""
    wanted: dict[str, object] = {
        "tool": TOOL,
        "project": "1",
        "task": task,
        "annotation": annotation,
        "address": png_data_uri(),
        "name": "grey.png",
        "size": SIZE,
        "regions": regions,
        "updated_at": at,
    }
    return Submission(**(wanted | more))  # type: ignore[arg-type]  # the fields by their names
