"""Atomic writes of files and folders, locks between processes, and damaged files, on every system. Content
goes into a draft (`NAME.<8 hex digits>.draft`) that is flushed and renamed into place, so a reader finds the
old or the new content even after a kill. The folder's owner removes abandoned drafts."""

import ctypes
import errno
import logging
import os
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRAFT = ".draft"
ASIDE = ".damaged-"  # in the names of what was set aside
_AT_FDCWD, _EXCHANGE = -100, 2  # constants of Linux's renameat2

log = logging.getLogger(__name__)


def read(path: Path) -> bytes:
    """The content of a file. Raises OSError, also for whatever else has its name: a pipe would be waited
    for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes()


def write(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file completely or not at all. Its folder must exist. Raises OSError, without leaving a draft.
    A `durable` file survives a power cut. Any other may then hold anything, which suits caches with a
    checksum. `mode`: permissions, before the umask."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{DRAFT}")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if durable:
        flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk. Windows and some network file systems
    flush no folders and write names in their own time."""
    is_folder, is_posix = path.is_dir(), hasattr(os, "O_DIRECTORY")
    if is_folder and not is_posix:
        return
    descriptor = os.open(path, os.O_RDONLY if is_posix else os.O_RDWR)  # Windows flushes no read-only file
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make the folder and its parents, durably. Raises OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode, exist_ok=True)
        flush(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as that is possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush_tree(folder: Path) -> None:
    """Flush `folder` and everything below it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` in place of `folder`, and the old `folder`, if any, where `new` was. Raises OSError. Both lie
    on one file system. Linux exchanges them in one step. Elsewhere `folder` is missing for a moment, and the
    old one comes back if the second step fails."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        aside = new.with_name(f"{new.name}.old")
        folder.rename(aside)
        try:
            new.rename(folder)
        except OSError:
            aside.rename(folder)
            raise
        aside.rename(new)
    flush(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. Returns False if the system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return bool(rename) and rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0


@contextmanager
def lock(path: Path, *, shared: bool = False, blocking: bool = True) -> Generator[None]:
    """Hold the lock `path`, a file of its own that stays, until the block ends or the process dies. It
    excludes processes and threads. Any number may hold it `shared` while nobody holds it alone; on Windows
    they take turns. Raises BlockingIOError if held and not `blocking`, OSError if the file cannot be made."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if fcntl is None:
        import filelock  # imported here: it takes 40 ms and only Windows needs it

        try:
            held = filelock.FileLock(path).acquire(blocking=blocking)
        except filelock.Timeout as error:
            raise BlockingIOError(errno.EAGAIN, "the lock is held", str(path)) from error
        with held:
            yield
        return
    with path.open("ab") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB))
        yield


def make_way(path: Path) -> Path:
    """Rename something damaged to `NAME.damaged-TIME`, an SQLite file with its logs. Returns the new path.
    Raises OSError."""
    name = f"{path.name}{ASIDE}{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    while os.path.lexists(path.with_name(name)):
        name += "-again"
    for suffix in ("-wal", "-shm", ""):  # SQLite deletes a log that is left without its file
        beside = path.with_name(path.name + suffix)
        if os.path.lexists(beside):
            beside.rename(path.with_name(name + suffix))
    flush(path.parent)
    return path.with_name(name)


@dataclass(frozen=True)
class Damaged:
    """Something that could not be used, and was renamed so that nothing is lost."""

    name: str  # relative to the home
    kept_as: str  # its name now
    at: float  # seconds since 1970
    sentence: str


class DamagedFiles:
    """Damaged files and folders of `home`, renamed to `NAME.damaged-TIME` in their folders. For any
    thread."""

    def __init__(self, home: Path) -> None:
        self._home, self._lock = home, threading.Lock()
        self._found: list[Damaged] = []
        self._troubles: list[str] = []

    def set_aside(self, path: Path, reason: str, then: Callable[[Path], str] = lambda kept_as: "") -> None:
        """Rename `path`, and say so. `then` puts something in its place, and says what. Raises OSError."""
        with self._lock:
            kept_as = make_way(path)
        named, renamed = (os.path.relpath(each, self._home) for each in (path, kept_as))
        done = ""
        try:
            done = then(kept_as)
        finally:
            sentence = f"{named} {reason}: it was set aside as {renamed}" + f". {done}" * bool(done)
            log.error("%s", sentence)
            with self._lock:
                self._found.append(Damaged(named, renamed, time.time(), sentence))

    def find_earlier(self, folder: Path) -> None:
        """Remember what an earlier process set aside in `folder` and nobody has looked at since."""
        for path in sorted(folder.glob(f"*{ASIDE}*")):
            if path.name.endswith(("-wal", "-shm")):
                continue
            named, renamed = (
                os.path.relpath(path.with_name(name), self._home)
                for name in (path.name.partition(ASIDE)[0], path.name)
            )
            said = f"{named} was damaged, and was set aside earlier as {renamed}"
            sentence = f"{said}: move that away once it is dealt with"
            with self._lock:
                self._found.append(Damaged(named, renamed, path.lstat().st_mtime, sentence))

    def add_trouble(self, sentence: str) -> None:
        """Say what cannot be used, and was left as it is."""
        log.error("%s", sentence)
        with self._lock:
            self._troubles.append(sentence)

    def troubles(self) -> list[str]:
        with self._lock:
            return list(self._troubles)

    def all(self) -> list[Damaged]:
        """What was set aside, oldest first."""
        with self._lock:
            return list(self._found)
