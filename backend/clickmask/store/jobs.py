"""Training jobs: rows that several processes share.

A job's owner looks after it, and its trainer trains it. Both are processes that prove they are alive by
incrementing a number in the job's row every BEAT_S. If that number stands still for MISSED_BEATS checks,
BEAT_S or more apart, the process counts as gone and another takes over. Clocks of different machines are
never compared. A pause of the whole machine costs no job: all beat again before anyone checked often enough.
"""

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Collection, Generator, Hashable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, get_args

import sqlalchemy as sa

from clickmask import files
from clickmask.errors import NotFound, StoreUnavailable
from clickmask.store.database import Database, Part
from clickmask.store.schema import jobs

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
UNDER_WAY: tuple[State, ...] = ("queued", "running")
BEAT_S = 5.0  # seconds between two beats, and at least between two checks
MISSED_BEATS = 6  # half a minute, because a busy disk can delay a write by many seconds
MAX_JOBS = 50  # per project; older finished jobs are removed
_ID = re.compile(r"\d{20}-[0-9a-f]{8}")
_UNFINISHED = jobs.c.state.in_(UNDER_WAY)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Job:
    """A project's training and its progress. `seconds` counts training time; other times are since 1970."""

    id: str
    tool: str
    project: str
    state: State
    made_at: float
    images: int  # labelled when the job was made
    owner: str  # empty if no process looks after it
    beat_at: float  # the training's last sign of life
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation_miou: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None  # at most
    version: str | None = None  # of the resulting model
    promoted: bool | None = None
    message: str = ""  # a sentence that says why it failed, or why its version is served or not
    network: str = ""  # a module's name in `training/networks`; empty: the one of the trainer's settings


# Oldest first, because an id begins with the time.
_SELECT = sa.select(*(jobs.c[field.name] for field in fields(Job))).order_by(jobs.c.id)


class Pulse(Generic[K]):
    """A detector of numbers that no longer change."""

    def __init__(self) -> None:
        self._seen: dict[K, tuple[int, int, float]] = {}  # number, checks since it changed, last check

    def lost(self, numbers: Mapping[K, int]) -> list[K]:
        """Names whose number stood still for MISSED_BEATS checks. Names not in `numbers` are forgotten."""
        now = time.monotonic()
        earlier, self._seen = self._seen, {}
        for name, number in numbers.items():
            before, looks, at = earlier.get(name, (number, 0, now))
            if before != number:
                looks, at = 0, now
            elif now - at >= BEAT_S:
                looks, at = looks + 1, now
            self._seen[name] = number, looks, at
        return [name for name, (_, looks, _) in self._seen.items() if looks >= MISSED_BEATS]


