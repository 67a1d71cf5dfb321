"""A folder that is replaced as a whole: readers see the old export or the new one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from clickmask import files
from clickmask.errors import Failed, InvalidRequest

MANIFEST = ".clickmask-export"  # lists every file of an export, so nothing else is ever removed


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """An empty folder that replaces `folder` if the block succeeds. Raises as `require_replaceable` does."""
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
        files.flush_tree(beside)
        require_replaceable(folder)
        try:
            files.replace_folder(beside, folder)
        except OSError as error:
            raise Failed(f"{folder} could not be replaced: {error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_replaceable(folder: Path) -> None:
    """Raise InvalidRequest unless `folder` is missing, empty, or an earlier export and nothing else."""
    is_mount = os.path.ismount(folder)  # Path.is_mount is not implemented on Windows before Python 3.12
    if folder.is_symlink() or is_mount or (folder.exists() and not folder.is_dir()):
        raise InvalidRequest(f"{folder} cannot be replaced as a whole: give a new folder in it or beside it")
    if not folder.exists():
        return
    try:
        ours = set(cast("list[str]", json.loads((folder / MANIFEST).read_text()))) | {MANIFEST}
    except (OSError, ValueError):
        ours = set[str]()
    if foreign := sorted(_files(folder) - ours):
        raise InvalidRequest(f"{folder} holds {foreign[0]}, which is no export's: give a new folder")


def _files(folder: Path) -> set[str]:
    """Paths of everything but folders, relative to `folder`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}
