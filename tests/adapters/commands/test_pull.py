"""`clickmask pull label-studio`, against a stand-in that answers as Label Studio does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import Result
from typer.testing import CliRunner

from clickmask.errors import InvalidRequest
from clickmask.ingest.apply import Ingester, LabelSource, Page
from clickmask.labels.submissions import Change, ProjectDescribed, Submission
from clickmask.store import Store
from clickmask_adapters.cli import app
from clickmask_adapters.commands import _console
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools.label_studio import pull as label_studio_pull
from clickmask_adapters.tools.label_studio.client import client_of
from clickmask_adapters.tools.label_studio.pull import LabelStudioLabels
from support.label_studio_standin import TOKEN, LabelStudioStandin, label_studio_standin, rectangle

TOOL, PROJECT = "label_studio", "3"


@pytest.fixture
def studio() -> Iterator[LabelStudioStandin]:
    with label_studio_standin() as standin:
        yield standin


@pytest.fixture
def home(studio: LabelStudioStandin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setattr(label_studio_pull, "PAGE", 2)
    return tmp_path / "home"


def pull(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pull", *(arguments or ("label-studio", PROJECT))])


def regions(home: Path) -> list[tuple[str, str]]:
    with closing(Store(home / "store.sqlite")) as store:
        return [(label.key.task, label.key.region) for label in store.labels(TOOL, PROJECT, True)]


def test_all_labels_of_a_project_come_page_by_page_with_their_images(
    studio: LabelStudioStandin, home: Path
) -> None:
    for number in (4, 5, 6, 7, 8):
        studio.add_task(number, studio.annotation(number, rectangle(f"of {number}")))
    studio.add_task(9)
    result = pull()
    assert result.exit_code == 0, result.output
    assert result.stdout == "5 taken in, 0 known already, 0 gone, 0 left out\n"
    assert regions(home) == [(str(number), f"of {number}") for number in (4, 5, 6, 7, 8)]
    assert studio.asked.count("/api/tasks") == 4
    with closing(Store(home / "store.sqlite")) as store:
        images = store.images(TOOL, PROJECT)
        assert [image.name for image in images] == [f"picture {number}.png" for number in (4, 5, 6, 7, 8)]
        assert all((home / "images" / image.digest[:2] / image.digest).exists() for image in images)
        (listed,) = store.projects()
        assert (listed.title, listed.categories) == ("Streets", ("Car", "Road"))


def test_a_long_pull_shows_each_annotation_and_a_short_one_nothing(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.add_task(4, studio.annotation(4, rectangle("a")), studio.annotation(4, rectangle("b")))
    assert pull().stderr == ""
    monkeypatch.setattr(_console, "LINE_EVERY_S", 0.0)
    said = pull().stderr.splitlines()
    for known in (1, 2):
        assert f"0 of 1: 0 taken in, {known} known already, 0 gone, 0 left out" in said
    assert said[-1] == "1 of 1: 0 taken in, 2 known already, 0 gone, 0 left out"


def test_a_second_pull_asks_for_no_image_again(studio: LabelStudioStandin, home: Path) -> None:
    studio.add_task(4, studio.annotation(4, rectangle("a")), studio.annotation(4, rectangle("b")))
    assert pull().stdout == "2 taken in, 0 known already, 0 gone, 0 left out\n"
    assert sum("upload" in path for path in studio.asked) == 1
    again = studio.annotation(4, rectangle("c"))
    studio.tasks[4]["annotations"].append(again)
    assert pull().stdout == "1 taken in, 2 known already, 0 gone, 0 left out\n"
    assert sum("upload" in path for path in studio.asked) == 1


def test_a_pull_that_breaks_off_goes_on_where_it_stopped(studio: LabelStudioStandin, home: Path) -> None:
    for number in range(1, 8):
        studio.add_task(number, studio.annotation(number, rectangle("r")))
    studio.fail_after = 2
    broken = pull()
    assert broken.exit_code == 1
    assert broken.stderr.strip() == "Label Studio answers 500: out of order"
    assert len(regions(home)) == 4
    studio.fail_after = None
    del studio.tasks[1]  # what is before the place is looked for as well
    assert pull().stdout == "3 taken in, 0 known already, 1 gone, 0 left out\n"
    assert [task for task, _ in regions(home)] == ["2", "3", "4", "5", "6", "7"]
    assert pull().stdout == "0 taken in, 6 known already, 0 gone, 0 left out\n"


def test_an_interrupt_loses_nothing(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        studio.add_task(number, studio.annotation(number, rectangle("r")))
    apply = Ingester.apply

    def interrupted(ingester: Ingester, change: Change, tool: LabelSource) -> bool:
        if studio.asked.count("/api/tasks") == 2:
            raise KeyboardInterrupt
        return apply(ingester, change, tool)

    monkeypatch.setattr(Ingester, "apply", interrupted)
    result = pull()
    assert result.exit_code == 130
    assert "goes on from there" in result.stderr
    monkeypatch.undo()
    monkeypatch.setenv("CLICKMASK_HOME", str(home))
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    assert pull().stdout == "1 taken in, 0 known already, 0 gone, 0 left out\n"


def test_what_is_gone_from_label_studio_goes_here_too(studio: LabelStudioStandin, home: Path) -> None:
    kept, deleted = studio.annotation(1, rectangle("kept")), studio.annotation(1, rectangle("deleted"))
    studio.add_task(1, kept, deleted)
    studio.add_task(2, studio.annotation(2, rectangle("of a deleted task")))
    pull()
    assert len(regions(home)) == 3
    studio.tasks[1]["annotations"] = [kept]
    del studio.tasks[2]
    assert pull().stdout == "0 taken in, 1 known already, 2 gone, 0 left out\n"
    assert regions(home) == [("1", "kept")]


def without_the_project(monkeypatch: pytest.MonkeyPatch, studio: LabelStudioStandin) -> None:
    answer = LabelStudioStandin.answer

    def gone(self: LabelStudioStandin, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        return (404, {"detail": "Not found."}) if path == "/api/projects/3/" else answer(self, path, query)

    studio.tasks.clear()
    monkeypatch.setattr(LabelStudioStandin, "answer", gone)


def test_a_project_that_was_deleted_is_withdrawn(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio removes a project's webhook with it, and tells nobody."""
    for number in (1, 2):
        studio.add_task(number, studio.annotation(number, rectangle("r")))
    pull()
    without_the_project(monkeypatch, studio)
    assert pull().stdout == "0 taken in, 0 known already, 2 gone, 0 left out\n"
    assert regions(home) == []


