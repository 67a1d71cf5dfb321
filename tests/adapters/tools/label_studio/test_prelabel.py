"""`clickmask prelabel label-studio`, against a stand-in that answers as Label Studio does.

The model calls each pixel by the strongest of its colours: green is `cell`, blue is `nucleus`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from clickmask.masks.regions import mask_iou
from clickmask.models.versions import ProjectModels
from clickmask_adapters.cli import app
from clickmask_adapters.tools.label_studio import prelabel as prelabelling
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.shapes import brush_rle_to_mask
from support.drawn import disc, rectangle
from support.foreground_networks import offer_salient
from support.label_studio_standin import TOKEN, LabelStudioStandin, label_studio_standin
from support.labelled import png
from support.model_drafts import draft
from support.waiting import until

SIZE = (60, 80)
NUCLEUS, CELL = disc(SIZE, (20, 20), 12), rectangle(SIZE, (50, 30, 70, 50))
XML = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cell"/><Label value="nucleus"/>'
    "</BrushLabels></View>"
)


def picture(shade: int = 250) -> bytes:
    pixels = np.full((*SIZE, 3), (shade, 0, 0), np.uint8)
    pixels[NUCLEUS], pixels[CELL] = (0, 0, 250), (150, 200, 0)
    return png(pixels)


@pytest.fixture
def studio() -> Iterator[LabelStudioStandin]:
    with label_studio_standin() as standin:
        standin.xml = XML
        for number in range(4, 9):
            standin.add_task(number)
            standin.pictures[number] = picture(200 + number)
        yield standin


@pytest.fixture
def home(studio: LabelStudioStandin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setattr(prelabelling, "PAGE", 2)
    return tmp_path / "home"


def serve(home: Path, weight: float = 10.0) -> str:
    """The name under which Label Studio keeps what the new model finds."""
    project = ProjectModels(home / "models").of("label_studio", "3")
    return f"builtin, unet {project.promote(project.save(draft(weight)).id).id}"


def prelabel(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["prelabel", *(arguments or ("label-studio", "3"))])


def test_every_task_gets_the_prediction_of_the_model(studio: LabelStudioStandin, home: Path) -> None:
    version = serve(home)
    result = prelabel()
    assert result.exit_code == 0, result.output
    assert result.stdout == "10 objects drawn in 5, 0 left as they were, 0 left out\n"
    for number in range(4, 9):
        (made,) = studio.tasks[number]["predictions"]
        assert (made["task"], made["model_version"]) == (number, version)
        assert made["score"] == min(region["score"] for region in made["result"]) > 0.8
        masks = {region["value"]["brushlabels"][0]: region["value"]["rle"] for region in made["result"]}
        np.testing.assert_array_equal(brush_rle_to_mask(masks["nucleus"], SIZE), NUCLEUS)
        np.testing.assert_array_equal(brush_rle_to_mask(masks["cell"], SIZE), CELL)


def test_another_annotator_draws_what_the_project_has_labels_for(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_salient(home, monkeypatch)
    studio.xml = XML.replace("nucleus", "object")
    arguments = ("label-studio", "3", "--annotator", "unprompted:salient")
    result = prelabel(*arguments)
    assert result.stdout == "5 objects drawn in 5, 0 left as they were, 0 left out\n", result.output
    for number in range(4, 9):
        (made,) = studio.tasks[number]["predictions"]
        assert made["model_version"] == "builtin, unprompted:salient"
        (region,) = made["result"]
        assert region["value"]["brushlabels"] == ["object"]
        assert mask_iou(brush_rle_to_mask(region["value"]["rle"], SIZE), NUCLEUS | CELL) > 0.9
    assert prelabel(*arguments).stdout == "0 objects drawn in 0, 5 left as they were, 0 left out\n"
    serve(home)
    assert prelabel().exit_code == 0
    assert "unet" in studio.model_version  # that of the model, in the place of the annotator's


def test_an_annotator_that_cannot_run_draws_nowhere(studio: LabelStudioStandin, home: Path) -> None:
    for name, reason in (
        ("unprompted:salient", "weights fetch salient"),
        ("nobody", "no annotator 'nobody'"),
    ):
        result = prelabel("label-studio", "3", "--annotator", name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert reason in result.stderr


def test_what_people_have_touched_is_left_as_it_is(studio: LabelStudioStandin, home: Path) -> None:
    serve(home)
    submitted, skipped, begun = (studio.tasks[number] for number in (4, 5, 6))
    submitted["annotations"].append(studio.annotation(4))
    skipped["annotations"].append(studio.annotation(5, was_cancelled=True))
    begun["drafts"].append({"id": 1, "result": []})
    result = prelabel()
    assert result.stdout == "4 objects drawn in 2, 2 left as they were, 0 left out\n"
    assert not submitted["predictions"] + skipped["predictions"] + begun["predictions"]


def test_a_task_is_not_done_twice_until_there_is_another_model(
    studio: LabelStudioStandin, home: Path
) -> None:
    first = serve(home)
    prelabel()
    assert prelabel().stdout == "0 objects drawn in 0, 5 left as they were, 0 left out\n"
    assert studio.model_version == first
    second = serve(home, 5.0)
    assert prelabel().exit_code == 0
    versions = [[each["model_version"] for each in task["predictions"]] for task in studio.tasks.values()]
    assert versions == [[first, second]] * 5
    assert studio.model_version == second


def test_the_predictions_that_the_project_was_told_to_show_stay_shown(
    studio: LabelStudioStandin, home: Path
) -> None:
    serve(home)
    studio.model_version = "somebody else's"
    assert prelabel().exit_code == 0
    assert studio.model_version == "somebody else's"


def test_refined_predictions_are_another_version(studio: LabelStudioStandin, home: Path) -> None:
    plain = serve(home)
    prelabel()
    result = prelabel("label-studio", "3", "--refine")
    assert result.stdout == "10 objects drawn in 5, 0 left as they were, 0 left out\n"
    versions = [each["model_version"] for each in studio.tasks[4]["predictions"]]
    assert versions == [plain, f"{plain} refined by builtin"]


@pytest.mark.slow
def test_killed_and_begun_again_it_does_no_task_twice(studio: LabelStudioStandin, home: Path) -> None:
    """Killed when a prediction has arrived, three times over, each time after it has made one more."""
    version = serve(home)
    command = [sys.executable, "-m", "clickmask_adapters.cli", "prelabel", "label-studio", "3"]
    for done in range(3):
        running: list[subprocess.Popen[bytes]] = []

        def kill(running: list[subprocess.Popen[bytes]] = running) -> None:
            until(lambda: running)
            os.kill(running[0].pid, signal.SIGKILL)

        studio.before_prediction = kill
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            running.append(process)
            assert process.wait() == -signal.SIGKILL
        until(lambda done=done: sum(len(each["predictions"]) for each in studio.tasks.values()) == done + 1)
    studio.before_prediction = lambda: None
    assert prelabel().stdout == "4 objects drawn in 2, 3 left as they were, 0 left out\n"
    for task in studio.tasks.values():
        assert [each["model_version"] for each in task["predictions"]] == [version]


def test_what_cannot_be_done_is_said_and_the_others_go_on(studio: LabelStudioStandin, home: Path) -> None:
    serve(home)
    studio.tasks[5]["data"] = {}
    studio.pictures[6] = b"no picture"
    studio.before_prediction = lambda: studio.tasks.pop(4, None) and None  # deleted while it is annotated
    result = prelabel()
    assert result.exit_code == 1
    assert "task 5: the task has no image" in result.stderr
    assert "task 6: " in result.stderr
    assert "task 4: Label Studio answers 400" in result.stderr
    assert result.stdout == "4 objects drawn in 2, 0 left as they were, 3 left out\n"
    assert studio.tasks[7]["predictions"] and studio.tasks[8]["predictions"]


def test_without_a_model_nothing_is_asked_of_the_tasks(studio: LabelStudioStandin, home: Path) -> None:
    result = prelabel()
    assert result.exit_code == 1
    assert "`clickmask train` makes one" in result.stderr.replace("\n", " ")
    assert "/api/tasks" not in studio.asked


def test_after_a_training_that_declined_it_is_not_sent_back_to_the_training(
    studio: LabelStudioStandin, home: Path
) -> None:
    made = draft(10.0)
    said = "not promoted: it is poor. Raise CLICKMASK_TRAIN_SECONDS, then train again"
    report = {"decision": said, "promoted": False}
    declined = replace(made, provenance=replace(made.provenance, report=report))
    version = ProjectModels(home / "models").of("label_studio", "3").save(declined)
    result = prelabel()
    assert result.exit_code == 1
    assert f"the newest, {version.id}, was {said}\n" in result.stderr
    assert "clickmask train" not in result.stderr


def test_a_label_studio_that_breaks_down_ends_it(studio: LabelStudioStandin, home: Path) -> None:
    serve(home)
    studio.fail_after = 1
    result = prelabel()
    assert result.exit_code == 1
    assert "Label Studio answers 500" in result.stderr
    studio.fail_after, studio.refused = None, 500
    assert "Label Studio answers 500" in prelabel().stderr
    studio.refused = None
    assert prelabel().stdout == "6 objects drawn in 3, 2 left as they were, 0 left out\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("roboflow", "3"), "it is cvat, label-studio or page"),
        (("label-studio", "three"), "not the number of a Label Studio project"),
        (("cvat", "3"), "no cvat is configured: set CVAT_URL"),
    ],
)
def test_what_is_no_project_is_refused(
    arguments: tuple[str, ...], said: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = prelabel(*arguments)
    assert result.exit_code != 0
    assert said in result.stderr


def test_an_interrupt_ends_it_with_what_was_done(
    studio: LabelStudioStandin, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(home)
    add_prediction = LabelStudioClient.add_prediction

    def interrupted(self: LabelStudioClient, prediction: Mapping[str, Any]) -> None:
        if prediction["task"] == 6:
            raise KeyboardInterrupt
        add_prediction(self, prediction)

    monkeypatch.setattr(LabelStudioClient, "add_prediction", interrupted)
    result = prelabel()
    assert result.exit_code == 130
    assert result.stdout == "4 objects drawn in 2, 0 left as they were, 0 left out\n"
    assert "goes on from there" in result.stderr
