"""One database engine for readers and writers: settings, transactions, sets of rows, and migrations.

A set holds the labels of an annotation on an image, or the output of one run of a model over an image. It is
written and removed in small steps, so that no write transaction is long. A transaction that puts a set out of
use lists it in `unfinished`, as does the first one that writes it: that is what a killed process left.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from clickmask.errors import StoreUnavailable
from clickmask.store.damage import is_damaged, is_full, told
from clickmask.store.schema import jobs, metadata, prelabels, unfinished

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
MAX_VALUES = 10_000  # of a statement that reads: SQLite may take 32,766, PostgreSQL 65,535
MAX_ROWS = 200  # per write transaction, so that a click waits for it only milliseconds
MAX_CHARACTERS = 2**19  # per write transaction, for the same reason
LONG_TEXTS = ("counts", "geometry")  # names of columns
Row = TypeVar("Row")
# Holds the last step of migration; named when alembic kept it.
version_table = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
)


@dataclass(frozen=True)
class WriteTimes:
    """Durations of all write transactions since the start, from getting the lock to the commit."""

    count: int = 0
    longest_ms: float = 0.0
    over_50_ms: int = 0

    def with_one(self, seconds: float) -> "WriteTimes":
        longest = max(self.longest_ms, 1000 * seconds)
        return WriteTimes(self.count + 1, longest, self.over_50_ms + (seconds > MAX_WRITE_S))


class Database:
    """Transactions on `where`, the path of an SQLite file or a URL. For any thread. `make_room` is called if
    the disk is full, so that the next try of what failed succeeds."""

    def __init__(self, where: Path | str, make_room: Callable[[], bool] = lambda: False) -> None:
        self._make_room = make_room
        self._write_lock = threading.Lock()  # SQLite itself would wait by sleeping, which delays clicks
        url = where if isinstance(where, str) else sa.URL.create("sqlite", database=str(where))
        try:
            self.engine = sa.create_engine(url)
        except (ArgumentError, NoSuchModuleError) as error:
            raise StoreUnavailable("CLICKMASK_DATABASE is not the address of a known database") from error
        except ModuleNotFoundError as error:
            raise StoreUnavailable(f"CLICKMASK_DATABASE needs the package {error.name}") from error
        self.write_times = WriteTimes()
        self.removals = 0  # times that this process has taken annotations out of use
        self._log: Path | None = None
        self._emptying = threading.Lock()
        if self.engine.dialect.name == "sqlite":
            self._log = Path(f"{self.engine.url.database}-wal")
            event.listen(self.engine, "connect", _set_up)
        event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(writes=True)
        try:
            with self.reading() as connection:
                migrated = version(connection) == HEAD
            if not migrated:
                with self.writing() as connection:  # another process may have been faster: it checks again
                    upgrade(connection)
        except StoreUnavailable:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """A transaction that sees a single state of the database. Raises StoreUnavailable."""
        with self._sentence(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """A short transaction: committed at its end, undone by an exception. Raises StoreUnavailable."""
        with self._sentence():
            with self._write_lock:
                with self._writer.begin() as connection:
                    began = time.perf_counter()
                    yield connection
                self.write_times = self.write_times.with_one(time.perf_counter() - began)
            self._empty_log()

    def write_rows(self, name: str, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows of the set `name`, which stays unfinished until `replace_set`."""
        with self.writing() as connection:
            note_unfinished(connection, [name])
        for some in _chunks((row, sum(len(row.get(text, "")) for text in LONG_TEXTS)) for row in rows):
            with self.writing() as connection:
                connection.execute(table.insert(), some)

    def remove_rows(self, table: sa.Table, of: sa.ColumnElement[bool]) -> None:
        """Remove the rows `of` the table, in several transactions."""
        key = list(table.primary_key)
        lengths = (sa.func.length(column) for column in table.c if column.name in LONG_TEXTS)
        with self.reading() as connection:
            found = connection.execute(sa.select(*key, sum(lengths, sa.literal(0))).where(of)).all()
        for keys in _chunks((tuple(row[:-1]), row[-1]) for row in found):
            with self.writing() as connection:
                connection.execute(table.delete().where(sa.tuple_(*key).in_(keys)))

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _sentence(self) -> Generator[None]:
        """Replace the driver's errors with StoreUnavailable, because their text names paths and passwords."""
        try:
            yield
        except DatabaseError as error:
            if not isinstance(error, OperationalError) and type(error) is not DatabaseError:
                raise  # our own mistake; a damaged file raises DatabaseError itself
            if is_full(error.orig):
                self._make_room()
            reason = told(error.orig) if is_damaged(error.orig) else "is it there, and is there room?"
            raise StoreUnavailable(f"the database cannot be used just now: {reason}") from error

    def _empty_log(self) -> None:
        """Empty the log between transactions. SQLite would do it inside one and make others wait."""
        try:
            is_short = not self._log or self._log.stat().st_size < MAX_WAL_BYTES
        except FileNotFoundError:
            return
        if is_short or not self._emptying.acquire(blocking=False):
            return
        try:
            with closing(self.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:  # nothing is lost: the next writer tries again
            log.warning("SQLite's log could not be emptied: %s", error)
        finally:
            self._emptying.release()


class Part:
    """A part of the store: methods on some of its tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _scalar(self, query: sa.Executable) -> Any:
        with self._database.reading() as connection:
            return connection.scalar(query)

    def _execute(self, *writes: sa.Executable) -> None:
        """Make these changes in one transaction."""
        with self._database.writing() as connection:
            for write in writes:
                connection.execute(write)

    def _rows(self, query: sa.Executable) -> Sequence[Any]:
        with self._database.reading() as connection:
            return connection.execute(query).all()


def put(connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Update the row with this key, or insert it."""
    changed = connection.execute(table.update().filter_by(**key).values(values))
    if not changed.rowcount:
        connection.execute(table.insert(), {**key, **values})


def replace_set(connection: sa.Connection, stands: str, replaced: Sequence[str] = ()) -> None:
    """Put the set `stands` into use in place of `replaced`. Call it in the transaction that does so."""
    finished = connection.execute(unfinished.delete().where(unfinished.c.revision == stands))
    if not finished.rowcount:  # removed as abandoned, because a clock jumped
        raise StoreUnavailable("the labels took too long to be written; they will be written again")
    note_unfinished(connection, replaced)


def note_unfinished(connection: sa.Connection, revisions: Sequence[str]) -> None:
    """List sets that are not in use yet, or no longer. Call it in the transaction that makes this so."""
    if revisions:
        now = time.time()
        connection.execute(unfinished.insert(), [{"revision": name, "since": now} for name in revisions])


def _chunks(rows: Iterable[tuple[Row, int]]) -> Iterator[list[Row]]:
    """Split rows, given with their lengths, at MAX_ROWS and MAX_CHARACTERS. One row alone may be longer."""
    chunk: list[Row] = []
    characters = 0
    for row, length in rows:
        if chunk and (len(chunk) == MAX_ROWS or characters + length > MAX_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(row)
        characters += length
    if chunk:
        yield chunk


def version(connection: sa.Connection) -> str | None:
    """The last step the database has taken; None for a new database."""
    known = sa.inspect(connection).has_table(version_table.name)
    return connection.scalar(sa.select(version_table.c.version_num)) if known else None


def upgrade(connection: sa.Connection) -> None:
    """Take the missing steps in this transaction. Raises StoreUnavailable for a newer clickmask's data."""
    reached = version(connection)
    if reached is None:
        metadata.create_all(connection)
        version_table.create(connection, checkfirst=True)
        connection.execute(version_table.insert(), {"version_num": HEAD})
        return
    if reached > HEAD:
        raise StoreUnavailable(f"the database was written by a newer clickmask (its schema is {reached})")
    for number, step in STEPS.items():
        if number > reached:
            step(connection)
    connection.execute(version_table.update().values(version_num=HEAD))


def _add_jobs(connection: sa.Connection) -> None:
    """Create the table of jobs, and rename trained annotators from the family `unet` to `trained`."""
    jobs.create(connection)
    old = prelabels.c.annotator.like("unet:%")
    renamed = sa.literal("trained:") + sa.func.substr(prelabels.c.annotator, len("unet:") + 1)
    connection.execute(prelabels.update().where(old).values(annotator=renamed))


def _add_columns_of_labels(connection: sa.Connection) -> None:
    for added in (
        "annotations ADD COLUMN left_out TEXT NOT NULL DEFAULT '{}'",
        "annotations ADD COLUMN known_as TEXT NOT NULL DEFAULT ''",
        "labels ADD COLUMN layer INTEGER NOT NULL DEFAULT '0'",
    ):
        connection.execute(sa.text(f"ALTER TABLE {added}"))


def _add_network_of_jobs(connection: sa.Connection) -> None:
    if "network" not in {column["name"] for column in sa.inspect(connection).get_columns("jobs")}:
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN network TEXT NOT NULL DEFAULT ''"))


# A step creates its table as `schema` has it today, so a later step that adds a column looks whether it is
# there. A new database is created from `schema` directly.
STEPS: Mapping[str, Callable[[sa.Connection], object]] = MappingProxyType(
    {
        "0002": lambda connection: connection.execute(
            sa.text("ALTER TABLE projects ADD COLUMN unlabelled TEXT NOT NULL DEFAULT 'background'")
        ),
        "0003": prelabels.create,
        "0004": unfinished.create,
        "0005": _add_jobs,
        "0006": _add_columns_of_labels,
        "0007": lambda connection: connection.execute(
            sa.text("ALTER TABLE projects ADD COLUMN controls TEXT NOT NULL DEFAULT '{}'")
        ),
        "0008": _add_network_of_jobs,
    }
)
HEAD = max(STEPS)


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
            where = "CLICKMASK_HOME: is it on a network drive?"
            raise StoreUnavailable(f"SQLite refuses {name} = {value} in {where}")


def _begin(connection: sa.Connection) -> None:
    """Admit one writer across all processes, so that what it reads stays true until it writes."""
    writes = connection.get_execution_options().get("writes", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes and connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
