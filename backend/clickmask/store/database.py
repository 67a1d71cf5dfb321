"""One database engine for readers and writers: SQLite settings, transactions, and migrations."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from clickmask.errors import StoreUnavailable
from clickmask.store import migrations

log = logging.getLogger(__name__)

# Values SQLite must confirm. Synchronous NORMAL skips the fsync per transaction, which would delay clicks.
# A power cut may lose the last transactions but never half of one.
PRAGMAS: Mapping[str, str | int] = MappingProxyType(
    {
        "journal_mode": "wal",
        "synchronous": 1,
        "busy_timeout": 5000,
        "wal_autocheckpoint": 0,  # `_empty_log` does this
        "journal_size_limit": 2 * 2**20,  # bytes, for an emptied log; below MAX_WAL_BYTES
    }
)
MAX_WAL_BYTES = 4 * 2**20  # a longer write-ahead log is emptied
MAX_WRITE_S = 0.05  # a write transaction should take no longer
MAX_OPEN_WAIT_S = 10.0  # for other processes that are opening the same new file
WRITERS = 7250614  # key of the PostgreSQL lock that our writers share: arbitrary but fixed


@dataclass(frozen=True)
class WriteTimes:
    """Durations of all write transactions since the start, from getting the lock to the commit."""

    count: int = 0
    longest_ms: float = 0.0
    over_50_ms: int = 0

    def with_one(self, seconds: float) -> WriteTimes:
        longest = max(self.longest_ms, 1000 * seconds)
        return WriteTimes(self.count + 1, longest, self.over_50_ms + (seconds > MAX_WRITE_S))


class Database:
    """Transactions on `where`, the path of an SQLite file or a URL. For any thread."""

    def __init__(self, where: Path | str) -> None:
        self._write_lock = threading.Lock()  # SQLite itself would wait by sleeping, which delays clicks
        url = where if isinstance(where, str) else sa.URL.create("sqlite", database=str(where))
        try:
            self.engine = sa.create_engine(url)
        except (ArgumentError, NoSuchModuleError) as error:
            raise StoreUnavailable("CLICKMASK_DATABASE is not the address of a known database") from error
        except ModuleNotFoundError as error:
            raise StoreUnavailable(f"CLICKMASK_DATABASE needs the package {error.name}") from error
        self.write_times = WriteTimes()
        self._log: Path | None = None
        self._emptying = threading.Lock()
        if self.engine.dialect.name == "sqlite":
            self._log = Path(f"{self.engine.url.database}-wal")
            event.listen(self.engine, "connect", _set_up)
        event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(writes=True)
        try:
            with self.reading() as connection:
                version = migrations.version(connection)
            if version != migrations.HEAD:
                with self.writing() as connection:  # another process may have been faster: it checks again
                    migrations.upgrade(connection)
        except StoreUnavailable:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """A transaction that sees a single state of the database. Raises StoreUnavailable."""
        with _sentence(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """A short transaction: committed at its end, undone by an exception. Raises StoreUnavailable."""
        with _sentence():
            with self._write_lock:
                with self._writer.begin() as connection:
                    began = time.perf_counter()
                    yield connection
                self.write_times = self.write_times.with_one(time.perf_counter() - began)
            self._empty_log()

    def close(self) -> None:
        self.engine.dispose()

    def _empty_log(self) -> None:
        """Empty the log between transactions. SQLite would do it inside one and make others wait."""
        try:
            if not self._log or self._log.stat().st_size < MAX_WAL_BYTES:
                return
        except FileNotFoundError:
            return
        if not self._emptying.acquire(blocking=False):
            return
        try:
            with closing(self.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:  # nothing is lost: the next writer tries again
            log.warning("SQLite's log could not be emptied: %s", error)
        finally:
            self._emptying.release()


def put(
    connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Update the row with this key, or insert it."""
    changed = connection.execute(table.update().filter_by(**key).values(values))
    if not changed.rowcount:
        connection.execute(table.insert(), {**key, **values})


class Part:
    """A part of the store: methods on some of its tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _scalar(self, query: sa.Executable) -> Any:
        with self._database.reading() as connection:
            return connection.scalar(query)

    def _rows(self, query: sa.Executable) -> Sequence[Any]:
        with self._database.reading() as connection:
            return connection.execute(query).all()


@contextmanager
def _sentence() -> Generator[None]:
    """Replace the driver's errors with StoreUnavailable, because their text names paths and passwords."""
    try:
        yield
    except DatabaseError as error:
        if not isinstance(error, OperationalError) and type(error) is not DatabaseError:
            raise  # our own mistake; a damaged file raises DatabaseError itself
        raise StoreUnavailable(
            "the database cannot be used just now: is it there, and is there room?"
        ) from error


def _set_up(connection: Any, record: object) -> None:
    """Set up each new SQLite connection."""
    connection.isolation_level = None  # we begin transactions ourselves; sqlite3 would guess
    for name, value in PRAGMAS.items():
        # Wait for other processes. SQLite does not wait if several switch to WAL at once.
        deadline = time.monotonic() + MAX_OPEN_WAIT_S
        while True:
            try:
                connection.execute(f"PRAGMA {name} = {value}")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != value:
            raise StoreUnavailable(
                f"SQLite refuses {name} = {value} in CLICKMASK_HOME: is it on a network drive?"
            )


def _begin(connection: sa.Connection) -> None:
    """Admit one writer across all processes, so that what it reads stays true until it writes."""
    writes = connection.get_execution_options().get("writes", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes and connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
