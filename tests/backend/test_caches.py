from __future__ import annotations

import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask import caches
from clickmask.caches import CacheFolder, Lru, SingleFlight
from support import damage


def kept(cache: Lru[str, bytes]) -> list[str]:
    return [key for key in "abcdef" if key in cache]


def sized(max_bytes: int, *, keep_newest: bool = False) -> Lru[str, bytes]:
    return Lru[str, bytes](max_bytes=max_bytes, size=len, keep_newest=keep_newest)


def test_the_least_recently_used_entry_goes_first() -> None:
    cache = Lru[str, bytes](max_count=2)
    for key in "ab":
        cache.put(key, b"")
    cache.get("a")
    cache.put("c", b"")
    assert kept(cache) == ["a", "c"]
    assert "a" in cache  # which is no use of it
    cache.put("d", b"")
    assert kept(cache) == ["c", "d"]
    assert len(cache) == 2


def test_bytes_are_bounded() -> None:
    cache = sized(10)
    for key in "abc":
        cache.put(key, b"1234")
    assert (kept(cache), cache.bytes) == (["b", "c"], 8)
    cache.put("d", b"1234567890")
    assert (kept(cache), cache.bytes) == (["d"], 10)


def test_what_is_put_again_replaces_what_was_there_and_counts_as_used() -> None:
    cache = sized(10)
    assert cache.put("a", b"1234") is None
    cache.put("b", b"1234")
    assert cache.put("a", b"123456") == b"1234"
    assert (kept(cache), cache.bytes) == (["a", "b"], 10)
    cache.put("c", b"1")
    assert kept(cache) == ["a", "c"]


def test_a_value_that_alone_is_too_large_drives_nothing_out() -> None:
    cache = sized(10)
    cache.put("a", b"1234")
    cache.put("b", b"12345678901")
    assert kept(cache) == ["a"]
    cache.put("a", b"12345678901")
    assert (kept(cache), cache.bytes) == ([], 0)


def test_the_newest_value_may_stay_however_large() -> None:
    cache = sized(10, keep_newest=True)
    cache.put("a", b"1234")
    cache.put("b", b"12345678901")
    assert kept(cache) == ["b"]
    cache.put("c", b"1")
    assert (kept(cache), cache.bytes) == (["c"], 1)


def test_what_is_popped_is_gone() -> None:
    cache = sized(10)
    cache.put("a", b"1234")
    assert cache.pop("a") == b"1234"
    assert cache.pop("a") is None
    assert (cache.get("a"), len(cache), cache.bytes) == (None, 0, 0)


def test_a_bound_in_bytes_needs_a_size() -> None:
    with pytest.raises(ValueError, match="together"):
        Lru[str, bytes](max_bytes=10)


@given(
    st.lists(st.tuples(st.sampled_from(["get", "put", "pop"]), st.sampled_from("abcde"), st.integers(1, 9)))
)
def test_it_does_what_a_plain_model_does(acts: list[tuple[str, str, int]]) -> None:
    cache, model = Lru[str, bytes](max_count=3, max_bytes=12, size=len), OrderedDict[str, bytes]()
    for act, key, count in acts:
        if act == "get":
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        elif act == "pop":
            assert cache.pop(key) == model.pop(key, None)
        else:
            assert cache.put(key, bytes(count)) == model.pop(key, None)
            model[key] = bytes(count)
            while len(model) > 3 or sum(map(len, model.values())) > 12:
                model.popitem(last=False)
        assert (len(cache), cache.bytes) == (len(model), sum(map(len, model.values())))
        assert kept(cache) == sorted(model)


