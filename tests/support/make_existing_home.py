"""Makes existing_home.tar.xz: the home folder of an earlier version, for test_existing_home.py.

Written for the code of commit 4ea8372, and run with it:

    git worktree add OLD 4ea8372
    PYTHONPATH=OLD/backend:OLD/adapters:OLD/tests python -P make_existing_home.py existing_home.tar.xz

`label_studio` 7 has two images: one annotated by two people, one of whose annotations was deleted,
and one skipped; `cvat` 3 has the first image too, and a flat one whose embedding is small. The networks
that were "trained" multiply pixels.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from accepting import FakeTool
from drawn import disc
from labelled import brush
from model_drafts import draft
from pictures import data_uri

from clickmask.intake import Intake
from clickmask.jobs import Jobs
from clickmask.kept_images import KeptImages
from clickmask.labels import (
    AnnotationDeleted,
    Ellipse,
    Polygon,
    ProjectDescribed,
    Rectangle,
    Region,
    Submission,
    TaskDeleted,
)
from clickmask.store.progress import SetAside
from clickmask.training.models import Models
from clickmask.training.serving import folder_name
from clickmask.types import ImageRef, Prediction, Prompt
from clickmask_adapters.app import create_images, create_workbench
from clickmask_adapters.settings import Settings

SIZE = (48, 64)
STUDIO, PROJECT = "label_studio", "7"
TURNED = Rectangle((1.0, 2.0, 9.0, 12.0), 30.0)
STRIP = data_uri(np.full((4, 64, 3), 90, np.uint8))


def picture(number: int) -> str:
    """A disc on one grey, and a blue corner."""
    pixels = np.full((*SIZE, 3), 60 + 90 * number, np.uint8)
    pixels[disc(SIZE, (20.0 + 20 * number, 24.0), 10.0)] = (200, 60, 60)
    pixels[:8, : 20 + 30 * number] = (20, 20, 200)
    return data_uri(pixels)


def submission(tool: str, task: int, annotation: str, image: int, *regions: Region, at: float) -> Submission:
    project = PROJECT if tool == STUDIO else "3"
    return Submission(tool, project, str(task), annotation, picture(image), f"{image}.png", SIZE, regions, at)


def make(home: Path) -> None:
    settings = Settings(home=home, precision="f32", runtime="onnxruntime", segmenter="builtin")
    with closing(create_workbench(settings)) as bench:
        store, inbox, images = bench.store, bench.inbox, create_images(settings)
        first, second = (images.identify(ImageRef(picture(number))) for number in (0, 1))
        bench.encode(ImageRef(STRIP))
        store.remember_proposal("clicked", first.digest, Prompt(((20.5, 24.5),)), drawn(20.0))
        store.remember_proposal("seen", second.digest, Prompt(box=(30.0, 14.0, 50.0, 34.0)), drawn(40.0))

        unet = f"unet:{folder_name(STUDIO, PROJECT)}"
        found = [("ahead-1", "cell", drawn(20.0)), ("ahead-2", "nucleus", drawn(40.0))]
        store.remember_preannotated(first.digest, SIZE, unet, found)
        store.remember_preannotated(second.digest, SIZE, unet, [])
        store.remember_preannotated(second.digest, SIZE, "everything", [("ahead-3", "object", drawn(40.0))])

        store.require_origin(STUDIO, "http://studio.example")
        store.set_project_segmenter(STUDIO, PROJECT, "grabcut")
        store.set_unlabelled(STUDIO, PROJECT, "ignore")
        store.set_pull_position("cvat", "3", "2026-11-01T00:00:00Z")
        accept(Intake(store, images, KeptImages(home / "images", 2**20, store.is_labelled)))

        for number in range(5):
            inbox.keep(STUDIO, json.dumps({"action": "TEST", "number": number}).encode())
        store.mark_read(inbox.id, 2)
        store.mark_read(inbox.id, 3, SetAside(3, STUDIO, "the image is away", 1000.0, 2, 4000.0))

        models = Models(home / "models" / folder_name(STUDIO, PROJECT))
        for weight in (2.0, 3.0):
            last = models.save(draft(weight))
        models.promote(models.versions()[0].id)
        assert last.id == models.versions()[-1].id
        bench._cache.close()
    run_jobs(Jobs(home / "jobs"), last.id)


def drawn(x: float) -> Prediction:
    return Prediction(disc(SIZE, (x, 24.0), 9.0), 0.75, "builtin")


def accept(intake: Intake) -> None:
    tool = FakeTool()
    polygon = Polygon((((2.0, 2.0), (20.0, 2.0), (20.0, 30.0)),))
    for change in (
        ProjectDescribed(STUDIO, PROJECT, "Cells", ("cell", "nucleus")),
        submission(
            STUDIO,
            1,
            "11",
            0,
            Region("a", "cell", brush(disc(SIZE, (20.0, 24.0), 10.0)), "clicked"),
            Region("b", "nucleus", polygon),
            at=1000.0,
        ),
        submission(
            STUDIO, 1, "12", 0, Region("a", "cell", Rectangle((1.0, 2.0, 9.0, 12.0), 30.0)), at=2000.0
        ),
        submission(STUDIO, 2, "13", 1, Region("c", "cell", Ellipse((40.0, 24.0), (9.0, 7.0))), at=3000.0),
        replace(submission(STUDIO, 3, "14", 1, at=3500.0), skipped=True),
        submission(STUDIO, 4, "15", 1, Region("gone", "cell", polygon), at=3600.0),
        submission("cvat", 5, "16", 0, Region("d", "car", brush(disc(SIZE, (30.0, 20.0), 8.0))), at=4000.0),
        Submission("cvat", "3", "6", "17", STRIP, "strip.png", (4, 64), (), 4500.0),
        AnnotationDeleted(STUDIO, "15"),
        TaskDeleted("cvat", "99"),
    ):
        intake.take(change, tool)


def run_jobs(jobs: Jobs, version: str) -> None:
    """One each that is done, failed, cancelled, was running when its process was killed, and waits."""
    with jobs.owning() as owner:
        done, _ = jobs.request(STUDIO, PROJECT, 2, owner)
        jobs.change(done.id, state="running", step=40, steps=40, loss=0.25, validation_miou=0.75, seconds=9.0)
        jobs.change(done.id, state="done", version=version, promoted=True, message="promoted: it is good")
        failed, _ = jobs.request("cvat", "3", 1, owner)
        jobs.change(failed.id, state="failed", message="the project has no accepted labels")
        cancelled, _ = jobs.request("cvat", "3", 1, owner)
        jobs.cancel(cancelled.id)
        running, _ = jobs.request(STUDIO, PROJECT, 2, owner)
        jobs.change(running.id, state="running", step=7, steps=40, seconds=3.0)
        jobs.request("cvat", "3", 1, owner)
        killed = (jobs.folder / f"{owner}.owner").read_bytes()
    (jobs.folder / f"{owner}.owner").write_bytes(killed)  # which a killed process leaves, unlocked
    (jobs.folder / f"{running.id}.log").write_text("step 7\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(FileNotFoundError):
        home = Path(folder) / "home"
        make(home)
        with tarfile.open(sys.argv[1], "w:xz", preset=9) as archive:
            archive.add(home, "home")


main()
