"""From the stand-in CVAT into the home by `clickmask pull`, and out of it by API, statistics and exports."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from clickmask_adapters.api import datasets, projects
from clickmask_adapters.cli import app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.cvat_server import TOKEN, CvatServer, picture

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


@pytest.fixture(autouse=True)
def home(cvat: CvatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    variables = {"CLICKMASK_HOME": tmp_path / "home", "CVAT_URL": cvat.url, "CVAT_ACCESS_TOKEN": TOKEN}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "home"


def run(*arguments: str) -> str:
    """All that a command says, on one line."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def pull(project: str = "1") -> str:
    result = CliRunner().invoke(app, ["pull", "cvat", project])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def exported(folder: Path, form: str = "coco", project: str = "1", *options: str) -> tuple[Any, str]:
    """The export's COCO file, None for another form, and what the command said."""
    said = run("export", form, "cvat", project, "--out", str(folder), *options)
    return json.loads(next(folder.glob("annotations/*.json")).read_text()) if form == "coco" else None, said


def asked(path: str, project: str = "1") -> Any:
    home, api = Home(Settings()), FastAPI()
    api.include_router(projects.router(home.workbench, home.models))
    api.include_router(datasets.router(home.workbench, home.settings, home.archive))
    answer = TestClient(api).get(f"/v1/projects/cvat/{project}/{path}")
    home.close()
    assert answer.status_code == 200, answer.text
    return answer.json()


def add_honeypots(cvat: CvatServer) -> None:
    """A task as `validation_params` of mode gt_pool makes it: pictures 4 and 5 are its pool, of which each
    job shows one among its own; frames 6 and 7 of the ground truth job are the pool itself."""
    pictures = [picture(40 + 20 * number) for number in range(6)]
    for job, first, shown in ((1, 0, (0, 1, 4)), (2, 3, (2, 3, 4))):
        names = [f"p{number}.png" for number in shown]
        cvat.add_job(job, frames=[pictures[number] for number in shown], first=first, names=names)
        for frame in range(first, first + 3):
            cvat.draw(job, "polygon", SQUARE, frame=frame)
    shown = (0, 1, 4, 2, 3, 4, 4, 5)
    names = ["placeholder.jpg"] * 6 + ["p4.png", "p5.png"]
    frames = [pictures[number] for number in shown]
    cvat.add_job(3, frames=frames, names=names, type="ground_truth")
    cvat.metas[3]["included_frames"] = [6, 7]
    for frame in (6, 7):
        cvat.draw(3, "polygon", [40, 20, 70, 20, 70, 50], frame=frame, label_id=cvat.label_id("dog", 3))
    for job in (2, 3):
        cvat.jobs[job]["task_id"] = 10


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_on_pictures_of_a_honeypots_pool_only_the_ground_truth_counts(
    cvat: CvatServer, tmp_path: Path, order: tuple[int, ...]
) -> None:
    add_honeypots(cvat)
    for job in order:
        cvat.complete(job)
    assert pull() == "8 taken in, 0 known already, 0 gone, 0 left out"
    made, said = exported(tmp_path / "coco")
    assert "6 images, 6 labels, 2 categories" in said
    names = {image["id"]: image["file_name"] for image in made["images"]}
    categories = {category["id"]: category["name"] for category in made["categories"]}
    drawn = sorted((names[each["image_id"]], categories[each["category_id"]]) for each in made["annotations"])
    assert drawn == [
        *((f"p{number}.png", "cat") for number in range(4)),
        ("p4.png", "dog"),
        ("p5.png", "dog"),
    ]
    listed = asked("labels")
    assert (listed["total"], [label["category"] for label in listed["labels"]].count("dog")) == (6, 2)
    assert asked("labels?all_annotations=true")["total"] == 8
    counted = asked("stats")
    assert (counted["images"], counted["labels"], counted["unlabelled_images"]) == (6, 6, 0)


