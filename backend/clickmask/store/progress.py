"""Progress of reading an inbox, the events that failed, and the position of an interrupted pull."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from clickmask.store.database import Part, put
from clickmask.store.schema import inboxes, pulls, set_aside

_MAX_ROWS = 200


class FailedEvent(NamedTuple):
    """An event that could not be applied. It is not retried if `retry_at` is None."""

    event: int
    tool: str
    reason: str
    at: float  # seconds since 1970
    attempts: int
    retry_at: float | None


class Progress(Part):
    def read_to(self, inbox: str) -> int:
        """The id of the last event that was read; 0 if none was."""
        return self._scalar(sa.select(inboxes.c.read_to).filter_by(inbox=inbox)) or 0

    def mark_read(self, inbox: str, event: int, failed: FailedEvent | None = None) -> None:
        """Record that events up to this one are done, and that this one `failed`, if it did."""
        with self._database.writing() as connection:
            put(connection, inboxes, {"inbox": inbox}, {"read_to": event})
            if failed:
                put(connection, set_aside, {"inbox": inbox, "event": failed.event}, failed._asdict())

    def defer(self, inbox: str, failed: FailedEvent) -> None:
        """Record that the event failed, for the first time or again."""
        with self._database.writing() as connection:
            put(connection, set_aside, {"inbox": inbox, "event": failed.event}, failed._asdict())

    def resolve(self, inbox: str, event: int) -> None:
        """Forget the event's failure: it was applied after all."""
        with self._database.writing() as connection:
            connection.execute(set_aside.delete().filter_by(inbox=inbox, event=event))

    def set_aside(self, inbox: str, limit: int = 50) -> list[FailedEvent]:
        """At most `limit` failed events, newest first."""
        chosen = sa.select(*_COLUMNS).where(set_aside.c.inbox == inbox)
        newest = chosen.order_by(set_aside.c.event.desc()).limit(limit)
        return [FailedEvent(*row) for row in self._rows(newest)]

    def count_set_aside(self, inbox: str) -> int:
        return self._scalar(sa.select(sa.func.count()).where(set_aside.c.inbox == inbox)) or 0

    def retry_set_aside(self, inbox: str, now: float) -> None:
        """Make all failed events due now."""
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
        """The failed event that is most overdue."""
        chosen = sa.select(*_COLUMNS).where(set_aside.c.inbox == inbox, set_aside.c.retry_at <= now)
        row = next(iter(self._rows(chosen.order_by(set_aside.c.retry_at).limit(1))), None)
        return FailedEvent(*row) if row else None

    def pull_position(self, tool: str, project: str) -> str | None:
        """The position where an interrupted pull resumes; None if it starts at the beginning."""
        return self._scalar(sa.select(pulls.c.position).filter_by(tool=tool, project=project))

    def set_pull_position(self, tool: str, project: str, position: str | None) -> None:
        """Record where the pull resumes; None if it is complete."""
        with self._database.writing() as connection:
            if position is None:
                connection.execute(pulls.delete().filter_by(tool=tool, project=project))
            else:
                put(connection, pulls, {"tool": tool, "project": project}, {"position": position})


_COLUMNS = tuple(set_aside.c[name] for name in FailedEvent._fields)
