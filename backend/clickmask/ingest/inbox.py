"""Durable storage of webhook bodies, before anybody answers them."""

import logging
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from clickmask.errors import StoreUnavailable
from clickmask.files import DamagedFiles
from clickmask.store.damage import is_full, mend_database, open_old, told

# Values that SQLite must confirm. FULL: a commit returns once the event is on the disk.
PRAGMAS: Mapping[str, str | int] = MappingProxyType(
    {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 500}
)
MAX_BATCH = 256
MAX_MISSES = 1000  # ids that are tried one by one after a damaged page; then ever larger steps are taken
MAX_ID = 2**40
EVENT_TTL_S = 30 * 24 * 3600.0  # time an event stays after it was read, for looking back
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, received_at REAL NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS inbox (id TEXT NOT NULL);
COMMIT;
"""
_SELECT = "SELECT id, source, received_at, body FROM events"
_FORGET = """DELETE FROM events
WHERE id IN (SELECT id FROM events WHERE id <= ? AND received_at < ? ORDER BY id LIMIT 500)"""
_CLOSED = "clickmask is shutting down"

log = logging.getLogger(__name__)


class Event(NamedTuple):
    id: int
    source: str
    received_at: float  # seconds since 1970
    body: bytes


class _Arrival(NamedTuple):
    source: str
    received_at: float
    body: bytes
    kept: Future[int]


class Inbox:
    """Raw webhook bodies in their own SQLite file, in order of arrival. For any thread.

    One thread writes. Each transaction stores all that arrived during the previous one, so callers share
    fsyncs. Nothing is parsed, so nothing is refused. `make_room` is asked once if the disk is full, and says
    whether it freed anything. Raises StoreUnavailable if SQLite cannot use the file or rejects its settings.
    """

    def __init__(
        self, path: Path, kept_for: float = EVENT_TTL_S, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self._kept_for, self._make_room = kept_for, make_room
        self._reading = threading.Lock()
        opened: list[sqlite3.Connection] = []
        try:
            opened += [_connect(path)]
            opened += [_connect(path)]
            self._writer, self._reader = opened
            self._writer.executescript(_SCHEMA)
            self._writer.execute(
                "INSERT INTO inbox SELECT ? WHERE NOT EXISTS (SELECT * FROM inbox)", (secrets.token_hex(8),)
            )
            (id,) = self._writer.execute("SELECT id FROM inbox").fetchone()  # noqa: A001
            (newest,) = self._writer.execute("SELECT max(seq) FROM sqlite_sequence").fetchone()
        except (sqlite3.Error, StoreUnavailable) as error:
            for connection in opened:
                connection.close()
            if isinstance(error, StoreUnavailable):
                raise
            raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME cannot be used: {told(error)}") from error
        self.id: str = id
        """Names this file for good: in another file the ids of events start again."""
        self.newest: int = newest or 0
        """The largest id that it ever gave; 0 before the first."""
        self.arrived = threading.Event()
        """Set when an event was kept; whoever waits for it has to clear it before looking."""
        self.unreadable = ""
        """Why no event can be read, as a sentence; empty if the last try succeeded."""
        self._last = time.monotonic()
        self._closed = False
        self._forget_to = 0
        self._arrivals: queue.SimpleQueue[_Arrival | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="inbox", daemon=True)
        self._thread.start()

    def keep(self, source: str, body: bytes) -> int:
        """Store an event. Returns its id once it will survive a kill and a power cut."""
        return self.keep_soon(source, body).result()

    def keep_soon(self, source: str, body: bytes) -> Future[int]:
        """Store an event. The future gives its id once it is durable; do not acknowledge it earlier."""
        arrival = _Arrival(source, time.time(), body, Future())
        arrival.kept.set_running_or_notify_cancel()  # store the event even if its sender hangs up
        if self._closed:
            raise StoreUnavailable(_CLOSED)
        self._last = time.monotonic()
        self._arrivals.put(arrival)
        return arrival.kept

    def events(self, after: int = 0, limit: int = 100) -> list[Event]:
        """At most `limit` events with an id above `after`, oldest first."""
        rows = self._read(f"{_SELECT} WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [Event(*row) for row in rows]

    def event(self, id: int) -> Event | None:  # noqa: A002
        rows = self._read(f"{_SELECT} WHERE id = ?", (id,))
        return Event(*rows[0]) if rows else None

    def quiet_for(self) -> float:
        """Seconds since the last event arrived."""
        return time.monotonic() - self._last

    def forget_to(self, id: int) -> None:  # noqa: A002
        """Let later arrivals remove events up to this id once they are old."""
        self._forget_to = id

    def count(self, after: int = 0) -> int:
        """Number of events with ids above `after`, by gapless ids: counting takes 0.4 s for 60,000."""
        first, last = self._read("SELECT (SELECT min(id) FROM events), (SELECT max(id) FROM events)")[0]
        return max(0, last - max(after, first - 1)) if first else 0

    def close(self) -> None:
        """Store what has arrived, and stop."""
        self._closed = True
        self._arrivals.put(None)
        self._thread.join()
        while not self._arrivals.empty():
            if late := self._arrivals.get():
                late.kept.set_exception(StoreUnavailable(_CLOSED))
        self._writer.close()
        with self._reading:
            self._reader.close()

    def _read(self, sql: str, values: Sequence[int] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._reading:
                rows = self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self.unreadable = f"the inbox cannot be read: {told(error)}"
            raise StoreUnavailable(self.unreadable) from error
        self.unreadable = ""
        return rows

    def _write(self) -> None:
        closed = False
        while not closed:
            together: list[_Arrival] = []
            while not closed and len(together) < MAX_BATCH:
                try:
                    arrival = self._arrivals.get(block=not together)
                except queue.Empty:
                    break
                closed = arrival is None
                together += [arrival] if arrival else []
            batches = [together] if together else []
            while batches:
                batch = batches.pop()
                try:
                    self._keep(batch)
                except BaseException as error:  # noqa: BLE001 - whatever it is: senders wait, and more will come
                    if len(batch) > 1:  # one that is too large must not refuse the others
                        batches += [[each] for each in reversed(batch)]
                        continue
                    log.error("an event could not be kept: %s", error)
                    reason = told(error) if isinstance(error, sqlite3.Error) else type(error).__name__
                    batch[0].kept.set_exception(StoreUnavailable(f"the event could not be kept: {reason}"))

    def _keep(self, together: Sequence[_Arrival]) -> None:
        """Store these events, then tell their senders. A full disk is tried once more if it gives room."""
        try:
            ids = self._insert(together)
        except sqlite3.Error as error:
            if not (is_full(error) and self._make_room()):
                raise
            ids = self._insert(together)
        self.arrived.set()
        for arrival, number in zip(together, ids, strict=True):
            arrival.kept.set_result(number)

    def _insert(self, together: Sequence[_Arrival]) -> list[int]:
        insert = "INSERT INTO events (source, received_at, body) VALUES (?, ?, ?)"
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            ids = [self._writer.execute(insert, arrival[:3]).lastrowid or 0 for arrival in together]
            self._writer.execute(_FORGET, (self._forget_to, time.time() - self._kept_for))
            self._writer.execute("COMMIT")
        except BaseException:  # MemoryError too: an open transaction would refuse all later events
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        self.newest = ids[-1]
        return ids


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        for name, value in PRAGMAS.items():
            connection.execute(f"PRAGMA {name} = {value}")
            if connection.execute(f"PRAGMA {name}").fetchone() != (value,):
                where = "CLICKMASK_HOME: is it on a network drive?"
                raise StoreUnavailable(f"SQLite refuses {name} = {value} in {where}")
    except BaseException:
        connection.close()
        raise
    return connection


def mend_inbox(path: Path, damaged: DamagedFiles) -> None:
    """Set a damaged inbox aside and make a new one of the events that can be read, which are then read again.
    Nobody else may use it meanwhile. Raises StoreUnavailable if it is whole, but cannot be used."""

    def is_ours(connection: sqlite3.Connection) -> None:
        connection.execute(f"{_SELECT} LIMIT 0")
        connection.execute("SELECT id FROM inbox")

    def read_back(old: Path, path: Path) -> str:
        kept, last = 0, 0
        with closing(open_old(old)) as source:
            Inbox(path).close()
            with closing(_connect(path)) as new:
                try:
                    new.execute("BEGIN")
                    for event in _readable(source):
                        new.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", event)
                        kept, last = kept + 1, event.id
                    new.execute("COMMIT")
                except sqlite3.Error as error:
                    raise StoreUnavailable(f"the inbox cannot be mended: {told(error)}") from error
        lost = "" if kept == last else f", {last - kept} or more before them are lost or were forgotten"
        return (
            f"{kept} events were read back from it{lost}; what others announced, "
            "`clickmask pull TOOL PROJECT` takes in"
        )

    mend_database(path, damaged, is_ours, read_back)


def _readable(connection: sqlite3.Connection) -> Iterator[Event]:
    """Events that can be read, oldest first. A damaged page hides those between two ids."""
    after, failures = 0, 0
    while after < MAX_ID:
        try:
            row = connection.execute(f"{_SELECT} WHERE id > ? ORDER BY id LIMIT 1", (after,)).fetchone()
        except sqlite3.Error:
            failures += 1
            after += 2 ** max(0, failures - MAX_MISSES)
            continue
        if row is None:
            return
        failures, after = 0, int(row[0])
        yield Event(*row)
