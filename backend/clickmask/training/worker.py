"""The process that trains: `python -m clickmask.training.worker`, told by a pipe what to do.

It gives way to everything else, and ends, to be gone on with, when its parent has.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clickmask.datasets.snapshot import snapshot
from clickmask.errors import ClickmaskError
from clickmask.images.archive import ImageArchive
from clickmask.images.decode import ImageLimits
from clickmask.models.labeller import ProjectModels
from clickmask.store import Store
from clickmask.store.jobs import Job, Jobs
from clickmask.training.fit import Progress, TrainingConfig
from clickmask.training.train import Trained, train

log = logging.getLogger(__name__)

LOWEST_PRIORITY = 19  # priority
AUTOGROUP = Path("/proc/self/autogroup")
HEARTBEAT_S = 1.0  # seconds between signs of life


@dataclass
class RunningJob:
    """One job, while it is worked on."""

    jobs: Jobs
    job: Job
    parent: int
    told_to_end: bool = False
    beaten_at: float = -math.inf

    def beat(self) -> None:
        if time.monotonic() - self.beaten_at >= HEARTBEAT_S:
            self.beaten_at = time.monotonic()
            self.jobs.change(self.job.id)
            self.told_to_end |= os.getppid() != self.parent

    def ends(self) -> bool:
        return self.told_to_end or self.jobs.is_cancelled(self.job.id)

    def report(self, progress: Progress) -> None:
        miou = progress.validation_miou
        self.jobs.change(
            self.job.id,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            validation_miou=None if math.isnan(miou) else miou,
            seconds=progress.seconds,
            seconds_left=progress.seconds_left,
        )


def lower_priority() -> None:
    """Have the lowest priority.

    Linux shares the processor between sessions first, where it has autogroups (sched(7)), and this
    process has one of its own: its niceness alone would count for nothing beside the server's.
    """
    os.nice(LOWEST_PRIORITY)
    with suppress(OSError):
        AUTOGROUP.write_text(str(LOWEST_PRIORITY))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lower_priority()
    place = json.load(sys.stdin)
    jobs = Jobs(Path(place["jobs"]))
    working = RunningJob(jobs, jobs.get(place["job"]), os.getppid())

    def end(*_: object) -> None:
        working.told_to_end = True

    signal.signal(signal.SIGTERM, end)
    job = working.job
    try:
        with jobs.training(job.tool, job.project):
            trained = _work(working, place)
    except ClickmaskError as error:
        jobs.change(job.id, state="failed", message=str(error))
    except Exception as error:  # whatever it is, whoever waits for the job must hear of it
        log.exception("the training failed")
        said = f"something went wrong inside clickmask ({type(error).__name__}); its log has the details"
        jobs.change(job.id, state="failed", message=said)
    else:
        _finish(working, trained)


def _work(working: RunningJob, place: dict[str, Any]) -> Trained | None:
    database, job = place["database"], working.job
    if place["threads"]:
        torch.set_num_threads(place["threads"])
    limits = ImageLimits(place["max_image_bytes"], place["max_image_pixels"])
    store = Store(database if "://" in database else Path(database))
    try:
        kept = ImageArchive(Path(place["images"]), 0, lambda digest: True)
        dataset = snapshot(store, job.tool, job.project, kept, limits)
    finally:
        store.close()
    working.beat()
    models = ProjectModels(Path(place["models"]), place["threads"]).of(job.tool, job.project)
    return train(
        dataset,
        models,
        TrainingConfig(**place["plan"]),
        models.folder / "training.pt",
        report=working.report,
        cancelled=working.ends,
        beat=working.beat,
        limits=limits,
    )


def _finish(working: RunningJob, trained: Trained | None) -> None:
    jobs, job = working.jobs, working.job
    if trained:
        jobs.change(
            job.id,
            state="done",
            version=trained.version.id,
            promoted=trained.decision.promoted,
            seconds_left=0.0,
            message=trained.decision.reason,
        )
    elif jobs.is_cancelled(job.id):
        jobs.change(job.id, state="cancelled", message="cancelled; the next training goes on from there")
    else:
        jobs.put_back(job)


if __name__ == "__main__":
    main()
