"""Runs the jobs, each in a process of its own, and begins them by itself. No torch here."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from clickmask.errors import ClickmaskError, StoreUnavailable, TrainingNotReady
from clickmask.store import Store
from clickmask.store.jobs import Job, Jobs

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "clickmask.training.worker")
NEEDED = ("torch", "onnx", "safetensors")
HEARTBEAT_TIMEOUT_S = 900.0  # seconds without a sign of life: a validation of large pictures takes minutes
SHUTDOWN_GRACE_S = 20.0  # seconds that a process has to end by itself
MAX_DRAIN_S = 300.0  # seconds that a training waits for events that were not read yet
_POLL_S = 0.2  # seconds between looks at a process
_TICK_S = 5.0  # seconds between looks for new images


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker has to know, as it goes through a pipe: `database` may hold a password."""

    jobs: str
    models: str
    images: str
    database: str  # a path, or a URL
    max_image_bytes: int
    max_image_pixels: int
    plan: Mapping[str, Any]  # fields of `clickmask.training.fit.TrainingConfig`
    threads: int | None = None


@dataclass(frozen=True)
class Triggers:
    """A training begins by itself after so many new images, and so many seconds without a change."""

    images: int = 10  # 0: never
    quiet: float = 120.0


class Supervisor:
    """One thread that looks after the jobs that were asked for here, one after the other.

    `waiting` says how many events are still to be read before a training may begin; `fetch` is then
    given a tool, a project and what says that it shall stop, and brings labelled images that are missing.
    """

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        place: WorkerConfig,
        *,
        waiting: Callable[[], int] = lambda: 0,
        fetch: Callable[[str, str, Callable[[], bool]], object] = lambda tool, project, stopped: None,
        triggers: Triggers | None = None,
        worker: Sequence[str] = WORKER,
        hung_after: float = HEARTBEAT_TIMEOUT_S,
        grace: float = SHUTDOWN_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs = jobs
        self._store, self._place, self._waiting, self._fetch = store, place, waiting, fetch
        self._triggers, self._worker, self._clock = triggers, worker, clock
        self._hung_after, self._grace = hung_after, grace
        self._context = ExitStack()
        self._owner = self._context.enter_context(jobs.owning())
        self._closing = threading.Event()
        self._asked = threading.Event()
        self._seen: dict[tuple[str, str], tuple[object, float]] = {}
        self._thread = threading.Thread(target=self._run, name="trainings", daemon=True)

    def start(self, adopting: bool = True) -> None:
        """Look for what is asked and what is new; `adopting`: go on with what an earlier process left."""
        if adopting and not _missing():
            for job in self.jobs.adopt(self._owner):
                log.info("%s is gone on with", job.id)
        self._thread.start()

    def request(self, tool: str, project: str) -> Job:
        """The job that trains the project: one that is under way, here or elsewhere, or a new one.

        Raises TrainingNotReady and StoreUnavailable.
        """
        if missing := _missing():
            raise TrainingNotReady(f"training needs {' and '.join(missing)}: install clickmask[torch]")
        images = next(
            (each.images for each in self._store.projects() if (each.tool, each.project) == (tool, project)),
            0,
        )
        job, mine = self.jobs.request(tool, project, images, self._owner)
        if mine:
            log.info("%s will train %s %s", job.id, tool, project)
            self._asked.set()
        return job

    def close(self) -> None:
        """A training under way is stopped, and gone on with by the next process."""
        self._closing.set()
        self._asked.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._context.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._asked.clear()
            mine = [each for each in self.jobs.all() if each.state == "queued" and each.owner == self._owner]
            if mine:
                self._look_after(mine[0])
                continue
            try:
                self._look_for_new()
            except StoreUnavailable as error:
                log.warning("new images are not looked for: %s", error)
            self._asked.wait(_TICK_S)

    def _look_for_new(self) -> None:
        triggers = self._triggers
        if triggers is None or not triggers.images or _missing():
            return
        for each in self._store.projects():
            key, now = (each.tool, each.project), self._clock()
            state = (each.images, each.labels, each.updated_at)
            seen, since = self._seen.get(key, (None, now))
            if seen != state:
                self._seen[key] = state, now
                since = now
            earlier = self.jobs.of(*key)
            new = each.images - (earlier[-1].images if earlier else 0)
            if new >= triggers.images and now - since >= triggers.quiet:
                log.info("%s %s has %d new images", *key, new)
                self.request(*key)

    def _look_after(self, job: Job) -> None:
        self._drain(job)
        self._fetch_missing(job)
        if self._is_off(job):
            return
        self.jobs.change(job.id, state="running")
        place = json.dumps({"job": job.id, **asdict(self._place)})
        with (self.jobs.folder / f"{job.id}.log").open("ab") as output:  # the one before may still write
            process = subprocess.Popen(  # noqa: S603 - ourselves
                self._worker,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt from the terminal is ours to pass on
            )
            _tell(process, place)
            reason = self._watch(job, process)
        if self.jobs.get(job.id).state != "running":
            return
        if self._closing.is_set():
            self.jobs.change(job.id, state="queued")
        elif self.jobs.is_cancelled(job.id):
            self.jobs.change(job.id, state="cancelled", message="cancelled")
        else:
            log.error("%s failed: %s", job.id, reason)
            self.jobs.change(job.id, state="failed", message=reason)

    def _drain(self, job: Job) -> None:
        """Wait until the events that have arrived are read, for some minutes at most."""
        until = time.monotonic() + MAX_DRAIN_S
        while self._waiting() and time.monotonic() < until:
            if self._closing.wait(_POLL_S) or self._is_off(job):
                return

    def _fetch_missing(self, job: Job) -> None:
        """Without those that cannot be had, there is less to train on, and no reason not to."""
        try:
            self._fetch(job.tool, job.project, lambda: self._is_off(job))
        except ClickmaskError as error:
            log.warning("missing images of %s %s are not fetched: %s", job.tool, job.project, error)

    def _is_off(self, job: Job) -> bool:
        """Whether a job that waits shall not begin: it was cancelled, or this process ends."""
        return self._closing.is_set() or self.jobs.get(job.id).state != "queued"

    def _watch(self, job: Job, process: subprocess.Popen[bytes]) -> str:
        """Until the process has ended, by itself or not; why, if it did not say so itself."""
        told_at: float | None = None
        hung = False
        while process.poll() is None:
            now = time.monotonic()
            if self._closing.is_set() and told_at is None:
                process.terminate()
                told_at = now
            elif told_at is None and self.jobs.is_cancelled(job.id):
                told_at = now
            hung = time.time() - self.jobs.get(job.id).beat_at > self._hung_after
            if hung or (told_at is not None and now - told_at > self._grace):
                process.kill()
                process.wait()
                break
            time.sleep(_POLL_S)
        if hung:
            return f"the training gave no sign of life for {self._hung_after:.0f} s, and was ended"
        return f"the training's process ended with status {process.returncode}; its log has the details"


def _tell(process: subprocess.Popen[bytes], place: str) -> None:
    if process.stdin:
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it has ended: its status says more
            process.stdin.write(place.encode())


def _missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]