def test_a_project_that_never_was_is_refused(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_project(monkeypatch, studio)
    refused = pull()
    assert refused.exit_code == 1
    assert refused.stderr.strip() == "Label Studio has no project 3"


def test_what_a_pull_did_not_show_but_is_there_stays(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.add_task(1, studio.annotation(1, rectangle("r")))
    pull()
    monkeypatch.setattr(LabelStudioStandin, "_page", lambda *_: (200, {"total": 0, "tasks": []}))
    assert pull().stdout == "0 taken in, 0 known already, 0 gone, 0 left out\n"
    assert regions(home) == [("1", "r")]


def test_what_cannot_be_read_is_left_out_and_said(studio: LabelStudioStandin, home: Path) -> None:
    damaged = studio.annotation(1, rectangle("r", value={"rectanglelabels": ["Car"], "x": "wide", "y": 0}))
    missing = studio.annotation(2, rectangle("r"))
    studio.add_task(1, damaged, studio.annotation(1, rectangle("whole")))
    studio.add_task(2, missing)["data"]["image"] = "/data/upload/3/nothing.png"
    result = pull()
    assert result.exit_code == 1
    assert result.stdout == "2 taken in, 0 known already, 0 gone, 2 left out\n"
    first, second = result.stderr.strip().splitlines()
    assert first == ("task 1, annotation 101: region 'r' is damaged and left out: 'wide' is no finite number")
    assert second.startswith("task 2, annotation 102: 127.0.0.1 answered 404")
    assert regions(home) == [("1", "whole")]


def test_what_fails_in_no_expected_way_holds_up_no_pull(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        studio.add_task(number, studio.annotation(number, rectangle("r")))
    accept = Store.accept

    def surprised(store: Store, submission: Submission, *rest: Any) -> bool:
        if submission.task == "2":
            raise ZeroDivisionError("secret path")
        return accept(store, submission, *rest)

    monkeypatch.setattr(Store, "accept", surprised)
    result = pull()
    assert result.stdout == "2 taken in, 0 known already, 0 gone, 1 left out\n"
    assert "something went wrong inside clickmask (ZeroDivisionError)" in result.stderr
    assert [task for task, _ in regions(home)] == ["1", "3"]


def test_a_full_disk_of_images_is_said(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKMASK_KEPT_BYTES", "10")
    studio.add_task(1, studio.annotation(1, rectangle("r")))
    result = pull()
    assert result.exit_code == 0
    assert "1 images are not kept, for want of room: raise CLICKMASK_KEPT_BYTES" in result.stderr
    assert regions(home) == [("1", "r")]


def test_another_label_studio_is_refused_unless_it_moved(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.add_task(1, studio.annotation(1, rectangle("r")))
    pull()
    elsewhere = studio.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("LABEL_STUDIO_URL", elsewhere)
    refused = pull()
    assert refused.exit_code == 1
    assert f"holds the labels of {studio.url}, not of {elsewhere}" in refused.stderr
    assert pull("label-studio", PROJECT, "--moved").exit_code == 0
    assert pull().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("paint", "3"), "there is no tool 'paint'"),
        (("label-studio", "three"), "'three' is not the number of a Label Studio project"),
        (("label-studio", "77"), "Label Studio has no project 77"),
    ],
)
def test_what_names_nothing_is_refused(home: Path, arguments: tuple[str, str], said: str) -> None:
    result = pull(*arguments)
    assert result.exit_code != 0
    assert said in result.stderr.replace("\n", " ")


def test_without_an_address_nothing_is_pulled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL")
    result = pull()
    assert result.exit_code == 1
    assert "set LABEL_STUDIO_URL" in result.stderr


@pytest.mark.parametrize("event", [b"no json", b"[1]"])
def test_what_is_no_event_is_refused(home: Path, event: bytes) -> None:
    with pytest.raises(InvalidRequest):
        LabelStudioLabels(client_of(Settings())).changes(event)


def test_an_event_that_is_read_again_says_nothing_of_its_project(
    studio: LabelStudioStandin, home: Path
) -> None:
    """It may have waited for its image for hours, and the project has other labels since."""
    studio.add_task(1)
    event = orjson.dumps(studio.event("ANNOTATION_CREATED", studio.annotation(1, rectangle("r"))))
    labels = LabelStudioLabels(client_of(Settings()))
    assert [type(change) for change in labels.changes(event)] == [ProjectDescribed, Submission]
    assert [type(change) for change in labels.changes(event, retry=True)] == [Submission]


def test_while_label_studio_is_out_of_order_nothing_is_gone(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelStudioStandin, "answer", lambda *_: (503, {"detail": "restarting"}))
    with pytest.raises(ToolError, match="503"):
        list(LabelStudioLabels(client_of(Settings())).gone([("1", "1")], "3"))


def test_a_part_says_how_many_are_to_come(studio: LabelStudioStandin, home: Path) -> None:
    for number in range(1, 6):
        studio.add_task(number)
    parts: list[Page] = list(LabelStudioLabels(client_of(Settings())).pull(PROJECT))
    assert [(part.position, part.remaining) for part in parts] == [
        ("1", 4),
        ("2", 3),
        ("3", 2),
        ("4", 1),
        ("5", 0),
    ]
