"""How far the events of an inbox were read, which were set aside, and where a pull goes on."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from clickmask.store.database import Database
from clickmask.store.schema import inboxes, pulls, set_aside

_MAX_ROWS = 200  # of one write transaction


class FailedEvent(NamedTuple):
    """An event that could not be taken in. `retry_at` None: it will not be tried again."""

    event: int
    tool: str
    reason: str
    at: float  # seconds since 1970
    attempts: int
    retry_at: float | None


class Progress:
    def __init__(self, database: Database) -> None:
        self._database = database

    def read_to(self, inbox: str) -> int:
        """The id of the last event that was read; 0 before the first."""
        chosen = sa.select(inboxes.c.read_to).where(inboxes.c.inbox == inbox)
        with self._database.reading() as connection:
            return connection.scalar(chosen) or 0

    def mark_read(self, inbox: str, event: int, aside: FailedEvent | None = None) -> None:
        """Events up to this one are done with; `aside` is what became of this one if it failed."""
        with self._database.writing() as connection:
            changed = connection.execute(
                inboxes.update().where(inboxes.c.inbox == inbox).values(read_to=event)
            )
            if not changed.rowcount:
                connection.execute(inboxes.insert(), {"inbox": inbox, "read_to": event})
            if aside:
                _defer(connection, inbox, aside)

    def defer(self, inbox: str, aside: FailedEvent) -> None:
        with self._database.writing() as connection:
            _defer(connection, inbox, aside)

    def resolve(self, inbox: str, event: int) -> None:
        """The event was taken in after all."""
        with self._database.writing() as connection:
            connection.execute(set_aside.delete().where(*_event(inbox, event)))

    def set_aside(self, inbox: str, limit: int = 50) -> list[FailedEvent]:
        """At most `limit` of the events that wait or were given up, newest first."""
        chosen = sa.select(*_COLUMNS).where(set_aside.c.inbox == inbox)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.order_by(set_aside.c.event.desc()).limit(limit))
            return [FailedEvent(*row) for row in rows]

    def count_set_aside(self, inbox: str) -> int:
        counted = sa.select(sa.func.count()).where(set_aside.c.inbox == inbox)
        with self._database.reading() as connection:
            return connection.scalar(counted) or 0

    def retry_set_aside(self, inbox: str, now: float) -> None:
        """Let all events that were set aside be due."""
        of = (set_aside.c.inbox == inbox, sa.or_(set_aside.c.retry_at.is_(None), set_aside.c.retry_at > now))
        some = sa.select(set_aside.c.event).where(*of).limit(_MAX_ROWS)
        while True:
            with self._database.writing() as connection:
                events = list(connection.scalars(some))
                these = (set_aside.c.inbox == inbox, set_aside.c.event.in_(events))
                connection.execute(set_aside.update().where(*these).values(retry_at=now))
            if len(events) < _MAX_ROWS:
                return

    def due(self, inbox: str, now: float) -> FailedEvent | None:
        """The event that has waited longest past its time."""
        chosen = sa.select(*_COLUMNS).where(set_aside.c.inbox == inbox, set_aside.c.retry_at <= now)
        with self._database.reading() as connection:
            row = connection.execute(chosen.order_by(set_aside.c.retry_at).limit(1)).first()
        return FailedEvent(*row) if row else None

    def pull_position(self, tool: str, project: str) -> str | None:
        """Where a pull that was interrupted goes on; None: at the beginning."""
        chosen = sa.select(pulls.c.position).where(pulls.c.tool == tool, pulls.c.project == project)
        with self._database.reading() as connection:
            return connection.scalar(chosen)

    def set_pull_position(self, tool: str, project: str, position: str | None) -> None:
        """None: the pull is complete."""
        with self._database.writing() as connection:
            connection.execute(pulls.delete().where(pulls.c.tool == tool, pulls.c.project == project))
            if position is not None:
                row = {"tool": tool, "project": project, "position": position}
                connection.execute(pulls.insert(), row)


_COLUMNS = (
    set_aside.c.event,
    set_aside.c.tool,
    set_aside.c.reason,
    set_aside.c.at,
    set_aside.c.attempts,
    set_aside.c.retry_at,
)


def _event(inbox: str, event: int) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return set_aside.c.inbox == inbox, set_aside.c.event == event


def _defer(connection: sa.Connection, inbox: str, aside: FailedEvent) -> None:
    connection.execute(set_aside.delete().where(*_event(inbox, aside.event)))
    connection.execute(set_aside.insert(), {"inbox": inbox, **aside._asdict()})