def test_a_ground_truth_that_finds_nothing_counts_too(cvat: CvatServer, tmp_path: Path) -> None:
    add_honeypots(cvat)
    cvat.annotations[3]["shapes"].pop(0)  # of picture 4
    for job in (3, 1, 2):
        cvat.complete(job)
    pull()
    assert "6 images, 5 labels" in exported(tmp_path / "coco")[1]
    assert asked("labels")["total"] == asked("stats")["labels"] == 5
    assert asked("stats")["unlabelled_images"] == 1


def test_a_frame_that_is_deleted_without_a_save_goes_and_comes_with_a_pull(
    cvat: CvatServer, tmp_path: Path
) -> None:
    cvat.add_job(3, frames=[picture(), picture(80), picture(120)])
    for frame in range(3):
        cvat.draw(3, "polygon", SQUARE, frame=frame)
    cvat.complete(3)
    pull()
    cvat.metas[3]["deleted_frames"] = [1]  # CVAT 2.73 sends no event, and the job keeps its date
    assert pull() == "1 taken in, 2 known already, 0 gone, 0 left out"
    assert "2 images, 2 labels" in exported(tmp_path / "without")[1]
    assert asked("labels")["total"] == 2
    assert pull() == "0 taken in, 3 known already, 0 gone, 0 left out"
    cvat.metas[3]["deleted_frames"] = []
    assert pull() == "1 taken in, 2 known already, 0 gone, 0 left out"
    assert "3 images, 3 labels" in exported(tmp_path / "with")[1]


@pytest.mark.parametrize("pulled", ["1", "2"])
@pytest.mark.parametrize("project", [1, None])
def test_a_task_that_is_moved_to_another_project_takes_its_labels_along(
    cvat: CvatServer, project: int | None, pulled: str
) -> None:
    cvat.add_project(2, labels=("bird", "cat"))
    cvat.add_job(3, frames=[picture(), picture(80)], project=project)
    cvat.add_job(4, project=1, frames=[picture(120)])
    cvat.draw(3, "polygon", SQUARE)
    for job in (3, 4):
        cvat.complete(job)
    was = "1" if project else "task-30"
    pull()
    pull(was)
    assert asked("labels", was)["total"] == 1
    cvat.tasks[30]["project_id"] = cvat.jobs[3]["project_id"] = (
        2  # without an event, or a new date of the job
    )
    (shape,) = cvat.annotations[3]["shapes"]
    shape["label_id"] = cvat.label_id("cat", 3)
    pull(was if pulled == "1" else pulled)  # one of them is enough
    assert asked("labels", was)["total"] == 0
    assert [label["category"] for label in asked("labels", "2")["labels"]] == ["cat"]
    assert asked("stats", "2")["images"] == 2
    assert asked("stats", "1")["images"] == 1


def test_what_has_no_area_is_counted_in_export_and_statistics(cvat: CvatServer, tmp_path: Path) -> None:
    cvat.add_job(3, frames=[picture(40 + 20 * number) for number in range(3)])
    cvat.draw(3, "polygon", SQUARE)
    for kind, points in (("points", [5, 5, 9, 9]), ("polyline", [0, 0, 9, 9]), ("cuboid", [1] * 16)):
        cvat.draw(3, kind, points)
    cvat.draw(3, "skeleton", [], elements=[{"type": "points", "points": [1.0, 2.0]}], frame=1)
    cvat.draw_track(3, [{"frame": 1, "type": "points", "points": [4.0, 4.0], "outside": False}])
    cvat.complete(3)  # frame 1 has only what is no label, frame 2 has nothing
    pull()
    kinds = (
        "5 regions are left out, as no label can be made of them: 1 cuboid, 2 points, 1 polyline, 1 skeleton"
    )
    only = "1 images are left out: they have only such regions"
    for form in ("coco", "yolo"):
        _, said = exported(tmp_path / form, form)
        assert kinds in said
        assert only in said
        assert "2 images, 1 labels" in said
    assert kinds in run("stats", "cvat", "1")
    assert asked("stats")["left_out"] == [kinds, only]