def test_threads_never_lose_count() -> None:
    cache = Lru[int, bytes](max_count=50, max_bytes=200, size=len)

    def work(seed: int) -> None:
        for step in range(2000):
            key = (seed * 7919 + step * 31) % 100
            cache.put(key, bytes(key % 9))
            cache.get((key * 3) % 100)
            cache.pop((key * 7) % 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    there = [value for key in range(100) if (value := cache.get(key)) is not None]
    assert (len(cache), cache.bytes) == (len(there), sum(map(len, there)))
    assert len(cache) <= 50
    assert cache.bytes <= 200


def test_concurrent_calls_share_one_computation() -> None:
    flights, calls, begun = SingleFlight[int](), list[str](), threading.Barrier(5)

    def compute() -> int:
        calls.append("called")
        time.sleep(0.1)
        return 7

    def work(_: int) -> int:
        begun.wait()
        return flights.run("key", compute)

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(work, range(5))) == [7] * 5
    assert calls == ["called"]
    assert flights.run("key", lambda: 8) == 8  # nothing is kept


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    flights, begun = SingleFlight[int](), threading.Barrier(3)

    def fail() -> int:
        time.sleep(0.1)
        raise LookupError("gone")

    def work(_: int) -> str:
        begun.wait()
        with pytest.raises(LookupError) as raised:
            flights.run("key", fail)
        return str(raised.value)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == ["gone"] * 3
    assert flights.run("key", lambda: 8) == 8


def test_calls_for_other_keys_do_not_wait() -> None:
    flights, released = SingleFlight[str](), threading.Event()

    def slow() -> str:
        released.wait()
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(flights.run, "one", slow)
        assert flights.run("other", lambda: "fast") == "fast"
        released.set()
        assert waiting.result() == "slow"


def cached(folder: Path, count: int) -> CacheFolder:
    """Files of 100 bytes, the first of them the longest unused, on a disk of 10,000 bytes."""
    for number in range(count):
        path = folder / f"{number}.cached"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    return CacheFolder(folder, ".cached", 5000)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes of other files there are."""
    others = 0

    def usage(path: Path) -> SimpleNamespace:
        ours = sum(each.stat().st_size for each in tmp_path.iterdir())
        return SimpleNamespace(total=10_000, free=10_000 - others - ours)

    def set_others(size: int) -> None:
        nonlocal others
        others = size

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return set_others


def names_in(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.cached"))


def test_files_that_can_be_made_again_leave_a_tenth_of_the_disk(
    tmp_path: Path, disk: Callable[[int], None]
) -> None:
    folder = cached(tmp_path, 20)
    disk(6900)
    folder.sweep()
    assert (names_in(tmp_path), folder.evicted, folder.room()) == (list(range(20)), 0, 100)
    disk(7500)  # 500 bytes of the reserve are taken
    folder.sweep()
    assert names_in(tmp_path) == list(range(7, 20)), (
        "the longest unused go, for an eighth of the reserve more"
    )
    assert (folder.evicted, folder.entries, folder.bytes) == (7, 13, 1300)
    assert folder.room() >= 0


def test_the_reserve_of_a_large_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, free=2**31))
    assert CacheFolder(tmp_path / "not" / "there", "", 1).room() == 2**31 - caches.RESERVE_BYTES


def test_a_write_that_met_a_full_disk_gets_room_as_long_as_there_are_files(
    tmp_path: Path, disk: Callable[[int], None]
) -> None:
    folder = cached(tmp_path, 8)
    assert folder.make_room(), "a quota does not show in the room of the disk"
    assert names_in(tmp_path) == list(range(2, 8))
    disk(9_400)
    assert folder.make_room()
    assert names_in(tmp_path) == []
    assert not folder.make_room()


def test_leftovers_of_any_kind_keep_no_sweep_from_its_work(tmp_path: Path) -> None:
    folder = cached(tmp_path, 3)
    damage.leftovers(tmp_path / "0.cached")
    (tmp_path / "loop.cached").symlink_to("loop.cached")
    folder.sweep()
    assert (folder.entries, folder.bytes) == (3, 300)
    assert [path.name for path in tmp_path.glob("*.draft")] == ["0.cached.00000000.draft"]
