"""`clickmask prelabel label-studio` in a real Label Studio: what it gets, what it shows, what comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clickmask.models.versions import ProjectModels
from support.clicking import chromium
from support.drawn import disc, rectangle
from support.label_studio_sdk_oracle import decode_rle
from support.label_studio_server import LabelingPage, LabelStudioServer
from support.labelled import png
from support.model_drafts import draft
from support.waiting import until

pytestmark = pytest.mark.slow

SIZE = (240, 320)
NUCLEUS, CELL = disc(SIZE, (80, 80), 48), rectangle(SIZE, (200, 120, 280, 200))
XML = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cell"/><Label value="nucleus"/>'
    "</BrushLabels></View>"
)
MASKS = {"nucleus": NUCLEUS, "cell": CELL}


def picture(green: int) -> bytes:
    """The model calls each pixel by the strongest of its colours: the less green, the less sure of cells."""
    pixels = np.full((*SIZE, 3), (250, 0, 0), np.uint8)
    pixels[NUCLEUS], pixels[CELL] = (0, 0, 250), (130, green, 0)
    return png(pixels)


class Prelabelling:
    """The command, as somebody runs it."""

    def __init__(self, home: Path, studio: LabelStudioServer) -> None:
        self._home = home
        self._environment = {
            **os.environ, "CLICKMASK_HOME": str(home), "COLUMNS": "200",
            "LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.token,
        }  # fmt: skip

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "clickmask_adapters.cli", *map(str, words)]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: object) -> str:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    def serve(self, project: int, weight: float = 20.0) -> str:
        kept = ProjectModels(self._home / "models").of("label_studio", str(project))
        return f"builtin, unet {kept.promote(kept.save(draft(weight)).id).id}"


@pytest.fixture
def command(studio: LabelStudioServer, tmp_path: Path) -> Prelabelling:
    return Prelabelling(tmp_path / "home", studio)


def predictions(studio: LabelStudioServer, task: int) -> list[dict[str, Any]]:
    return studio.api("GET", "/api/predictions/", params={"task": task})


def test_a_killed_run_goes_on_and_touches_nothing_of_people(
    studio: LabelStudioServer, command: Prelabelling
) -> None:
    project = studio.new_project("prelabelled", XML)
    version = command.serve(project)
    tasks = [studio.upload(project, f"{green}.png", picture(green)) for green in range(150, 240, 10)]
    submitted, skipped, begun, *free = tasks
    studio.api("POST", f"/api/tasks/{submitted}/annotations/", json={"result": []})
    studio.api("POST", f"/api/tasks/{skipped}/annotations/", json={"result": [], "was_cancelled": True})
    studio.api("POST", f"/api/tasks/{begun}/drafts", json={"result": []})

    with command.start("prelabel", "label-studio", project) as process:
        until(lambda: any(predictions(studio, task) for task in free), 120)
        process.send_signal(signal.SIGKILL)
    until(lambda: process.poll() is not None)
    done = sum(len(predictions(studio, task)) for task in free)
    left = len(free) - done
    assert command.run("prelabel", "label-studio", project) == (
        f"{2 * left} objects drawn in {left}, {2 + done} left as they were, 0 left out\n"
    )
    for task in free:
        (made,) = predictions(studio, task)
        assert made["model_version"] == version
        shown = {region["value"]["brushlabels"][0]: region["value"]["rle"] for region in made["result"]}
        assert shown.keys() == MASKS.keys()
        for label, mask in MASKS.items():
            np.testing.assert_array_equal(decode_rle(shown[label]).reshape(*SIZE, 4)[:, :, 3] >= 128, mask)
    assert not any(predictions(studio, task) for task in (submitted, skipped, begun))
    assert [each["result"] for each in studio.annotations(submitted)] == [[]]

    # The Data Manager sorts by what the model is least sure of.
    query = {"ordering": ["tasks:predictions_score"]}
    parameters = {"project": project, "fields": "all", "query": json.dumps(query), "page_size": 100}
    sorted_tasks = studio.api("GET", "/api/tasks", params=parameters)["tasks"]
    assert [task["id"] for task in sorted_tasks if task["id"] in free] == free
    scores = [task["predictions_score"] for task in sorted_tasks if task["id"] in free]
    assert scores == sorted(scores) and len(set(scores)) == len(free)

    # Another model's predictions stand beside these.
    second = command.serve(project, 5.0)
    command.run("prelabel", "label-studio", project)
    assert [len(predictions(studio, task)) for task in free] == [2] * len(free)
    assert studio.api("GET", f"/api/projects/{project}/")["model_version"] == second


def test_what_an_annotator_submits_of_it_is_known_as_the_models(
    studio: LabelStudioServer, command: Prelabelling
) -> None:
    project = studio.new_project("accepted from a model", XML)
    command.serve(project)
    task = studio.upload(project, "a.png", picture(200))
    command.run("prelabel", "label-studio", project)
    (made,) = predictions(studio, task)
    with chromium() as browser:
        page = LabelingPage(browser.new_page(), studio)
        page.log_in()
        page.show(project, task, SIZE[1])
        submitted = page.submit()
    assert {region["id"] for region in submitted["result"]} == {region["id"] for region in made["result"]}
    command.run("pull", "label-studio", project)
    assist = json.loads(command.run("report", "assist", "label-studio", project, "--json"))
    (of_model,) = assist["segmenter"]
    assert (of_model["name"], of_model["untouched"]) == (f"trained:label_studio-{project}", 2)
    (measured,) = json.loads(command.run("report", "segmenters", "label-studio", project, "--json"))[
        "segmenters"
    ]
    assert measured["first"]["iou"] == {"cell": 1.0, "nucleus": 1.0}