def test_parts_of_a_group_are_one_object_in_every_export(cvat: CvatServer, tmp_path: Path) -> None:
    """A mask and a track's keyframe join the polygons of their group and label; a box does not, nor another
    label."""
    cvat.add_job(3)
    blob = [0, 100, 0, 0, 9, 9]  # all of a box of 10 by 10 pixels
    cvat.draw(3, "polygon", SQUARE, group=7)
    cvat.draw(3, "polygon", [25, 25, 50, 25, 50, 50, 25, 50], group=7)
    cvat.draw(3, "mask", blob, group=7)
    cvat.draw(3, "rectangle", [60, 0, 70, 10], group=7)
    keyframe = {"frame": 0, "type": "polygon", "points": [70, 50, 80, 50, 80, 60, 70, 60], "outside": False}
    cvat.draw_track(3, [keyframe], group=7, label_id=cvat.label_id("cat", 3))
    cvat.draw(3, "polygon", [60, 40, 70, 40, 70, 50, 60, 50], group=7, label_id=cvat.label_id("dog", 3))
    cvat.complete(3)
    pull()
    made, _ = exported(tmp_path / "coco")
    assert sorted(each["area"] for each in made["annotations"]) == [100, 100, 400 + 625 - 25 + 100 + 100]
    assert asked("labels")["total"] == 3


def test_what_an_older_version_took_in_is_read_again_by_a_pull(cvat: CvatServer, home: Path) -> None:
    cvat.add_job(3)
    for points in (SQUARE, [40, 10, 60, 10, 60, 30]):
        cvat.draw(3, "polygon", points, group=7)
    cvat.complete(3)
    pull()
    with closing(sqlite3.connect(home / "store.sqlite")) as connection, connection:  # as it left them
        connection.execute("UPDATE annotations SET known_as = ''")
        connection.execute(
            "INSERT INTO labels SELECT revision, 1, 'other', category, geometry, counts, NULL, 0 FROM labels"
        )
    assert asked("labels")["total"] == 2
    assert pull() == "1 taken in, 0 known already, 0 gone, 0 left out"
    assert asked("labels")["total"] == 1
    assert pull() == "0 taken in, 1 known already, 0 gone, 0 left out"


def test_the_higher_layer_covers_in_class_maps_and_the_smaller_shape_on_one_layer(
    cvat: CvatServer, tmp_path: Path
) -> None:
    cvat.add_job(3)
    dog = cvat.label_id("dog", 3)
    cvat.draw(3, "rectangle", [0, 0, 60, 50], z_order=5, label_id=dog)
    cvat.draw(3, "rectangle", [10, 10, 30, 30], z_order=-2)
    cvat.draw(3, "rectangle", [40, 10, 50, 20], z_order=5)
    cvat.draw(3, "mask", [0, 25, 70, 0, 74, 4], z_order=9, group=2)
    cvat.draw(3, "ellipse", [72, 2, 78, 8], z_order=1, label_id=dog)
    cvat.complete(3)
    pull()
    for form, place in (("png", "masks/*.png"), ("voc", "SegmentationClass/*.png")):
        exported(tmp_path / form, form)
        (path,) = (tmp_path / form).rglob(place)
        classes = np.asarray(PIL.Image.open(path))
        cat, dog_class = (1, 2)
        assert classes[20, 20] == dog_class
        assert classes[15, 45] == cat
        assert classes[2, 72] == cat


def test_a_picture_that_a_later_job_finds_empty_is_empty(cvat: CvatServer, tmp_path: Path) -> None:
    for job in (3, 4):
        cvat.add_job(job, frames=[picture()])
    cvat.draw(3, "polygon", SQUARE)
    cvat.complete(3)
    cvat.complete(4)
    pull()
    assert "1 images, 0 labels" in exported(tmp_path / "coco")[1]
    assert asked("labels")["total"] == asked("stats")["labels"] == 0
    cvat.save(3)
    pull()
    assert asked("labels")["total"] == asked("stats")["labels"] == 1
