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

# Where a table cannot be read to its end, what belongs together is not read back at all: half of an
# annotation's labels would count as all of them, and no pull would notice. Without labels there is no reading
# progress either, so the inbox is read again. A row whose text is damaged is left out alone, but a label with
# its annotation.
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
PROGRESS = ("inboxes", "pulls")
_DAMAGED = object()  # a text that is none
LABELS = GROUPS[1][0]
SINCE = {"preannotated": "0003", "unfinished": "0004", "jobs": "0005"}  # the step that made a table
PULL = (
    "the inbox's last 30 days are read again, `clickmask pull TOOL PROJECT` brings back the rest, "
    "and what was imported has to be imported again"
)


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
        source.text_factory = _text
        Database(new).close()
        with closing(sqlite3.connect(new)) as target:
            for words, tables in GROUPS:
                try:
                    left_out = sum(_copy(source, target, name) for name in tables)
                except sqlite3.Error:
                    target.rollback()
                    lost.append(words)
                else:
                    if left_out:
                        lost.append(f"{left_out} of the {words}")
                    if left_out and words == LABELS:
                        _begin_again(target)
                with _writing():
                    target.commit()
    said = (
        "Everything could be read back from it"
        if not lost
        else f"These could not be read back: {', '.join(lost)}"
    )
    return f"{said}; {PULL}" if any(each.endswith(LABELS) for each in lost) else said


def _text(raw: bytes) -> object:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _DAMAGED


def _begin_again(target: sqlite3.Connection) -> None:
    """Forget labels without an annotation, and what was read of the inbox, which brings it back."""
    with _writing():
        target.execute("DELETE FROM labels WHERE revision NOT IN (SELECT revision FROM annotations)")
        for name in PROGRESS:
            target.execute(f"DELETE FROM {name}")  # noqa: S608 - our own names


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, name: str) -> int:
    """Copy the rows of a table, and say how many had to be left out. An earlier clickmask's has fewer
    columns, or is not there. Raises sqlite3.Error if it cannot be read, and StoreUnavailable if it cannot be
    written."""
    table = metadata.tables[name]
    there = {row[1] for row in source.execute(f"PRAGMA table_info({name})")}
    columns = [column for column in list(table.c.keys()) if column in there]
    if not columns:
        if _reached(source) < SINCE.get(name, ""):
            return 0
        raise sqlite3.DatabaseError(f"there is no table {name}")
    named, places = ", ".join(columns), ", ".join("?" * len(columns))
    rows = source.execute(f"SELECT {named} FROM {name} NOT INDEXED")  # noqa: S608 - our own names
    left_out = 0
    while some := rows.fetchmany(1000):
        whole, damaged = list[tuple[object, ...]](), list[dict[str, object]]()
        for row in some:
            if _DAMAGED in row:
                damaged.append(dict(zip(columns, row, strict=True)))
            else:
                whole.append(row)
        half = [each["revision"] for each in damaged] if name == "labels" else []
        if _DAMAGED in half:
            raise sqlite3.DatabaseError("a label lacks its annotation's name")
        with _writing():
            target.executemany(f"INSERT OR IGNORE INTO {name} ({named}) VALUES ({places})", whole)  # noqa: S608
            target.executemany("DELETE FROM annotations WHERE revision = ?", [(each,) for each in half])
        left_out += len(damaged)
    return left_out


@contextmanager
def _writing() -> Generator[None]:
    """Raise StoreUnavailable for an error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable("the store cannot be mended: is there room in CLICKMASK_HOME?") from error
