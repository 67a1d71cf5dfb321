"""Damaged SQLite files: found, said in a sentence, set aside, and replaced by what can be read of them."""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from clickmask import files
from clickmask.errors import StoreUnavailable
from clickmask.files import DamagedFiles

MAX_CHECK_S = 3.0  # spent on a file's pages before a server starts: about a gigabyte
MAX_NEW_S = 1.0  # for which a file may be empty while another process makes its database
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
    read_back: Callable[[Path, Path], str],
) -> None:
    """If the SQLite file is damaged, replace it by a new one, and set it aside. `read_back(old, new)` makes
    the new one of what it can read of the old one, and says what that was.

    A killed call is finished by the next one: the old file leaves its place only when the new one is whole.
    `is_ours` raises sqlite3.Error if the tables are not ours. Nobody else may use the file meanwhile. Raises
    StoreUnavailable if the file is whole but cannot be used now, or if there is no room for the new one.
    """
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if os.path.lexists(beside) and (reason := _damage_of_log(beside)):
            said = "The last changes may be lost" if suffix == "-wal" else ""
            damaged.set_aside(beside, reason, lambda _, said=said: said)
    unfinished, new = (path.with_name(path.name + suffix) for suffix in (".mending", ".mended"))
    if os.path.lexists(path) and (reason := _damage(path, is_ours)):
        for suffix in ("", "-wal", "-shm"):
            files.remove(path.with_name(unfinished.name + suffix))
        said = read_back(path, unfinished)
        if os.path.lexists(path.with_name(f"{unfinished.name}-wal")):
            raise StoreUnavailable(f"{path.name} cannot be mended: is there room in CLICKMASK_HOME?")
        files.flush(unfinished)
        unfinished.replace(new)
        damaged.set_aside(path, reason, lambda _: said)
    if os.path.lexists(new) and not os.path.lexists(path):
        new.rename(path)
        files.flush(path.parent)


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
        if error.errno == errno.ELOOP:
            return "leads to itself"
        said = f"leads nowhere ({error.strerror}): is its disk there?"
        raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME {said}") from error
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    _require_access(path)
    deadline = time.monotonic() + MAX_NEW_S
    while not path.stat().st_size:
        if time.monotonic() > deadline:
            return "is empty"
        time.sleep(0.02)
    deadline = time.monotonic() + MAX_CHECK_S
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                return ""  # a first start is under way, or was killed
            is_ours(connection)
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return "" if found == "ok" else "is damaged"
    except sqlite3.DatabaseError as error:
        if is_full(error):
            raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME cannot be read: {told(error)}") from error
        if _code(error) in _BUSY:
            return ""
        if is_damaged(error):
            return "is damaged"
        if _code(error) == sqlite3.SQLITE_ERROR:  # a table or column is not there
            return "holds the tables of another program"
        raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME cannot be read: {told(error)}") from error


def _require_access(path: Path) -> None:
    if not os.access(path, os.R_OK | os.W_OK):
        said = "may not be read and written by this user: give it back with chown or chmod"
        raise StoreUnavailable(f"{path.name} in CLICKMASK_HOME {said}")


def _code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
