"""A damaged store: set aside, and replaced by a new one of those tables that can be read to their end."""

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from clickmask.errors import StoreUnavailable
from clickmask.files import DamagedFiles
from clickmask.store.damage import mend_database, open_old
from clickmask.store.database import HEAD, Database, version_table
from clickmask.store.schema import metadata

# What belongs together is read back whole or not at all: half of an annotation's labels would count as all of
# them, and no pull would notice. Without labels there is no reading progress either, so the inbox is read
# again.
GROUPS = (
    ("projects", ("projects", "origins")),
    (
        "accepted labels",
        ("annotations", "labels", "unfinished", "tombstones", "inboxes", "set_aside", "pulls"),
    ),
    ("sides of images", ("sides",)),
    ("proposals", ("proposals",)),
    ("what models drew", ("preannotated", "unfinished")),
    ("trainings", ("jobs",)),
)
LABELS = GROUPS[1][0]
SINCE = {"preannotated": "0003", "unfinished": "0004", "jobs": "0005"}  # the step that made a table
PULL = "the inbox's last 30 days are read again, and `clickmask pull TOOL PROJECT` brings back the rest"


def mend_store(path: Path, damaged: DamagedFiles) -> None:
    """Set a damaged SQLite store aside and make a new one of what can be read. Nobody else may use it
    meanwhile. Raises StoreUnavailable if it is whole but cannot be used, such as a newer clickmask's."""
    mend_database(path, damaged, _require_ours, _read_back)


def _require_ours(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.Error for another program's tables."""
    reached = _reached(connection)
    if reached > HEAD:
        raise StoreUnavailable(
            f"the database was written by a newer clickmask (its schema is {reached}): start that one, "
            "or set CLICKMASK_HOME to another folder"
        )
    if reached == HEAD:
        for table in metadata.sorted_tables:
            connection.execute(f"SELECT {', '.join(table.c.keys())} FROM {table.name} LIMIT 0")  # noqa: S608 - constants


def _reached(connection: sqlite3.Connection) -> str:
    """The last step of the schema that the database has taken. Raises sqlite3.Error."""
    row = connection.execute(f"SELECT version_num FROM {version_table.name}").fetchone()  # noqa: S608 - a constant
    return row[0] if row else ""


def _read_back(old: Path, new: Path) -> str:
    """Make the store `new` of what can be read of `old`, and say what cannot. Raises StoreUnavailable if it
    cannot be written: what is not written then could have been read."""
    lost: list[str] = []
    with closing(open_old(old)) as source:
        Database(new).close()
        with closing(sqlite3.connect(new)) as target:
            for words, tables in GROUPS:
                try:
                    for name in tables:
                        _copy(source, target, name)
                except sqlite3.Error:
                    target.rollback()
                    lost.append(words)
                with _writing():
                    target.commit()
    said = (
        "Everything could be read back from it"
        if not lost
        else f"These could not be read back: {', '.join(lost)}"
    )
    return f"{said}; {PULL}" if LABELS in lost else said


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, name: str) -> None:
    """Copy the rows of a table. An earlier clickmask's has fewer columns, or is not there. Raises
    sqlite3.Error if it cannot be read, and StoreUnavailable if it cannot be written."""
    table = metadata.tables[name]
    there = {row[1] for row in source.execute(f"PRAGMA table_info({name})")}
    columns = [column for column in list(table.c.keys()) if column in there]
    if not columns:
        if _reached(source) < SINCE.get(name, ""):
            return
        raise sqlite3.DatabaseError(f"there is no table {name}")
    named, places = ", ".join(columns), ", ".join("?" * len(columns))
    rows = source.execute(f"SELECT {named} FROM {name} NOT INDEXED")  # noqa: S608 - our own names
    while some := rows.fetchmany(1000):
        with _writing():
            target.executemany(f"INSERT OR IGNORE INTO {name} ({named}) VALUES ({places})", some)  # noqa: S608


@contextmanager
def _writing() -> Generator[None]:
    """Raise StoreUnavailable for an error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable("the store cannot be mended: is there room in CLICKMASK_HOME?") from error
