from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from clickmask.caches import CacheFolder
from clickmask.inference.disk_cache import SUFFIX, DiskEmbeddings, EmbeddingKey, half_precision, pack, unpack
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint
from clickmask.segmenters.grabcut import GrabCut
from support.waiting import until

MIB = 2**20
IDENTITY = {"segmenter": "counting", "weights": "", "precision": "f32", "digest": "a"}


@dataclass(frozen=True, eq=False)
class Features:
    values: NDArray[np.float32]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {"values": self.values, "size": np.asarray(self.size)}


class CountingSegmenter:
    """Its embedding of an image is 4 MiB of numbers drawn from the digest."""

    name = "counting"

    def __init__(self, length: int = MIB) -> None:
        self.length = length
        self.encoded: list[str] = []

    def encode(self, digest: str) -> Features:
        self.encoded.append(digest)
        seed = np.random.default_rng(int.from_bytes(digest.encode()))
        return Features(seed.standard_normal(self.length, np.float32), (3, 4))

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Features:
        height, width = arrays["size"].tolist()
        return Features(arrays["values"], (height, width))


def weights_with(sha256: str = "") -> WeightsFolder:
    checkpoint = Checkpoint("http://127.0.0.1:9/weights.pth", 1, sha256, "MIT")
    return WeightsFolder(Path("nowhere"), None, {"counting": checkpoint} if sha256 else {})


def disk_in(folder: Path, segmenter: object, capacity: int = 100 * MIB, weights: str = "") -> DiskEmbeddings:
    def loaded(name: str) -> Any:
        return segmenter

    return DiskEmbeddings(CacheFolder(folder, SUFFIX, capacity), loaded, weights_with(weights))


def key(digest: str) -> EmbeddingKey:
    return EmbeddingKey("counting", digest)


def stored(folder: Path) -> set[Path]:
    return set(folder.glob("*.embedding"))


def bytes_in(folder: Path) -> int:
    """The size of all files, some of which another thread may remove meanwhile."""
    sizes = 0
    for path in stored(folder):
        with suppress(FileNotFoundError):
            sizes += path.stat().st_size
    return sizes


def write(folder: Path, *digests: str, weights: str = "", capacity: int = 100 * MIB) -> None:
    segmenter = CountingSegmenter()
    with closing(disk_in(folder, segmenter, capacity, weights)) as disk:
        for digest in digests:
            disk.store(key(digest), segmenter.encode(digest))


def read(folder: Path, digest: str, weights: str = "") -> Features | None:
    with closing(disk_in(folder, CountingSegmenter(), weights=weights)) as disk:
        embedding = disk.load(key(digest))
        assert embedding is None or isinstance(embedding, Features)
        return embedding


@contextmanager
def server(folder: Path, segmenter: CountingSegmenter) -> Iterator[Callable[[str], Features]]:
    """What a process does: `get(digest)` through a fresh cache over the folder."""
    cache = EmbeddingCache(100 * MIB, disk=disk_in(folder, segmenter))

    def get(digest: str) -> Features:
        embedding, _ = cache.get(key(digest), lambda: segmenter.encode(digest))
        assert isinstance(embedding, Features)
        return embedding

    with closing(cache):
        yield get


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]).flatmap(
            lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, min_side=0))
        ),
        max_size=3,
    )
)
def test_what_is_read_is_what_rounding_gives(arrays: dict[str, NDArray[Any]]) -> None:
    given_before = {name: array.copy() for name, array in arrays.items()}
    found, rounded = unpack(pack(arrays, IDENTITY), IDENTITY), half_precision(arrays)
    assert list(found) == list(rounded) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == rounded[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], rounded[name])
        np.testing.assert_array_equal(array, given_before[name])
        assert not np.shares_memory(rounded[name], array)
        found[name].flat[:1] = 0  # they are the reader's own
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(rounded[name], array)


