"""The training process, `python -m clickmask.training.worker`, which gets its task through a pipe. It ends
with its parent or when its job is taken over; the next training resumes there."""

import json
import logging
import math
import os
import signal
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clickmask.datasets.snapshot import snapshot
from clickmask.errors import ClickmaskError, StoreUnavailable
from clickmask.images.archive import ImageArchive
from clickmask.images.decode import ImageLimits
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.store.jobs import Job, Jobs
from clickmask.training.fit import Progress, TrainingConfig
from clickmask.training.train import Trained, train

log = logging.getLogger(__name__)

LOWEST_PRIORITY = 19
AUTOGROUP = Path("/proc/self/autogroup")
HEARTBEAT_S = 2.0
MAX_STORE_WAIT_S = 120.0  # seconds to wait for the store to record a job's outcome


@dataclass
class RunningJob:
    """The job at work. A progress report that cannot be stored does not fail it."""

    jobs: Jobs
    job: Job
    parent: int
    told_to_end: bool = False
    beaten_at: float = -math.inf

    def beat(self) -> None:
        if time.monotonic() - self.beaten_at >= HEARTBEAT_S:
            self.beaten_at = time.monotonic()
            self.told_to_end |= os.getppid() != self.parent
            with suppress(StoreUnavailable):
                self.told_to_end |= self.jobs.change(self.job.id).owner != self.job.owner

    def ends(self) -> bool:
        if not self.told_to_end:
            with suppress(StoreUnavailable):
                self.told_to_end = self.jobs.is_cancelled(self.job.id)
        return self.told_to_end

    def report(self, progress: Progress) -> None:
        miou = None if math.isnan(progress.validation_miou) else progress.validation_miou
        values = {**asdict(progress), "validation_miou": miou, "message": progress.busy}  # columns of a job
        del values["waited"]
        with suppress(StoreUnavailable):
            self.jobs.change(self.job.id, **values)

    def finish(self, trained: Trained | None) -> None:
        """Record the result; without one, that the job was cancelled or waits again."""
        if trained:
            promoted, reason = trained.decision.promoted, trained.decision.reason
            self.end("done", reason, version=trained.version.id, promoted=promoted, seconds_left=0.0)
        elif self.jobs.is_cancelled(self.job.id):
            self.end("cancelled", "cancelled; the next training goes on from there")
        else:
            self.jobs.put_back(self.job)

    def end(self, state: str, message: str, **values: object) -> None:
        """Record how the job ended. Raises StoreUnavailable after MAX_STORE_WAIT_S."""
        until = time.monotonic() + MAX_STORE_WAIT_S
        while True:
            try:
                self.jobs.change(self.job.id, state=state, message=message, **values)
                return
            except StoreUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(HEARTBEAT_S)


def lower_priority() -> None:
    """Take the lowest priority, if the system has one, also for this process's own session: with autogroups
    (sched(7)), Linux shares the processor between sessions first."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(LOWEST_PRIORITY)
    with suppress(OSError):
        AUTOGROUP.write_text(str(LOWEST_PRIORITY))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lower_priority()
    config = json.load(sys.stdin)
    database = config["database"]
    with closing(Store(database if "://" in database else Path(database))) as store:
        running = RunningJob(store.jobs, store.jobs.get(config["job"]), os.getppid())

        def end(*_: object) -> None:
            running.told_to_end = True

        signal.signal(signal.SIGTERM, end)
        try:
            with store.jobs.training(running.job):
                trained = work(running, store, config)
        except ClickmaskError as error:
            running.end("failed", str(error))
        except Exception as error:  # whatever it is, those who wait for the job must hear of it
            log.exception("the training failed")
            said = f"something went wrong inside clickmask ({type(error).__name__}); its log has the details"
            running.end("failed", said)
        else:
            running.finish(trained)


def work(running: RunningJob, store: Store, config: dict[str, Any]) -> Trained | None:
    """Train on the labels accepted so far; None if told to end. Raises `train`'s and `snapshot`'s errors."""
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    job, limits = running.job, ImageLimits(config["max_image_bytes"], config["max_image_pixels"])
    archive = ImageArchive(Path(config["images"]), 0, lambda digest: True)
    dataset = snapshot(store, job.tool, job.project, archive, limits)
    running.beat()
    models = ProjectModels(Path(config["models"]), config["threads"]).of(job.tool, job.project)
    return train(
        dataset,
        models,
        TrainingConfig(**config["plan"]),
        models.folder / "training.pt",
        network=job.network or config["network"],
        encoder=Path(config["encoder"]) if config["encoder"] else None,
        device=config["device"],
        report=running.report,
        cancelled=running.ends,
        heartbeat=running.beat,
        limits=limits,
    )


if __name__ == "__main__":
    main()
