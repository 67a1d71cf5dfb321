"""Supervisor as files, one each: whoever shares the folder can follow one, cancel it, or take it over.

A job belongs to the process that looks after it, its owner. An owner holds a lock for as long as it
lives, so one that was killed is known by its lock, and its jobs are taken up by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from clickmask.errors import UnknownJob

State = Literal["queued", "running", "done", "failed", "cancelled"]
UNDER_WAY: tuple[State, ...] = ("queued", "running")
_ID = re.compile(r"\d{20}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Job:
    """A training of a project, and how far it is. Seconds are of training; times are since 1970."""

    id: str
    tool: str
    project: str
    state: State
    made_at: float
    images: int  # that were labelled when it was made
    owner: str
    beat_at: float  # the last sign of life
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation_miou: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None  # at most
    version: str | None = None  # what was made
    promoted: bool | None = None
    message: str = ""  # a sentence: why it failed, or why its version is served or not


class Jobs:
    """The folder of them. For any thread and any process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def all(self) -> list[Job]:
        """Oldest first."""
        return [self._read(path) for path in sorted(self.folder.glob("*.json"))]

    def of(self, tool: str, project: str) -> list[Job]:
        return [job for job in self.all() if (job.tool, job.project) == (tool, project)]

    def get(self, id: str) -> Job:  # noqa: A002
        """Raises UnknownJob."""
        path = self.folder / f"{id}.json"
        if not _ID.fullmatch(id) or not path.exists():
            raise UnknownJob(f"there is no job {id[:40]!r}")
        return self._read(path)

    def request(self, tool: str, project: str, images: int, owner: str) -> tuple[Job, bool]:
        """The project's job that is under way, or a new one; whether it is new to `owner`."""
        with self._locked():
            for job in self.of(tool, project):
                if job.state in UNDER_WAY:
                    if job.owner == owner or self._lives(job.owner):
                        return job, False
                    return self._adopted(job, owner), True
            now = time.time()
            at = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(now))}{int(now % 1 * 1e6):06d}"
            name = f"{at}-{secrets.token_hex(4)}"  # sorts by time
            made = Job(name, tool, project, "queued", now, images, owner, now)
            self._write(made)
            return made, True

    def adopt(self, owner: str) -> list[Job]:
        """Those that nobody looks after any more, oldest first: `owner` does from now on."""
        with self._locked():
            left = [job for job in self.all() if job.state in UNDER_WAY and not self._lives(job.owner)]
            return [self._adopted(job, owner) for job in left]

    def change(self, id: str, **values: Any) -> Job:  # noqa: A002
        """Note how far it is, with a sign of life. A job that has ended does not change any more."""
        with self._locked():
            job = self.get(id)
            if job.state in UNDER_WAY:
                job = replace(job, beat_at=time.time(), **values)
                self._write(job)
            return job

    def put_back(self, job: Job) -> None:
        """`job` was stopped, and waits again; unless another owner has taken it over since."""
        with self._locked():
            found = self.get(job.id)
            if found.state in UNDER_WAY and found.owner == job.owner:
                self._write(replace(found, state="queued"))

    def cancel(self, id: str) -> Job:  # noqa: A002
        """One that waits is cancelled at once, one that runs soon. Raises UnknownJob."""
        with self._locked():
            job = self.get(id)
            if job.state == "queued":
                job = replace(job, state="cancelled", message="cancelled before it began")
                self._write(job)
            elif job.state == "running":
                self._cancelled(id).touch()
            return job

    def is_cancelled(self, id: str) -> bool:  # noqa: A002
        """Whether a job that runs shall end."""
        return self._cancelled(id).exists()

    @contextmanager
    def owning(self) -> Generator[str]:
        """The name of a new owner, who lives until the end of the context or of the process."""
        owner = secrets.token_hex(8)
        path = self._owner(owner)
        with path.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield owner
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def training(self, tool: str, project: str) -> Generator[None]:
        """Only one process trains a project; the next waits until the one before it is gone."""
        name = f"{tool}-{project}".encode().hex()[:200]
        with (self.folder / f"{name}.training").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _adopted(self, job: Job, owner: str) -> Job:
        adopted = replace(job, owner=owner, state="queued", beat_at=time.time())
        self._write(adopted)
        return adopted

    def _lives(self, owner: str) -> bool:
        try:
            with self._owner(owner).open("rb") as lock:
                return not _is_free(lock)
        except FileNotFoundError:
            return False

    def _owner(self, owner: str) -> Path:
        return self.folder / f"{owner}.owner"

    def _cancelled(self, id: str) -> Path:  # noqa: A002
        return self.folder / f"{id}.cancel"

    def _read(self, path: Path) -> Job:
        return Job(**json.loads(path.read_bytes()))

    def _write(self, job: Job) -> None:
        path = self.folder / f"{job.id}.json"
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(asdict(job)))
        aside.replace(path)

    @contextmanager
    def _locked(self) -> Generator[None]:
        with (self.folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _is_free(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