def test_rounding_keeps_eleven_bits_and_never_overflows() -> None:
    fine = np.linspace(-60000, 60000, 1000, dtype=np.float32)
    assert np.abs(half_precision({"": fine})[""] / fine - 1).max() <= 2.0**-11
    for huge in (7e4, -7e4, np.inf, np.nan):
        array = np.array([1 / 3, huge], np.float32)
        np.testing.assert_array_equal(half_precision({"": array})[""], array)
    assert len(pack({"": fine}, IDENTITY)) < fine.nbytes * 0.6


def test_an_array_of_objects_is_never_stored() -> None:
    with pytest.raises(ValueError, match="array of objects"):
        pack({"": np.array([print], object)}, IDENTITY)


def test_a_restart_encodes_nothing_again_and_changes_no_answer(tmp_path: Path) -> None:
    segmenter = CountingSegmenter()
    with server(tmp_path, segmenter) as get:
        before = {digest: get(digest) for digest in "ab"}
    with server(tmp_path, segmenter) as get:
        for digest, embedding in before.items():
            again = get(digest)
            assert again is not embedding
            np.testing.assert_array_equal(again.values, embedding.values)
            assert again.size == embedding.size == (3, 4)
            assert get(digest) is again  # from memory
    assert segmenter.encoded == ["a", "b"]


def test_embeddings_are_rounded_once_and_closely(tmp_path: Path) -> None:
    segmenter = CountingSegmenter()
    with server(tmp_path, segmenter) as get:
        exact, kept = segmenter.encode("a").values, get("a").values
    assert 0 < np.abs(kept - exact).max() < 4 * 2.0**-11


def test_the_status_tells_bytes_entries_and_hits(tmp_path: Path) -> None:
    segmenter = CountingSegmenter()
    cache = EmbeddingCache(100 * MIB, disk=disk_in(tmp_path, segmenter))
    for digest in "aab":
        cache.get(key(digest), lambda digest=digest: segmenter.encode(digest))
    cache.close()
    status = cache.status()
    assert (status.hits, status.misses, status.hit_rate) == (1, 2, 1 / 3)
    assert status.disk
    assert status.disk.hit_rate == 0
    assert (status.disk.entries, status.disk.hits, status.disk.capacity) == (2, 0, 100 * MIB)
    assert status.disk.bytes == sum(path.stat().st_size for path in stored(tmp_path))
    cache = EmbeddingCache(100 * MIB, disk=disk_in(tmp_path, segmenter))
    cache.get(key("a"), lambda: pytest.fail("encoded twice"))
    cache.close()
    status = cache.status()
    assert (status.hits, status.misses, status.hit_rate, status.entries) == (0, 1, 0, 1)
    assert status.disk
    assert (status.disk.entries, status.disk.hits, status.disk.hit_rate) == (2, 1, 1)


