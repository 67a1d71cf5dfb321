"""`clickmask prelabel cvat`, against the stand-in for CVAT.

The model calls each pixel by the strongest of its colours: green is `cell`, blue is `nucleus`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import Result
from typer.testing import CliRunner

from clickmask.errors import Busy
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.models.versions import ProjectModels
from clickmask.types import Mask
from clickmask.workbench import Workbench
from clickmask_adapters.cli import app
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.mask_points import points_to_mask
from support.cvat_server import TOKEN, CvatServer
from support.drawn import disc, rectangle
from support.foreground_networks import offer_salient
from support.model_drafts import draft

SIZE = (60, 80)
NUCLEUS, CELL = disc(SIZE, (20, 20), 12), rectangle(SIZE, (50, 30, 70, 50))


def picture(shade: int = 250, *, blank: bool = False) -> bytes:
    pixels = np.full((*SIZE, 3), (shade, 0, 0), np.uint8)
    if not blank:
        pixels[NUCLEUS], pixels[CELL] = (0, 0, 250), (150, 200, 0)
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, "png")
    return raw.getvalue()


@pytest.fixture
def cvat() -> Iterator[CvatServer]:
    server = CvatServer()
    server.add_project(1, ("cell", "nucleus"))
    yield server
    server.close()


@pytest.fixture
def home(cvat: CvatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CVAT_URL", cvat.url)
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", TOKEN)
    project = ProjectModels(tmp_path / "home" / "models").of("cvat", "1")
    project.promote(project.save(draft(10.0)).id)
    return tmp_path / "home"


def prelabel(project: str = "1", *options: str) -> Result:
    return CliRunner().invoke(app, ["prelabel", "cvat", project, *options])


def drawn(cvat: CvatServer, job: int) -> list[dict[str, Any]]:
    return cvat.annotations[job]["shapes"]


def mask_of(shape: dict[str, Any]) -> Mask:
    if shape["type"] == "mask":
        return points_to_mask(shape["points"], SIZE)
    return polygons_to_mask([np.array(shape["points"]).reshape(-1, 2)], SIZE)


def label_type(cvat: CvatServer, name: str, kind: str) -> None:
    next(label for label in cvat.labels.values() if label["name"] == name)["type"] = kind


def test_new_jobs_get_what_the_model_finds_on_each_of_their_frames(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3, frames=[picture(), picture(240)], first=5)
    cvat.add_job(4, frames=[picture(230)])
    result = prelabel()
    assert result.exit_code == 0, result.output
    assert result.stdout == "6 objects drawn in 2, 0 left as they were, 0 left out\n"
    assert [shape["frame"] for shape in drawn(cvat, 3)] == [5, 5, 6, 6]
    for shape in drawn(cvat, 3):
        expected = NUCLEUS if shape["label_id"] == cvat.label_id("nucleus", 3) else CELL
        np.testing.assert_array_equal(mask_of(shape), expected)
        assert shape["source"] == "auto"
        assert 0.8 < shape["score"] <= 1


def test_another_annotator_draws_what_the_job_has_labels_for(
    cvat: CvatServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_salient(home, monkeypatch)
    cvat.add_project(2, ("object",))
    cvat.add_job(3, frames=[picture(), picture(240)], project=2)
    result = prelabel("2", "--annotator", "unprompted:salient")
    assert result.stdout == "2 objects drawn in 1, 0 left as they were, 0 left out\n", result.output
    for shape in drawn(cvat, 3):
        assert mask_iou(mask_of(shape), NUCLEUS | CELL) > 0.9


def test_the_type_of_a_label_says_how_it_is_drawn(cvat: CvatServer, home: Path) -> None:
    label_type(cvat, "nucleus", "polygon")
    label_type(cvat, "cell", "rectangle")
    cvat.add_job(3, frames=[picture()])
    prelabel()
    shapes = {shape["type"]: shape for shape in drawn(cvat, 3)}
    assert shapes["rectangle"]["points"] == [50, 30, 70, 50]
    overlap = mask_of(shapes["polygon"])
    assert (overlap & NUCLEUS).sum() >= 0.98 * (overlap | NUCLEUS).sum()


def test_a_label_that_the_task_has_not_is_said(cvat: CvatServer, home: Path) -> None:
    label_type(cvat, "cell", "tag")
    cvat.add_job(3, frames=[picture()])
    result = prelabel()
    assert result.exit_code == 1
    assert "job 3: it has no label to draw cell with" in result.stderr
    assert [shape["label_id"] for shape in drawn(cvat, 3)] == [cvat.label_id("nucleus", 3)]


@pytest.mark.parametrize(
    "begun",
    [
        {"state": "in progress"},
        {"state": "completed", "stage": "acceptance"},
        {"type": "ground_truth"},
        {"dimension": "3d"},
    ],
)
def test_a_job_that_is_not_new_is_left_as_it_is(cvat: CvatServer, home: Path, begun: dict[str, str]) -> None:
    cvat.add_job(3, frames=[picture()], **begun)
    assert prelabel().stdout == "0 objects drawn in 0, 1 left as they were, 0 left out\n"
    assert drawn(cvat, 3) == []


def test_what_somebody_has_drawn_is_never_added_to(cvat: CvatServer, home: Path) -> None:
    for job in (3, 4, 5):
        cvat.add_job(job, frames=[picture()])
    cvat.draw(3, "rectangle", [1, 1, 5, 5], label_id=cvat.label_id("cell", 3))
    keyframe = {"frame": 0, "points": [1.0, 1.0, 5.0, 5.0]}
    cvat.draw_track(4, [keyframe], label_id=cvat.label_id("cell", 4))
    cvat.annotations[5]["tags"].append({"id": 1, "frame": 0, "label_id": cvat.label_id("cell", 5)})
    assert prelabel().stdout == "0 objects drawn in 0, 3 left as they were, 0 left out\n"
    assert not any(method == "PATCH" for method, _, _ in cvat.asked)


def test_a_job_in_which_somebody_begins_meanwhile_is_left_to_them(
    cvat: CvatServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat.add_job(3, frames=[picture()])
    annotations = CvatClient.annotations

    def begun(self: CvatClient, job: int) -> dict[str, Any]:
        found = annotations(self, job)
        if not drawn(cvat, 3):
            cvat.draw(3, "rectangle", [1, 1, 5, 5], label_id=cvat.label_id("cell", 3))
        return found

    monkeypatch.setattr(CvatClient, "annotations", begun)
    assert prelabel().stdout == "0 objects drawn in 0, 1 left as they were, 0 left out\n"
    assert [shape["source"] for shape in drawn(cvat, 3)] == ["manual"]


def test_the_second_time_nothing_is_drawn_again(cvat: CvatServer, home: Path) -> None:
    for job in (3, 4):
        cvat.add_job(job, frames=[picture()])
    prelabel()
    before = {job: list(drawn(cvat, job)) for job in (3, 4)}
    assert prelabel().stdout == "0 objects drawn in 0, 2 left as they were, 0 left out\n"
    assert {job: drawn(cvat, job) for job in (3, 4)} == before


def test_stopped_within_a_job_it_leaves_the_job_as_it_was(
    cvat: CvatServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat.add_job(3, frames=[picture()])
    cvat.add_job(4, frames=[picture(240), picture(230)])
    image_ref = CvatClient.image_ref

    def interrupted(self: CvatClient, address: str) -> object:
        if "/4/" in address and "number=1" in address:
            raise KeyboardInterrupt
        return image_ref(self, address)

    monkeypatch.setattr(CvatClient, "image_ref", interrupted)
    result = prelabel()
    assert (result.exit_code, result.stdout) == (
        130,
        "2 objects drawn in 1, 0 left as they were, 0 left out\n",
    )
    assert drawn(cvat, 4) == []
    monkeypatch.setattr(CvatClient, "image_ref", image_ref)
    assert prelabel().stdout == "4 objects drawn in 1, 1 left as they were, 0 left out\n"


def test_deleted_frames_and_videos_are_not_drawn_on(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3, frames=[picture(), picture(240)])
    cvat.metas[3]["deleted_frames"] = [0]
    cvat.add_job(4, frames=[picture(), picture(240)])
    del cvat.metas[4]["frames"][1:]
    result = prelabel()
    assert [shape["frame"] for shape in drawn(cvat, 3)] == [1, 1]
    assert drawn(cvat, 4) == []
    assert "job 4: it is of a video" in result.stderr


def test_a_frame_that_cannot_be_read_is_said_and_the_others_are_drawn(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3, frames=[picture(), picture(240)])
    cvat.images[3, 0] = b"no picture"
    result = prelabel()
    assert "job 3, frame 0: " in result.stderr
    assert [shape["frame"] for shape in drawn(cvat, 3)] == [1, 1]


def test_a_job_in_which_nothing_is_found_stays_empty(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3, frames=[picture(blank=True)])
    assert prelabel().exit_code == 0
    assert not any(method == "PATCH" for method, _, _ in cvat.asked)


def test_what_cvat_refuses_is_said_and_the_next_job_goes_on(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3, frames=[picture()])
    cvat.add_job(4, frames=[picture()])
    create = cvat._create
    cvat._create = lambda job, *rest: (400, ["too many"]) if job == 3 else create(job, *rest)  # type: ignore[method-assign]  # the real one is called for the others
    result = prelabel()
    assert "job 3: CVAT answers 400: too many" in result.stderr
    assert (len(drawn(cvat, 3)), len(drawn(cvat, 4))) == (0, 2)
    cvat._create = lambda *_: (503, "away")  # type: ignore[method-assign]  # as above
    assert "CVAT answers 503" in prelabel().stderr


def test_it_waits_its_turn_where_others_annotate(
    cvat: CvatServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat.add_job(3, frames=[picture()])
    annotate, refused = Workbench.annotate, iter([Busy("others", retry_after=0.0)])

    def busy_once(self: Workbench, *arguments: Any) -> Any:
        for error in refused:
            raise error
        return annotate(self, *arguments)

    monkeypatch.setattr(Workbench, "annotate", busy_once)
    assert prelabel().stdout == "2 objects drawn in 1, 0 left as they were, 0 left out\n"


def test_another_project_has_its_own_model(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3, None, frames=[picture()])
    result = prelabel("task-30")
    assert "no model of the cvat project 'task-30' is served yet" in result.stderr.replace("\n", " ")
