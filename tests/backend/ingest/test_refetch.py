"""Labelled images that are not kept any more come from the tool again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clickmask.errors import ImageUnavailable, ToolUnavailable
from clickmask.images.archive import ImageArchive
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest.apply import Ingester, Page
from clickmask.labels.submissions import AnnotationDeleted, Submission
from clickmask.store import Store
from support.accepting import TOOL, FakeTool, box, submitted
from support.pictures import png_data_uri


class PullableTool(FakeTool):
    """Gives each of its submissions, as a part of its own."""

    def __init__(self, *submissions: Submission) -> None:
        super().__init__()
        self.submissions = submissions
        self.pulled = 0

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        self.pulled += 1
        yield Page([AnnotationDeleted(TOOL, "99")], "0")
        for each in self.submissions:
            yield Page([each], each.task)


TASKS = [submitted(box(), task=str(n), annotation=str(n), address=png_data_uri(50 * n)) for n in (1, 2, 3)]


@pytest.fixture
def tool(store: Store, kept: ImageArchive) -> PullableTool:
    tool, ingester = PullableTool(*TASKS), Ingester(store, ImageSource(Fetcher()), kept)
    for each in TASKS:
        ingester.apply(each, tool)
    tool.located.clear()
    return tool


@pytest.fixture
def kept(tmp_path: Path, store: Store) -> ImageArchive:
    return ImageArchive(tmp_path / "images", 2**20, store.is_labelled)


def lose(store: Store, tmp_path: Path, *tasks: str) -> None:
    for image in store.images(TOOL, "1"):
        if image.task in tasks:
            (tmp_path / "images" / image.digest[:2] / image.digest).unlink()


def fetch(tool: PullableTool, store: Store, kept: ImageArchive, stopped: bool = False) -> int:
    return Ingester(store, ImageSource(Fetcher()), kept).refetch_missing(TOOL, tool, "1", lambda: stopped)


def held(store: Store, kept: ImageArchive) -> list[str]:
    return [image.task for image in store.images(TOOL, "1") if kept.holds(image.digest)]


def test_only_what_is_missing_is_fetched(
    tool: PullableTool, store: Store, kept: ImageArchive, tmp_path: Path
) -> None:
    assert fetch(tool, store, kept) == 0
    assert tool.pulled == 0
    lose(store, tmp_path, "2")
    labels = store.labels(TOOL, "1")
    assert fetch(tool, store, kept) == 0
    assert held(store, kept) == ["1", "2", "3"]
    assert [each.task for each in tool.located] == ["2"]
    assert store.labels(TOOL, "1") == labels


def test_what_the_tool_cannot_give_stays_missing_and_keeps_nothing_else_out(
    tool: PullableTool, store: Store, kept: ImageArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(store, tmp_path, "1", "2", "3")
    locate = tool.locate

    def some(submission: Submission):
        if submission.task == "1":
            raise ImageUnavailable("it is gone")
        other = submission if submission.task == "3" else submitted(address=png_data_uri(7))
        return locate(other)

    monkeypatch.setattr(tool, "locate", some)
    assert fetch(tool, store, kept) == 2
    assert held(store, kept) == ["3"]
    assert len(list((tmp_path / "images").glob("??/*"))) == 1, "the other image of task 2 is not kept for it"


def test_a_tool_that_is_away_is_said(
    tool: PullableTool, store: Store, kept: ImageArchive, tmp_path: Path
) -> None:
    lose(store, tmp_path, "1")
    tool.failing = ToolUnavailable("it is away")
    with pytest.raises(ToolUnavailable):
        fetch(tool, store, kept)


def test_fetching_stops_when_told_and_when_there_is_no_room(
    tool: PullableTool, store: Store, kept: ImageArchive, tmp_path: Path
) -> None:
    lose(store, tmp_path, "1", "2")
    assert fetch(tool, store, kept, stopped=True) == 2
    assert tool.located == []
    full = ImageArchive(tmp_path / "images", 1, store.is_labelled)
    assert fetch(tool, store, full) == 2
    assert len(tool.located) == 1
