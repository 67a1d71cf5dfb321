"""Trainings that were asked for: rows that several processes share.

A job belongs to a process that looks after it, its owner; another process, its trainer, trains it.
Each proves that it lives by counting up a number in the job's row every BEAT_S. A process whose number
stood still at MISSED_BEATS looks in a row, BEAT_S or more apart, is gone, and another one takes its
place. No clock of one machine is compared with another's. A pause of the whole machine takes no job
away: after it everyone counts on before anyone has looked often enough.
"""

from __future__ import annotations

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
from typing import Any, Generic, Literal, TypeVar

import sqlalchemy as sa

from clickmask.errors import NotFound, StoreUnavailable
from clickmask.store.database import Database, Part
from clickmask.store.schema import jobs

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
UNDER_WAY: tuple[State, ...] = ("queued", "running")
BEAT_S = 5.0  # seconds between two counts, and at least between two looks
MISSED_BEATS = 6  # looks: half a minute, since a busy disk may hold up a write for many seconds
MAX_JOBS = 50  # of a project; older ones that ended are removed
_ID = re.compile(r"\d{20}-[0-9a-f]{8}")
_UNFINISHED = jobs.c.state.in_(UNDER_WAY)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Job:
    """A training of a project, and how far it is. `seconds` are of training; times are since 1970."""

    id: str
    tool: str
    project: str
    state: State
    made_at: float
    images: int  # labelled when the job was made
    owner: str  # empty: nobody looks after it
    beat_at: float  # the last sign of life of the training itself
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation_miou: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None  # at most
    version: str | None = None  # of the model that was made
    promoted: bool | None = None
    message: str = ""  # a sentence: why it failed, or why its version is served or not


_COLUMNS = tuple(jobs.c[field.name] for field in fields(Job))
_SELECT = sa.select(*_COLUMNS).order_by(jobs.c.id)  # an id begins with the time: oldest first


