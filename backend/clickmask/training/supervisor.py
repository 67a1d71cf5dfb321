"""Runs each job in its own process, and requests jobs when there are new labels. No torch here."""

import importlib.util
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clickmask.errors import ClickmaskError, Conflict, NotReady, StoreUnavailable
from clickmask.store import Store
from clickmask.store.jobs import Job, Jobs
from clickmask.training import networks

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "clickmask.training.worker")
NEEDED = ("torch", "onnx", "safetensors")
HEARTBEAT_TIMEOUT_S = 900.0  # seconds without a sign of life; validating large pictures takes minutes
CANCEL_GRACE_S = 20.0  # seconds in which a cancelled process may end by itself
CLOSE_GRACE_S = 5.0  # the same if this process ends too, which Docker kills after 10
MAX_DRAIN_S = 300.0  # seconds that a training waits for unread events
MAX_LOGS = 200
_POLL_S = 0.2  # seconds between checks of a process
_TICK_S = 5.0  # seconds between checks for jobs and new images


@dataclass(frozen=True)
class WorkerConfig:
    """A worker's settings. They go through a pipe, because `database` may contain a password."""

    models: str
    images: str
    database: str  # a path, or a URL
    max_image_bytes: int
    max_image_pixels: int
    plan: Mapping[str, Any]  # fields of `clickmask.training.fit.TrainingConfig`
    threads: int | None = None
    network: str = "unet"  # a module's name in `training/networks`, of jobs that name none
    encoder: str = ""  # path of weights that it starts from; empty: the network's own choice
    device: str = "auto"


@dataclass(frozen=True)
class Triggers:
    """Conditions for automatic training: this many new images, then this many seconds without a change."""

    images: int = 10  # 0 means never
    quiet: float = 120.0


