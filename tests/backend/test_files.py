from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clickmask import files
from support import damage
from support.waiting import until


@pytest.fixture(params=["here", "without fcntl"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As on this system, and with what Windows has instead of flock: filelock's own."""
    if request.param == "without fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    yield request.param


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    files.write(path, b"old", durable=durable)
    with path.open("rb") as reader:
        files.write(path, b"new", durable=durable)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_content_is_flushed_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, fsync, replace = list[str](), os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("renamed"), replace(self, to))[1])
    files.write(tmp_path / "a", b"1")
    assert done == ["file", "renamed", "folder"]
    done.clear()
    files.write(tmp_path / "a", b"1", durable=False)
    assert done == ["renamed"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write(tmp_path / "a", b"old")
    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("act", [damage.folder, damage.loop, damage.dangling, damage.fifo])
def test_only_a_file_is_read(tmp_path: Path, act: Callable[[Path], None]) -> None:
    """A pipe would be waited for, for ever."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    assert files.read(path) == b"1"
    act(path)
    with pytest.raises(OSError):
        files.read(path)


def test_a_folder_and_its_parents_are_made_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = list[Path]()
    monkeypatch.setattr(files, "flush", flushed.append)
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert flushed == [tmp_path, tmp_path / "a"]


def test_what_is_damaged_makes_way_with_its_logs_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    damaged = files.DamagedFiles(tmp_path)
    for content in (b"1", b"2"):
        for suffix in ("", "-wal"):
            path.with_name(path.name + suffix).write_bytes(content)
        damaged.set_aside(path, "is damaged", lambda kept_as: f"It was read: {kept_as.read_bytes()!r}")
    first, second = damaged.all()
    assert "a.sqlite is damaged: it was set aside as a.sqlite.damaged-" in first.sentence
    assert first.sentence.endswith("It was read: b'1'")
    assert first.kept_as != second.kept_as
    for each, content in ((first, b"1"), (second, b"2")):
        assert (tmp_path / each.kept_as).read_bytes() == content
        assert (tmp_path / f"{each.kept_as}-wal").read_bytes() == content
    assert not path.exists()


def test_a_file_may_be_for_its_owner_alone(tmp_path: Path) -> None:
    files.write(tmp_path / "a", b"1", mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def _write_for_ever(path: Path, begun: Any) -> None:
    for byte in range(256):
        files.write(path, bytes([byte]) * 2**20)
        begun.set()


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    writer = context.Process(target=_write_for_ever, args=(tmp_path / "a", begun))
    writer.start()
    assert begun.wait(60)
    writer.kill()
    writer.join()
    content = (tmp_path / "a").read_bytes()
    assert content == content[:1] * 2**20
    assert all(name == "a" or name.endswith(files.DRAFT) for name in names(tmp_path))


def test_a_system_that_cannot_flush_folders_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[Path](), os.open

    def opens(path: Path, *given: int) -> int:
        opened.append(Path(path))
        return real(path, *given)

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", opens)
    files.write(tmp_path / "a", b"1")
    files.flush_tree(tmp_path)
    assert tmp_path not in opened


@pytest.mark.parametrize(
    ("number", "is_folder", "raises"), [(22, True, False), (22, False, True), (5, True, True)]
)
def test_only_a_folder_that_cannot_be_flushed_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_folder: bool, raises: bool
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, "refused")

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path if is_folder else tmp_path / "a"
    if raises:
        with pytest.raises(OSError, match="refused"):
            files.flush(path)
    else:
        files.flush(path)


def folder_with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    new = folder_with(tmp_path / "new", "1")
    files.replace_folder(new, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    files.replace_folder(folder_with(new, "2"), tmp_path / "out")
    assert ((tmp_path / "out" / "file").read_text(), (new / "file").read_text()) == ("2", "1")
    assert names(tmp_path) == ["new", "out"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_earlier_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    rename, calls = Path.rename, list[Path]()

    def broken(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    new, old = folder_with(tmp_path / "new", "new"), folder_with(tmp_path / "old", "old")
    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="Input/output"):
        files.replace_folder(new, old)
    assert [(path / "file").read_text() for path in (new, old)] == ["new", "old"]
    assert names(tmp_path) == ["new", "old"]


def test_a_system_that_cannot_exchange_folders_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert not files._exchange(one, other)  # there are none
    monkeypatch.setattr("sys.platform", "darwin")
    assert not files._exchange(one, other)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda *given, **more: object())  # an old C library
    assert not files._exchange(one, other)


@contextmanager
def elsewhere(path: Path, *, shared: bool = False) -> Iterator[threading.Event]:
    """The lock, held by another thread until the event is set or the block ends."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with files.lock(path, shared=shared):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        yield done
    finally:
        done.set()
        thread.join()


def is_free(path: Path, *, shared: bool = False) -> bool:
    try:
        with files.lock(path, shared=shared, blocking=False):
            return True
    except BlockingIOError:
        return False


def test_one_at_a_time_holds_a_lock(tmp_path: Path, system: str) -> None:
    path = tmp_path / ".lock"
    with elsewhere(path):
        assert not is_free(path)
        assert not is_free(path, shared=True)
    assert is_free(path)


def test_a_lock_is_waited_for(tmp_path: Path, system: str) -> None:
    path, order = tmp_path / ".lock", list[str]()
    with elsewhere(path) as done:
        timer = threading.Timer(0.2, lambda: (order.append("released"), done.set()))
        timer.start()
        with files.lock(path):
            order.append("held")
        timer.join()
    assert order == ["released", "held"]


def test_a_shared_lock_excludes_only_those_who_want_it_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with elsewhere(path, shared=True):
        assert is_free(path, shared=True)
        assert not is_free(path)
    assert is_free(path)


@pytest.mark.parametrize("act", [damage.folder, damage.fifo, damage.loop])
def test_what_is_no_file_is_no_lock(tmp_path: Path, system: str, act: Callable[[Path], None]) -> None:
    path = tmp_path / ".lock"
    path.touch()
    act(path)
    with pytest.raises(OSError), files.lock(path):
        pass


def test_an_error_in_the_block_frees_the_lock(tmp_path: Path, system: str) -> None:
    with pytest.raises(LookupError), files.lock(tmp_path / ".lock"):
        raise LookupError
    assert is_free(tmp_path / ".lock")


def _hold(path: Path, held: Any) -> None:
    with files.lock(path):
        held.set()
        signal.pause()


def test_a_process_that_dies_frees_its_lock(tmp_path: Path, system: str) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    owner = context.Process(target=_hold, args=(tmp_path / ".lock", held))
    owner.start()
    assert held.wait(60)
    assert not is_free(tmp_path / ".lock")
    owner.kill()
    owner.join()
    until(lambda: is_free(tmp_path / ".lock"))
