"""Kinds of damage to a file or a folder: what disks, power cuts, people and other programs leave behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

Damage = Callable[[Path], None]
PAGE = 4096  # bytes of an SQLite page


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(path.stat().st_size or 100))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size or 100))


def folder(path: Path) -> None:
    """A folder in its place, with the file in it."""
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(content)


def loop(path: Path) -> None:
    _remove(path)
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    _remove(path)
    path.symlink_to("nowhere/at all")


def fifo(path: Path) -> None:
    _remove(path)
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.chmod(0)


def wrong_types(path: Path) -> None:
    """JSON with the same members, each of another type."""
    found = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: {"a": [1]} for name in found}))


def no_object(path: Path) -> None:
    path.write_text("[7]")


def file(path: Path) -> None:
    """A file in a folder's place."""
    _remove(path)
    path.write_bytes(b"not a folder")


def flipped(number: int) -> Damage:
    """A page of an SQLite file in which all bytes but the first 100 are flipped."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        page = slice(number * PAGE + 100, (number + 1) * PAGE)
        content[page] = bytes(255 - byte for byte in content[page])
        path.write_bytes(content)

    return flip


def other_schema(path: Path) -> None:
    """A database of another program, whose tables have our names."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            if not name.startswith("sqlite_"):
                connection.execute(f'DROP TABLE "{name}"')
                connection.execute(f'CREATE TABLE "{name}" (wrong TEXT)')
        connection.commit()


def newer_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def garbage_log(path: Path) -> None:
    """Garbage as an SQLite file's write-ahead log and index."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(random.Random(7).randbytes(40_000))


def folder_log(path: Path) -> None:
    """A folder as an SQLite file's write-ahead log."""
    path.with_name(path.name + "-wal").mkdir()


def leftovers(path: Path) -> None:
    """What killed writers leave beside a file: new drafts, old drafts, a draft that is a folder."""
    for number, age in enumerate((0.0, 1e6)):
        draft = path.with_name(f"{path.name}.0000000{number}.draft")
        draft.write_bytes(b"half")
        os.utime(draft, (time.time() - age,) * 2)
    aside = path.with_name(f"{path.name}.00000002.draft")
    aside.mkdir()
    (aside / "file").write_bytes(b"half")
    os.utime(aside, (time.time() - 1e6,) * 2)


ANYTHING: tuple[Damage, ...] = (
    *(empty, half, garbage, zeros),
    *(folder, loop, dangling, fifo),
    *(unreadable, leftovers),
)
JSON: tuple[Damage, ...] = (*ANYTHING, wrong_types, no_object)
SQLITE: tuple[Damage, ...] = (*ANYTHING, other_schema, garbage_log, folder_log)
FOLDER: tuple[Damage, ...] = (file, loop, dangling, fifo, unreadable)


def pages(path: Path) -> Iterator[tuple[str, Damage]]:
    """Each page of an SQLite file, flipped."""
    for number in range(path.stat().st_size // PAGE):
        yield f"flipped_{number}", flipped(number)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