class Supervisor:
    """One thread that runs this process's jobs one by one. Their processes write log files in `logs`.
    `waiting` counts unread events, which a training waits for. Then `fetch` gets missing labelled images of a
    tool and project, until its last argument says stop."""

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        config: WorkerConfig,
        logs: Path,
        *,
        waiting: Callable[[], int] = lambda: 0,
        fetch: Callable[[str, str, Callable[[], bool]], object] = lambda tool, project, stopped: None,
        triggers: Triggers | None = None,
        worker: Sequence[str] = WORKER,
        hung_after: float = HEARTBEAT_TIMEOUT_S,
        grace: float = CANCEL_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs = jobs
        self._store, self._config, self._logs = store, config, logs
        self._waiting, self._fetch = waiting, fetch
        self._triggers, self._worker, self._clock = triggers, worker, clock
        self._hung_after, self._grace = hung_after, grace
        self._context = ExitStack()
        self._owner = self._context.enter_context(jobs.owning())
        self._closing, self._requested = threading.Event(), threading.Event()
        self._adoptable: set[str] | None = None  # ids; None means every job whose owner is gone
        self._seen: dict[tuple[str, str], tuple[object, float]] = {}
        self._thread = threading.Thread(target=self._run, name="trainings", daemon=True)

    def start(self, adopting: bool = True) -> None:
        """Start the thread. `adopting`: take over every abandoned job, not only requested ones."""
        self._adoptable = None if adopting else set()
        self._thread.start()

    def request(self, tool: str, project: str, network: str = "") -> Job:
        """The project's job, unfinished here or elsewhere, or new. `network` is the settings' if empty.
        Raises NotReady, StoreUnavailable, InvalidRequest if there is no such network, and Conflict if a job
        of another one is under way."""
        if missing := _missing():
            raise NotReady(f"training needs {' and '.join(missing)}: install clickmask[torch]")
        if network:
            networks.require_name(network)
        images = {(each.tool, each.project): each.images for each in self._store.projects()}
        count, wanted = images.get((tool, project), 0), network or self._config.network
        job, is_new = self.jobs.request(tool, project, count, self._owner, wanted)
        if network and job.network not in ("", network):
            raise Conflict(f"a training of {job.network} is under way: wait until it ends, or cancel it")
        if self._adoptable is not None:
            self._adoptable.add(job.id)  # its current owner may be dead
        if is_new:
            log.info("%s will train %s on %s %s", job.id, wanted, tool, project)
            self._requested.set()
        return job

    def begin_to_close(self) -> None:
        """Tell the thread to stop, and a running training to save its checkpoint and to end."""
        self._closing.set()
        self._requested.set()

    def close(self) -> None:
        """Stop. The next process resumes a running training."""
        self.begin_to_close()
        if self._thread.ident is not None:
            self._thread.join()
        self._context.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._requested.clear()
            try:
                if waiting := self.jobs.adopt(self._owner, () if _missing() else self._adoptable):
                    self._look_after(waiting[0])
                    continue
                self._look_for_new()
            except StoreUnavailable as error:
                log.warning("trainings wait: %s", error)
            except Exception:  # whatever it is, other trainings wait for this thread
                log.exception("trainings wait: something went wrong inside clickmask")
            self._requested.wait(_TICK_S)

    def _look_for_new(self) -> None:
        triggers = self._triggers
        if not triggers or not triggers.images or _missing():
            return
        newest = self.jobs.newest()
        for each in self._store.projects():
            key, now = (each.tool, each.project), self._clock()
            state = (each.images, each.labels, each.updated_at)
            if self._seen.setdefault(key, (state, now))[0] != state:
                self._seen[key] = state, now
            new = each.images - (newest[key].images if key in newest else 0)
            if new >= triggers.images and now - self._seen[key][1] >= triggers.quiet:
                log.info("%s %s has %d new images", *key, new)
                self.request(*key)

    def _look_after(self, job: Job) -> None:
        until = time.monotonic() + MAX_DRAIN_S
        while self._waiting() and time.monotonic() < until:
            if self._closing.wait(_POLL_S) or self._is_off(job):
                return
        try:
            self._fetch(job.tool, job.project, lambda: self._is_off(job))
        except ClickmaskError as error:  # train on fewer images rather than not at all
            log.warning("missing images of %s %s are not fetched: %s", job.tool, job.project, error)
        if self._closing.is_set() or not self.jobs.start(job):
            return
        try:
            reason = self._train(job)
        except OSError as error:  # no process, or no log: the disk, or memory
            reason = f"the training could not be started: {error.strerror or type(error).__name__}"
        while True:
            try:
                ended = self.jobs.settle(job, "" if self._closing.is_set() else reason)
                if ended.message == reason:
                    log.error("%s failed: %s", job.id, reason)
                return
            except StoreUnavailable as error:
                log.warning("how %s ended is not stored yet: %s", job.id, error)
                if self._closing.wait(_TICK_S):
                    return

    def _is_off(self, job: Job) -> bool:
        """Whether a queued job should not start: it was cancelled or taken over, or this process ends."""
        found = self.jobs.get(job.id)
        return self._closing.is_set() or (found.state, found.owner) != ("queued", self._owner)

    def _train(self, job: Job) -> str:
        """Run the job's process to its end. Returns why it ended, in case it did not say so itself."""
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in sorted(self._logs.glob("*.log"))[:-MAX_LOGS]:
            old.unlink(missing_ok=True)
        with (self._logs / f"{job.id}.log").open("ab") as output:  # an earlier process may still write
            # in a session of its own: we pass on an interrupt from the terminal ourselves
            process = subprocess.Popen(  # noqa: S603 - our own module
                self._worker, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        if process.stdin:
            with suppress(BrokenPipeError), process.stdin:  # it has ended: its exit status says more
                process.stdin.write(json.dumps({"job": job.id, **asdict(self._config)}).encode())
        told_at: float | None = None
        grace, terminated = self._grace, False
        while process.poll() is None:
            now, hung = time.monotonic(), False
            if self._closing.is_set() and not terminated:
                process.terminate()  # it saves its checkpoint
                told_at, grace, terminated = now, min(grace, CLOSE_GRACE_S), True
            with suppress(StoreUnavailable):  # the training goes on, and so does polling
                found = self.jobs.get(job.id)
                if told_at is None and (found.owner != self._owner or self.jobs.is_cancelled(job.id)):
                    told_at = now  # the process checks for that itself
                hung = time.time() - found.beat_at > self._hung_after
            if hung or (told_at is not None and now - told_at > grace):
                process.kill()
                process.wait()
                if hung:
                    return f"the training gave no sign of life for {self._hung_after:.0f} s, and was ended"
            time.sleep(_POLL_S)
        return f"the training's process ended with status {process.returncode}; its log has the details"


def _missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]
