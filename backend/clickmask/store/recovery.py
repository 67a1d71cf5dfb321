"""A damaged store: set aside, and replaced by a new one of those tables that can be read to their end."""

import sqlite3
from contextlib import closing
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
PULL = "the inbox's last 30 days are read again, and `clickmask pull TOOL PROJECT` brings back the rest"


def mend_store(path: Path, damaged: DamagedFiles) -> None:
    """Set a damaged SQLite store aside and make a new one of what can be read. Nobody else may use it
    meanwhile. Raises StoreUnavailable if it is whole but cannot be used, such as a newer clickmask's."""
    mend_database(path, damaged, _require_ours, lambda old: _read_back(old, path))


def _require_ours(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.Error for another program's tables."""
    (reached,) = connection.execute(f"SELECT version_num FROM {version_table.name}").fetchone() or ("",)  # noqa: S608 - a constant
    if reached > HEAD:
        raise StoreUnavailable(
            f"the database was written by a newer clickmask (its schema is {reached}): start that one, "
            "or set CLICKMASK_HOME to another folder"
        )
    if reached == HEAD:
        for table in metadata.sorted_tables:
            connection.execute(f"SELECT {', '.join(table.c.keys())} FROM {table.name} LIMIT 0")  # noqa: S608 - constants


def _read_back(old: Path, new: Path) -> str:
    lost: list[str] = []
    with closing(open_old(old)) as source:
        Database(new).close()
        with closing(sqlite3.connect(new)) as target:
            for words, tables in GROUPS:
                try:
                    with target:
                        for name in tables:
                            _copy(source, target, name)
                except sqlite3.Error:
                    lost.append(words)
    said = (
        "Everything could be read back from it"
        if not lost
        else f"These could not be read back: {', '.join(lost)}"
    )
    return f"{said}; {PULL}" if LABELS in lost else said


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, name: str) -> None:
    """Copy the rows of a table. An earlier clickmask's has fewer columns. Raises sqlite3.Error."""
    table = metadata.tables[name]
    there = {row[1] for row in source.execute(f"PRAGMA table_info({name})")}
    columns = [column for column in list(table.c.keys()) if column in there]
    if not columns:
        raise sqlite3.DatabaseError(f"there is no table {name}")
    named, places = ", ".join(columns), ", ".join("?" * len(columns))
    rows = source.execute(f"SELECT {named} FROM {name} NOT INDEXED")  # noqa: S608 - our own names
    target.executemany(f"INSERT OR IGNORE INTO {name} ({named}) VALUES ({places})", rows)  # noqa: S608
