"""Damaged SQLite files: found, said in a sentence, set aside, and replaced by what can be read of them."""

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from clickmask.errors import StoreUnavailable
from clickmask.files import DamagedFiles

MAX_CHECK_S = 3.0  # spent on a file's pages before a server starts: about a gigabyte
_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # https://sqlite.org/fileformat2.html#walformat
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT)


def is_damaged(error: BaseException | None) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: BaseException | None) -> bool:
    """Whether the disk may be full: a log that cannot grow is reported as a failed write."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def told(error: BaseException | None) -> str:
    """A clause on what is wrong, and what to do. SQLite's own words may hold values."""
    if is_damaged(error):
        return "it is damaged; restart clickmask, which sets it aside and keeps what can be read of it"
    if is_full(error):
        return "is there room in CLICKMASK_HOME, and is its disk well?"
    return "is it there, is there room, and may this user write it?"


def mend_database(
    path: Path,
    damaged: DamagedFiles,
    is_ours: Callable[[sqlite3.Connection], object],
    read_back: Callable[[Path], str],
) -> None:
    """Set the SQLite file aside if it is damaged. Then `read_back` makes a new one at `path` of what it can
    read of the old one, and says what that was.

    `is_ours` raises sqlite3.Error if the tables are not ours. Nobody else may use the file meanwhile. Raises
    StoreUnavailable if the file is whole, but this user may not use it.
    """
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if os.path.lexists(beside) and (reason := _damage_of_log(beside)):
            said = "The last changes may be lost" if suffix == "-wal" else ""
            damaged.set_aside(beside, reason, lambda _, said=said: said)
    if os.path.lexists(path) and (reason := _damage(path, is_ours)):
        damaged.set_aside(path, reason, read_back)


def open_old(path: Path) -> sqlite3.Connection:
    """What was set aside, to be read; an empty database if it is no file."""
    return sqlite3.connect(path if path.is_file() else ":memory:")


def _damage_of_log(path: Path) -> str:
    if not path.is_file():
        return "is no file that can be read"
    _require_access(path)
    if not path.name.endswith("-wal") or not path.stat().st_size:
        return ""
    with path.open("rb") as file:
        return "" if file.read(4) in _WAL_MAGIC else "is damaged"


def _damage(path: Path, is_ours: Callable[[sqlite3.Connection], object]) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"leads nowhere ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    _require_access(path)
    if not status.st_size:
        return "is empty"
    deadline = time.monotonic() + MAX_CHECK_S
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            is_ours(connection)
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return "" if found == "ok" else "is damaged"
    except sqlite3.DatabaseError as error:
        if is_full(error):
            raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME cannot be read: {told(error)}") from error
        if _code(error) in _BUSY:
            return ""
        return "is damaged" if is_damaged(error) else "holds the tables of another program"


def _require_access(path: Path) -> None:
    if not os.access(path, os.R_OK | os.W_OK):
        said = "may not be read and written by this user: give it back with chown or chmod"
        raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME {said}")


def _code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
