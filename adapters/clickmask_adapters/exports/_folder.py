"""A folder that is replaced as a whole: readers see the old export or the new one."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from clickmask.errors import ExportFailed, InvalidRequest

MANIFEST = ".clickmask-export"  # names every file of an export, so that nothing else is ever removed
_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """An empty folder to write into; it takes the place of `folder` when the block ends well.

    Raises InvalidRequest where `folder` holds anything but an earlier export.
    """
    folder = folder.absolute()
    require_replaceable(folder)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
    except OSError as error:
        raise InvalidRequest(f"nothing can be written beside {folder}: {error.strerror}") from error
    try:
        yield beside
        (beside / MANIFEST).write_text(json.dumps(sorted(_files(beside))))
        _flush(beside)
        require_replaceable(folder)
        _exchange(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_replaceable(folder: Path) -> None:
    """Raise InvalidRequest unless `folder` is missing, empty, or an earlier export and nothing else."""
    if folder.is_symlink() or folder.is_mount() or (folder.exists() and not folder.is_dir()):
        raise InvalidRequest(f"{folder} cannot be replaced as a whole: give a new folder in it or beside it")
    if not folder.exists():
        return
    there = _files(folder)
    try:
        ours = set(cast("list[str]", json.loads((folder / MANIFEST).read_text()))) | {MANIFEST}
    except (OSError, ValueError):
        ours = set[str]()
    if foreign := sorted(there - ours):
        raise InvalidRequest(f"{folder} holds {foreign[0]}, which is no export's: give a new folder")


def _files(folder: Path) -> set[str]:
    """Everything but folders, as paths from `folder`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, folder: Path) -> None:
    """`new` becomes `folder`, and an earlier one is left where `new` was."""
    try:
        if not folder.exists():
            new.rename(folder)
        elif not _exchanged_at_once(new, folder):
            aside = new.with_name(f"{new.name}.old")
            folder.rename(aside)
            try:
                new.rename(folder)
            except OSError:
                aside.rename(folder)
                raise
            aside.rename(new)
    except OSError as error:
        raise ExportFailed(f"{folder} could not be replaced: {error.strerror}") from error


def _exchanged_at_once(one: Path, other: Path) -> bool:
    """False where the system, or its file system, has no such step."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0