class Pulse(Generic[K]):
    """Tells which of several numbers stand still."""

    def __init__(self) -> None:
        self._seen: dict[K, tuple[int, int, float]] = {}  # number, looks since it changed, last look

    def lost(self, numbers: Mapping[K, int]) -> list[K]:
        """Names whose number stood still at MISSED_BEATS looks; what `numbers` lacks is forgotten."""
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
    """The table of jobs. For any thread and any process. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._owners: Pulse[tuple[str, str]] = Pulse()

    def get(self, id: str) -> Job:  # noqa: A002
        """Raises NotFound."""
        rows = self._rows(_SELECT.where(jobs.c.id == id)) if _ID.fullmatch(id) else ()
        if not rows:
            raise NotFound(f"there is no job {id[:40]!r}")
        return Job(*rows[0])

    def under_way(self) -> list[Job]:
        """Jobs of all projects that have not ended, oldest first."""
        return [Job(*row) for row in self._rows(_SELECT.where(_UNFINISHED))]

    def newest(self) -> dict[tuple[str, str], Job]:
        """The last job of each project, by tool and project."""
        last = sa.select(sa.func.max(jobs.c.id)).group_by(jobs.c.tool, jobs.c.project)
        found = self._rows(_SELECT.where(jobs.c.id.in_(last)))
        return {(row.tool, row.project): Job(*row) for row in found}

    def request(self, tool: str, project: str, images: int, owner: str) -> tuple[Job, bool]:
        """The project's job that is under way, or a new one; and whether it is new to `owner`."""
        of = (jobs.c.tool == tool, jobs.c.project == project)
        with self._database.writing() as connection:
            row = connection.execute(_SELECT.where(*of, _UNFINISHED)).first()
            if row is not None and row.owner:
                return Job(*row), False
            if row is not None:
                adopted = replace(Job(*row), state="queued", owner=owner)
                this = jobs.c.id == adopted.id
                connection.execute(jobs.update().where(this).values(state="queued", owner=owner))
                return adopted, True
            now = time.time()
            at = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(now))}{int(now % 1 * 1e6):06d}"
            made = Job(f"{at}-{secrets.token_hex(4)}", tool, project, "queued", now, images, owner, now)
            connection.execute(jobs.insert(), asdict(made))
            old = sa.select(jobs.c.id).where(*of).order_by(jobs.c.id.desc()).offset(MAX_JOBS)
            connection.execute(jobs.delete().where(jobs.c.id.in_(old), ~_UNFINISHED))
            return made, True

    def adopt(self, owner: str, only: Collection[str] | None = None) -> list[Job]:
        """Jobs of `owner` that wait, oldest first, once it has taken over those that nobody looks after.

        Has to be called again and again, by one thread: see the module. `only`: ids of the jobs that may
        be taken over; None: any.
        """
        beats = _SELECT.add_columns(jobs.c.owner_beats).where(_UNFINISHED)
        found = {Job(*columns): count for *columns, count in self._rows(beats)}
        others = {
            (job.id, job.owner): count
            for job, count in found.items()
            if job.owner != owner and (only is None or job.id in only)
        }
        gone = {*self._owners.lost(others), *(key for key in others if not key[1])}
        mine = [job for job in found if job.owner == owner and job.state == "queued"]
        if gone:
            with self._database.writing() as connection:
                for job in found:
                    if (key := (job.id, job.owner)) in gone:
                        this = (jobs.c.id == job.id, jobs.c.owner == job.owner)
                        same = (*this, jobs.c.owner_beats == others[key], _UNFINISHED)
                        taken = jobs.update().where(*same).values(owner=owner, state="queued")
                        if connection.execute(taken).rowcount:
                            log.info("%s is gone on with", job.id)
                            mine.append(replace(job, owner=owner, state="queued"))
        return sorted(mine, key=lambda job: job.id)

    def start(self, job: Job) -> bool:
        """Note that `job` runs now; False if it was cancelled or taken over meanwhile."""
        this = (jobs.c.id == job.id, jobs.c.owner == job.owner, jobs.c.state == "queued")
        with self._database.writing() as connection:
            started = jobs.update().where(*this).values(state="running", beat_at=time.time())
            return connection.execute(started).rowcount > 0

    def change(self, id: str, **values: Any) -> Job:  # noqa: A002
        """Note how far the job is, and that its training lives. A job that has ended stays as it is."""
        with self._database.writing() as connection:
            this = jobs.update().where(jobs.c.id == id, _UNFINISHED)
            connection.execute(this.values(beat_at=time.time(), **values))
        return self.get(id)

    def put_back(self, job: Job) -> None:
        """`job` was stopped and waits again, unless another owner has taken it over."""
        this = (jobs.c.id == job.id, jobs.c.owner == job.owner, _UNFINISHED)
        with self._database.writing() as connection:
            connection.execute(jobs.update().where(*this).values(state="queued"))

    def settle(self, job: Job, reason: str) -> Job:
        """Note that the process that trained `job` has ended.

        If it did not say how the job ended, the job was cancelled, or failed for `reason`, or, without
        one, waits again.
        """
        mine = (jobs.c.id == job.id, jobs.c.owner == job.owner)
        running = (*mine, jobs.c.state == "running")
        ended = {"state": "failed", "message": reason} if reason else {"state": "queued"}
        with self._database.writing() as connection:
            connection.execute(jobs.update().where(*mine).values(trainer=""))
            cancelled = jobs.update().where(*running, jobs.c.cancelled.is_(True))
            connection.execute(cancelled.values(state="cancelled", message="cancelled"))
            connection.execute(jobs.update().where(*running).values(**ended))
        return self.get(job.id)

    def cancel(self, id: str) -> Job:  # noqa: A002
        """Cancel a job that waits at once, and one that runs soon. Raises NotFound."""
        this = jobs.update().where(jobs.c.id == id)
        with self._database.writing() as connection:
            waits = this.where(jobs.c.state == "queued")
            connection.execute(waits.values(state="cancelled", message="cancelled before it began"))
            connection.execute(this.where(jobs.c.state == "running").values(cancelled=True))
        return self.get(id)

    def is_cancelled(self, id: str) -> bool:  # noqa: A002
        """Whether a job that runs shall end."""
        return bool(self._scalar(sa.select(jobs.c.cancelled).where(jobs.c.id == id)))

    @contextmanager
    def owning(self) -> Generator[str]:
        """The name of a new owner, which lives until the end of the context or of the process."""
        owner = secrets.token_hex(8)
        with self._counting(jobs.c.owner_beats, (jobs.c.owner == owner, _UNFINISHED), {"owner": ""}):
            yield owner

    @contextmanager
    def training(self, job: Job) -> Generator[None]:
        """Wait until no other process trains the project of `job`, and keep others waiting in the context."""
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
        with self._counting(
            jobs.c.trainer_beats, (jobs.c.id == job.id, jobs.c.trainer == trainer), {"trainer": ""}
        ):
            yield

    def import_folder(self, folder: Path) -> None:
        """Take in the jobs that an earlier version kept as files in `folder`, which is renamed then.

        Those that were under way wait for a process that trains.
        """
        rows: list[dict[str, Any]] = []
        try:
            for path in sorted(folder.glob("*.json")):
                job = Job(**json.loads(path.read_bytes()))
                state: State = "queued" if job.state in UNDER_WAY else job.state
                cancelled = path.with_suffix(".cancel").exists()
                rows.append({**asdict(replace(job, owner="", state=state)), "cancelled": cancelled})
            if not folder.is_dir():
                return
            with self._database.writing() as connection:
                known = set(connection.scalars(sa.select(jobs.c.id)))
                for row in rows:
                    if row["id"] not in known:
                        connection.execute(jobs.insert(), row)
            folder.rename(folder.with_name(f"{folder.name}-imported-{time.time_ns()}"))
        except FileNotFoundError:  # another process has imported them just now
            return

    @contextmanager
    def _counting(
        self,
        number: sa.Column[int],
        mine: tuple[sa.ColumnElement[bool], ...],
        released: Mapping[str, str],
    ) -> Generator[None]:
        """Count up `number` of the rows `mine` every BEAT_S; at the end they are `released`."""
        ended = threading.Event()

        def count() -> None:
            while not ended.wait(BEAT_S):
                try:
                    # Most owners have no job to write about.
                    if self._scalar(sa.select(sa.literal(1)).where(*mine).limit(1)):
                        with self._database.writing() as connection:
                            connection.execute(jobs.update().where(*mine).values({number: number + 1}))
                except StoreUnavailable as error:
                    log.warning("a sign of life was not written: %s", error)

        counter = threading.Thread(target=count, name="heartbeat", daemon=True)
        counter.start()
        try:
            yield
        finally:
            ended.set()
            counter.join()
            with suppress(StoreUnavailable), self._database.writing() as connection:
                connection.execute(jobs.update().where(*mine).values(released))