class Jobs(Part):
    """The table of jobs. For any thread and process. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._owners: Pulse[tuple[str, str]] = Pulse()

    def get(self, id: str) -> Job:  # noqa: A002
        """The job with this id. Raises NotFound."""
        rows = self._rows(_SELECT.where(jobs.c.id == id)) if _ID.fullmatch(id) else ()
        if not rows:
            raise NotFound(f"there is no job {id[:40]!r}")
        return Job(*rows[0])

    def under_way(self) -> list[Job]:
        """Unfinished jobs of all projects, oldest first."""
        return [Job(*row) for row in self._rows(_SELECT.where(_UNFINISHED))]

    def newest(self) -> dict[tuple[str, str], Job]:
        """The last job of each project, by tool and project."""
        last = sa.select(sa.func.max(jobs.c.id)).group_by(jobs.c.tool, jobs.c.project)
        return {(row.tool, row.project): Job(*row) for row in self._rows(_SELECT.where(jobs.c.id.in_(last)))}

    def request(
        self, tool: str, project: str, images: int, owner: str, network: str = ""
    ) -> tuple[Job, bool]:
        """The project's unfinished job or a new one of `network`, and whether `owner` got it just now."""
        of = (jobs.c.tool == tool, jobs.c.project == project)
        with self._database.writing() as connection:
            if row := connection.execute(_SELECT.where(*of, _UNFINISHED)).first():
                if row.owner:
                    return Job(*row), False
                adopt = jobs.update().where(jobs.c.id == row.id)
                connection.execute(adopt.values(state="queued", owner=owner))
                return replace(Job(*row), state="queued", owner=owner), True
            now = time.time()
            at = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(now))}{int(now % 1 * 1e6):06d}"
            made = Job(f"{at}-{secrets.token_hex(4)}", tool, project, "queued", now, images, owner, now)
            made = replace(made, network=network)
            connection.execute(jobs.insert(), asdict(made))
            old = sa.select(jobs.c.id).where(*of).order_by(jobs.c.id.desc()).offset(MAX_JOBS)
            connection.execute(jobs.delete().where(jobs.c.id.in_(old), ~_UNFINISHED))
            return made, True

    def adopt(self, owner: str, only: Collection[str] | None = None) -> list[Job]:
        """Take over jobs whose owner is gone, and return all queued jobs of `owner`, oldest first.

        Call it regularly from one thread; see the module. If `only` is given, it takes over only these ids.
        """
        beats = _SELECT.add_columns(jobs.c.owner_beats).where(_UNFINISHED)
        found = {Job(*columns): count for *columns, count in self._rows(beats)}
        others = {job: found[job] for job in found if job.owner != owner and (only is None or job.id in only)}
        lost = self._owners.lost({(job.id, job.owner): count for job, count in others.items()})
        gone = [job for job in others if not job.owner or (job.id, job.owner) in lost]
        mine = [job for job in found if job.owner == owner and job.state == "queued"]
        if gone:
            with self._database.writing() as connection:
                for job in gone:
                    same = jobs.update().filter_by(id=job.id, owner=job.owner, owner_beats=others[job])
                    taken = same.where(_UNFINISHED).values(owner=owner, state="queued")
                    if connection.execute(taken).rowcount:
                        log.info("%s goes on here", job.id)
                        mine.append(replace(job, owner=owner, state="queued"))
        return sorted(mine, key=lambda job: job.id)

    def start(self, job: Job) -> bool:
        """Mark `job` as running; return False if it was cancelled or taken over meanwhile."""
        queued = jobs.update().filter_by(id=job.id, owner=job.owner, state="queued")
        with self._database.writing() as connection:
            return connection.execute(queued.values(state="running", beat_at=time.time())).rowcount > 0

    def change(self, id: str, **values: Any) -> Job:  # noqa: A002
        """Record the job's progress and that its training is alive. A finished job stays as it is."""
        this = jobs.update().where(jobs.c.id == id, _UNFINISHED)
        self._execute(this.values(beat_at=time.time(), **values))
        return self.get(id)

    def put_back(self, job: Job) -> None:
        """Queue a stopped `job` again, unless another owner has taken it over."""
        mine = jobs.update().filter_by(id=job.id, owner=job.owner).where(_UNFINISHED)
        self._execute(mine.values(state="queued"))

    def settle(self, job: Job, reason: str) -> Job:
        """The training of `job` has ended: cancel it if requested, fail it for a `reason`, else queue it."""
        mine = jobs.update().filter_by(id=job.id, owner=job.owner)
        running = mine.filter_by(state="running")  # else the process has recorded an outcome itself
        ended = {"state": "failed", "message": reason} if reason else {"state": "queued"}
        cancel = running.where(jobs.c.cancelled.is_(True)).values(state="cancelled", message="cancelled")
        self._execute(mine.values(trainer=""), cancel, running.values(**ended))
        return self.get(job.id)

    def cancel(self, id: str) -> Job:  # noqa: A002
        """Cancel a queued job at once and a running one soon. Raises NotFound."""
        this = jobs.update().where(jobs.c.id == id)
        waits, runs = this.where(jobs.c.state == "queued"), this.where(jobs.c.state == "running")
        stop = waits.values(state="cancelled", message="cancelled before it began")
        self._execute(stop, runs.values(cancelled=True))
        return self.get(id)

    def is_cancelled(self, id: str) -> bool:  # noqa: A002
        """Whether a running job should stop."""
        return bool(self._scalar(sa.select(jobs.c.cancelled).where(jobs.c.id == id)))

    @contextmanager
    def owning(self) -> Generator[str]:
        """The name of a new owner, alive until the context or the process ends."""
        owner = secrets.token_hex(8)
        with self._counting("owner", jobs.c.owner == owner, _UNFINISHED):
            yield owner

    @contextmanager
    def training(self, job: Job) -> Generator[None]:
        """Wait until no other process trains the project of `job`; make others wait inside the context."""
        trainer = secrets.token_hex(8)
        pulse: Pulse[tuple[str, str]] = Pulse()
        others = (jobs.c.tool == job.tool, jobs.c.project == job.project, jobs.c.trainer != "")
        trained = sa.select(jobs.c.id, jobs.c.trainer, jobs.c.trainer_beats).where(*others)
        while True:
            with self._database.writing() as connection:
                beats = {(row.id, row.trainer): row.trainer_beats for row in connection.execute(trained)}
                if len(pulse.lost(beats)) == len(beats):
                    connection.execute(jobs.update().where(*others).values(trainer=""))
                    connection.execute(jobs.update().where(jobs.c.id == job.id).values(trainer=trainer))
                    break
            time.sleep(BEAT_S / 10)
        with self._counting("trainer", jobs.c.id == job.id, jobs.c.trainer == trainer):
            yield

    def import_folder(self, folder: Path) -> list[str]:
        """Import the jobs that an earlier version kept as files in `folder`, then rename the folder. Returns
        the names of files that cannot be read. They stay in it."""
        if not folder.is_dir():
            return []
        rows, damaged = list[dict[str, Any]](), list[str]()
        try:
            for path in sorted(folder.glob("*.json")):
                try:
                    job = _job(json.loads(files.read(path)))
                except (OSError, ValueError, TypeError):
                    if not folder.is_dir():
                        raise
                    damaged.append(path.name)
                    continue
                state: State = "queued" if job.state in UNDER_WAY else job.state
                cancelled = path.with_suffix(".cancel").exists()
                rows.append({**asdict(replace(job, owner="", state=state)), "cancelled": cancelled})
            with self._database.writing() as connection:
                known = set(connection.scalars(sa.select(jobs.c.id)))
                if new := [row for row in rows if row["id"] not in known]:
                    connection.execute(jobs.insert(), new)
            folder.rename(folder.with_name(f"{folder.name}-imported-{time.time_ns()}"))
        except FileNotFoundError:  # another process has just imported them
            return []
        return damaged

    @contextmanager
    def _counting(self, role: str, *mine: sa.ColumnElement[bool]) -> Generator[None]:
        """Increment the beats of the `role` in the rows `mine` every BEAT_S. At the end, clear its name."""
        ended, number = threading.Event(), jobs.c[f"{role}_beats"]

        def count() -> None:
            while not ended.wait(BEAT_S):
                try:
                    # Most owners have no job, so nothing to write.
                    if self._scalar(sa.select(sa.literal(1)).where(*mine).limit(1)):
                        self._execute(jobs.update().where(*mine).values({number: number + 1}))
                except Exception as error:  # noqa: BLE001 - a heart that stops would lose the job
                    log.warning("a sign of life was not written: %s", error)

        counter = threading.Thread(target=count, name="heartbeat", daemon=True)
        counter.start()
        try:
            yield
        finally:
            ended.set()
            counter.join()
            with suppress(StoreUnavailable):
                self._execute(jobs.update().where(*mine).values({role: ""}))


def _job(found: Any) -> Job:
    """The job of a file. Raises TypeError if it is none."""
    job = Job(**found)
    kinds: dict[type | UnionType, tuple[Any, ...]] = {
        str: (job.id, job.tool, job.project, job.message, job.network),
        int | float: (job.made_at, job.images, job.beat_at, job.step, job.steps, job.seconds),
        int | float | None: (job.loss, job.validation_miou, job.seconds_left),
        str | None: (job.version,),
        bool | None: (job.promoted,),
    }
    if not all(isinstance(value, kind) for kind, values in kinds.items() for value in values):
        raise TypeError
    if not _ID.fullmatch(job.id) or job.state not in get_args(State):
        raise TypeError
    return job