def test_preparing_what_is_on_the_disk_brings_it_to_memory(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with closing(EmbeddingCache(100 * MIB, disk=disk_in(tmp_path, CountingSegmenter()))) as cache:
        assert cache.prepare(key("a"), lambda: pytest.fail("encoded twice"))
        assert cache.status().entries == 1


def test_many_who_miss_at_once_get_one_embedding_from_the_disk(tmp_path: Path) -> None:
    write(tmp_path, "a")
    segmenter = CountingSegmenter()
    with server(tmp_path, segmenter) as get, ThreadPoolExecutor(8) as pool:
        found = [each.result(10) for each in [pool.submit(get, "a") for _ in range(16)]]
        assert get("a") in found
    assert segmenter.encoded == []
    assert len({id(embedding) for embedding in found}) == 1


def test_an_embedding_over_the_memory_is_read_from_the_disk_each_time(tmp_path: Path) -> None:
    write(tmp_path, "a")
    segmenter = CountingSegmenter()
    with closing(EmbeddingCache(MIB, disk=disk_in(tmp_path, segmenter))) as cache:
        for _ in range(2):
            embedding, was_there = cache.get(key("a"), lambda: pytest.fail("encoded twice"))
            assert was_there
            assert embedding.nbytes == 4 * MIB


DAMAGES = {
    "empty": lambda raw: b"",
    "cut in the first line": lambda raw: raw[:20],
    "cut in the header": lambda raw: raw[:80],
    "cut in the numbers": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "one bit": lambda raw: raw[:MIB] + bytes([raw[MIB] ^ 1]) + raw[MIB + 1 :],
    "zeros, as after a power cut": lambda raw: bytes(len(raw)),
    "half zeros": lambda raw: raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2),
    "another format": lambda raw: raw.replace(b"embedding 1 ", b"embedding 2 ", 1),
    "text": lambda raw: b"hello\n" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_ignored_and_written_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write(tmp_path, "a")
    (path,) = stored(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    segmenter = CountingSegmenter()
    with server(tmp_path, segmenter) as get:
        assert get("a").size == (3, 4)
    assert segmenter.encoded == ["a"]
    assert path.read_bytes() == whole
    assert stored(tmp_path) == {path}


def test_a_file_under_the_name_of_another_is_not_believed(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (first,) = stored(tmp_path)
    write(tmp_path, "b")
    (second,) = stored(tmp_path) - {first}
    first.replace(second)
    assert read(tmp_path, "b") is None


def test_other_weights_never_use_these_embeddings(tmp_path: Path) -> None:
    write(tmp_path, "a", weights="1" * 64)
    assert read(tmp_path, "a", weights="2" * 64) is None
    assert read(tmp_path, "a") is None
    assert read(tmp_path, "a", weights="1" * 64) is not None


def test_names_and_digests_make_plain_file_names_apart(tmp_path: Path) -> None:
    segmenter = CountingSegmenter(10)
    keys = [
        EmbeddingKey(name, digest)
        for name in ("sam:vit_b", "sam/vit_b", "../sam", "a" * 500, "ü")
        for digest in ("ab", "a/b", "b" * 300, "b" * 299)
    ]
    with closing(disk_in(tmp_path / "folder", segmenter)) as disk:
        for each in keys:
            disk.store(each, segmenter.encode(each.digest))
    found = stored(tmp_path / "folder")
    assert len(found) == len(keys)
    assert set(tmp_path.iterdir()) == {tmp_path / "folder"}
    assert any(path.name.startswith("sam_vit_b-ab-") for path in found)


def test_what_was_not_used_for_longest_leaves_first(tmp_path: Path) -> None:
    digests = "abcde"
    write(tmp_path, *digests)
    (size,) = {path.stat().st_size for path in stored(tmp_path)}
    now = time.time_ns()
    with closing(disk_in(tmp_path, CountingSegmenter())) as disk:
        for path in stored(tmp_path):
            age = 1000 * digests.index(path.name.split("-")[1])  # "a" was used last before it is read
            os.utime(path, ns=(now, now - (10_000 - age) * 10**9))
        assert disk.load(key("a"))
    write(tmp_path, "f", capacity=4 * size)
    assert {path.name.split("-")[1] for path in stored(tmp_path)} == set("adef")


def test_the_folder_is_bounded_while_it_is_written_to(tmp_path: Path) -> None:
    segmenter = CountingSegmenter()
    with closing(disk_in(tmp_path, segmenter, capacity=5 * MIB)) as disk:
        for digest in "abcdefgh":
            disk.store(key(digest), segmenter.encode(digest))
            assert bytes_in(tmp_path) <= 8 * MIB  # one is on its way
    assert {path.name.split("-")[1] for path in stored(tmp_path)} == {"g", "h"}
    assert disk.status().entries == 2


def test_an_embedding_over_the_capacity_is_not_stored(tmp_path: Path) -> None:
    write(tmp_path, "a", "b", capacity=3 * MIB)
    assert {path.name.split("-")[1] for path in stored(tmp_path)} == {"b"}
    write(tmp_path, "c", capacity=MIB)
    assert stored(tmp_path) == set()


def test_a_file_is_replaced_and_never_written_to_in_place(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (path,) = stored(tmp_path)
    with path.open("rb") as reader:
        first_half = reader.read(MIB)
        write(tmp_path, "a")
        assert path.stat().st_ino != os.fstat(reader.fileno()).st_ino
        assert first_half + reader.read() == path.read_bytes()
    assert set(tmp_path.iterdir()) == {path}


def test_drafts_of_killed_processes_are_removed_and_young_ones_are_not(tmp_path: Path) -> None:
    old, young = tmp_path / "old.draft", tmp_path / "young.draft"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    write(tmp_path, "a")
    assert young.exists()
    assert not old.exists()


def test_a_segmenter_that_restores_nothing_is_not_stored(tmp_path: Path) -> None:
    class Quick(GrabCut):
        name = "counting"

    segmenter = CountingSegmenter()
    with closing(disk_in(tmp_path / "folder", Quick())) as disk:
        embedding = segmenter.encode("a")
        assert disk.store(key("a"), embedding) is embedding
        assert disk.load(key("a")) is None
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("method", ["arrays", "restore"])
def test_a_segmenter_that_fails_to_store_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a plugin's mistake")

    monkeypatch.setattr(Features if method == "arrays" else CountingSegmenter, method, fail)
    segmenter = CountingSegmenter()
    with server(tmp_path, segmenter) as get:
        assert get("a").size == (3, 4)
        assert get("a").size == (3, 4)
    assert segmenter.encoded == ["a"]
    assert stored(tmp_path) == set()


def test_a_file_that_its_segmenter_cannot_use_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "a")

    class Choosy(CountingSegmenter):
        def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Features:
            return Features(arrays["under another name"], (1, 1))

    with closing(disk_in(tmp_path, Choosy())) as disk:
        assert disk.load(key("a")) is None


def test_a_full_disk_never_fails_a_click(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segmenter, before = CountingSegmenter(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))  # writing more fails, as on a full disk
    try:
        with server(tmp_path, segmenter) as get:
            assert get("a").size == (3, 4)
            assert get("a").size == (3, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "an embedding is not stored" in caplog.text
    assert list(tmp_path.iterdir()) == []
    with server(tmp_path, segmenter) as get:
        get("a")
    assert segmenter.encoded == ["a", "a"]
    assert len(stored(tmp_path)) == 1


def test_a_folder_that_cannot_be_used_never_fails_a_click(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with server(tmp_path / "file" / "embeddings", CountingSegmenter()) as get:
        assert get("a").size == (3, 4)


def test_a_disk_that_hangs_holds_up_no_click(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Hanging(np.ndarray):
        def tobytes(self, *_: Any) -> bytes:
            assert released.wait(10)
            return super().tobytes()

    segmenter = CountingSegmenter(10)
    with closing(disk_in(tmp_path, segmenter)) as disk:
        disk.store(key("hangs"), Features(np.zeros(10).view(Hanging), (3, 4)))
        for number in range(100):  # more than may wait
            disk.store(key(str(number)), segmenter.encode(str(number)))
        assert "the disk is too slow" in caplog.text
        assert stored(tmp_path) == set()
        released.set()
    assert 30 < len(stored(tmp_path)) < 100


def test_who_wants_an_embedding_stored_waits_for_the_disk(tmp_path: Path) -> None:
    released, segmenter = threading.Event(), CountingSegmenter(10)

    class Slow(np.ndarray):
        def tobytes(self, *_: Any) -> bytes:
            assert released.wait(10)
            return super().tobytes()

    with closing(disk_in(tmp_path, segmenter)) as disk:
        disk.store(key("slow"), Features(np.zeros(10).view(Slow), (3, 4)))
        for number in range(40):  # more than may wait: the last ones are dropped
            disk.store(key(str(number)), segmenter.encode(str(number)))
        assert not disk.store_now(key("0"), segmenter.encode("0"), timeout=0.05)  # on its way
        assert not disk.store_now(key("39"), segmenter.encode("39"), timeout=0.05)  # no room
        threading.Timer(0.1, released.set).start()
        assert disk.store_now(key("39"), segmenter.encode("39"), timeout=10)
        assert disk.store_now(key("slow"), segmenter.encode("slow"), timeout=10)
        assert {path.name.split("-")[1] for path in stored(tmp_path)} >= {"slow", "39"}
        (dropped,) = (path for path in stored(tmp_path) if "-39-" in path.name)
        dropped.unlink()  # as another process may
        assert disk.store_now(key("39"), segmenter.encode("39"), timeout=10)
        assert dropped.exists()
        assert not disk.store_now(key("a"), np.zeros(3), timeout=10)  # of a kind that is not stored


def test_what_cannot_be_written_is_said_to_who_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with closing(disk_in(tmp_path / "file" / "embeddings", CountingSegmenter())) as disk:
        assert not disk.store_now(key("a"), CountingSegmenter(10).encode("a"), timeout=10)
    with closing(disk_in(tmp_path, CountingSegmenter(), capacity=10)) as disk:
        assert not disk.store_now(key("a"), CountingSegmenter(10).encode("a"), timeout=10)


def test_an_embedding_in_memory_keeps_its_file_young(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    for path in stored(tmp_path):
        os.utime(path, (0, 0))
    with server(tmp_path, CountingSegmenter()) as get:
        get("a")  # from the disk
        (path,) = (path for path in stored(tmp_path) if "-a-" in path.name)
        os.utime(path, (0, 0))
        get("a")  # from memory
        assert path.stat().st_mtime > time.time() - 100
        os.utime(path, (0, 0))
        get("a")  # not at each click
        assert path.stat().st_mtime == 0


def test_embeddings_of_another_precision_are_others(tmp_path: Path) -> None:
    write(tmp_path, "a")
    segmenter = CountingSegmenter()
    vars(segmenter)["precision"] = "bf16"
    with closing(disk_in(tmp_path, segmenter)) as disk:
        assert disk.load(key("a")) is None
    assert read(tmp_path, "a") is not None


PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from backend.inference.test_disk_cache import CountingSegmenter, disk_in, key
segmenter = CountingSegmenter()
disk = disk_in(Path(sys.argv[1]), segmenter)
print("ready", flush=True)
sys.stdin.readline()
for digest in sys.argv[2].split(","):
    if disk.load(key(digest)) is None:
        disk.store(key(digest), segmenter.encode(digest))
disk.close()
print(len(segmenter.encoded))
"""


def process(folder: Path, digests: list[str]) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROCESS.format(tests=str(Path(__file__).parents[2])),
            str(folder),
            ",".join(digests),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    digests = [f"image{number}" for number in range(8)]
    children = [process(tmp_path, order) for order in (digests, digests[::-1])]
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    encoded = [int(child.communicate(timeout=60)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert len(digests) <= sum(encoded) <= 2 * len(digests)
    assert len(stored(tmp_path)) == len(digests)
    for digest in digests:
        found = read(tmp_path, digest)
        assert found
        expected = half_precision(CountingSegmenter().encode(digest).arrays())["values"]
        np.testing.assert_array_equal(found.values, expected)


def test_a_kill_in_the_middle_of_writing_leaves_nothing_that_is_wrong(tmp_path: Path) -> None:
    pauses = (0.02, 0.05, 0.08, 0.12)
    for number, pause in enumerate(pauses):
        before = len(stored(tmp_path))
        child = process(tmp_path, [f"{number}x{each}" for each in range(1000)])
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
        until(lambda before=before: len(stored(tmp_path)) > before)
        time.sleep(pause)
        assert child.poll() is None, "it was done before it was killed"
        child.send_signal(signal.SIGKILL)
        child.communicate()
    segmenter, believed = CountingSegmenter(), 0
    with closing(disk_in(tmp_path, segmenter)) as disk:
        for path in stored(tmp_path):
            digest = path.name.split("-")[1]
            found = disk.load(key(digest))
            assert isinstance(found, Features)
            expected = half_precision(segmenter.encode(digest).arrays())["values"]
            np.testing.assert_array_equal(found.values, expected)
            believed += 1
    assert believed
