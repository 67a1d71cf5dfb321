"""Atomic writes of files and folders, and locks between processes, on every system. Content goes into a draft
(`NAME.<8 hex digits>.draft`) that is flushed and renamed into place, so a reader finds the old or the new
content even after a kill. The folder's owner removes abandoned drafts."""

import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRAFT = ".draft"
_AT_FDCWD, _EXCHANGE = -100, 2  # constants of Linux's renameat2


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
