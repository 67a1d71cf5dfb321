from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from clickmask.errors import Gone, StoreUnavailable
from clickmask.images.archive import MIN_AGE_S, ImageArchive

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def age(folder: Path, digest: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / digest[:2] / digest, (then, then))


def kept(folder: Path, capacity: int = 100, labelled: str = "") -> ImageArchive:
    return ImageArchive(folder, capacity, lambda digest: digest[0] in labelled)


def test_an_image_comes_back_byte_for_byte_after_a_restart(tmp_path: Path) -> None:
    first = kept(tmp_path)
    assert first.keep(A, b"\x00\xff")
    assert first.keep(A, b"\x00\xff")
    again = kept(tmp_path)
    assert again.holds(A)
    assert not again.holds(B)
    assert again.read(A) == b"\x00\xff"
    status = again.status()
    assert (status.images, status.bytes, status.capacity, status.refused) == (1, 2, 100, 0)


def test_what_is_not_kept_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Gone, match="CLICKMASK_KEPT_BYTES"):
        kept(tmp_path).read(A)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, A + "/"])
def test_only_digests_name_files(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="no digest"):
        kept(tmp_path).keep(digest, b"")


def test_a_full_folder_refuses_a_new_image_and_says_so(tmp_path: Path) -> None:
    images = kept(tmp_path, labelled="ab")
    assert images.keep(A, bytes(60))
    age(tmp_path, A, 2 * MIN_AGE_S)
    assert not images.keep(B, bytes(60))
    assert images.holds(A)
    assert images.status().refused == 1
    assert images.keep(B, bytes(40))


def test_images_without_labels_make_room_the_longest_unused_first(tmp_path: Path) -> None:
    images = kept(tmp_path, labelled="b")
    for digest, seconds in ((A, 2 * MIN_AGE_S), (B, 4 * MIN_AGE_S), (C, 3 * MIN_AGE_S)):
        assert images.keep(digest, bytes(30))
        age(tmp_path, digest, seconds)
    assert images.keep("d" * 64, bytes(40))
    assert [images.holds(digest) for digest in (A, B, C)] == [True, True, False]


def test_an_image_whose_labels_are_on_their_way_stays(tmp_path: Path) -> None:
    images = kept(tmp_path)
    assert images.keep(A, bytes(60))
    assert not images.keep(B, bytes(60))
    assert images.holds(A)


def test_what_another_process_removed_is_room_again(tmp_path: Path) -> None:
    images = kept(tmp_path)
    assert images.keep(A, bytes(60))
    (tmp_path / A[:2] / A).unlink()
    assert images.keep(B, bytes(60))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match="CLICKMASK_HOME: No space left"):
        kept(tmp_path).keep(A, b"1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_files_entry_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    assert kept(tmp_path).keep(A, b"1")
    file = tmp_path / A[:2] / A
    assert flushed == [path.stat().st_ino for path in (tmp_path, file, file.parent)]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    images = kept(tmp_path)
    assert images.keep(A, b"1")
    left, under_way = (tmp_path / A[:2] / f"{A}.{end}" for end in ("0123abcd", "4567cdef"))
    for path in (left, under_way):
        path.write_bytes(bytes(50))
    age(tmp_path, left.name, 2 * MIN_AGE_S)
    assert kept(tmp_path).status().images == 1
    assert [left.exists(), under_way.exists()] == [False, True]


def test_an_image_that_another_process_removes_meanwhile_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [tmp_path / A[:2] / A]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    assert kept(tmp_path).status().images == 0
