"""The disk tier of the embedding cache: each image is encoded once, even if the server restarts.

One file per embedding, with floats in half precision:

    clickmask embedding <format> <CRC-32 of the rest> <bytes of the rest>
    {"segmenter": ..., "weights": ..., "precision": ..., "digest": ...,
     "arrays": [[name, stored dtype, shape, dtype], ...]}
    the arrays, row by row, one after the other

The checksum stands in for fsync: after a power cut a file may hold anything, and is then ignored.
"""

import hashlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clickmask import files
from clickmask.caches import CacheFolder, Lru
from clickmask.inference.sessions import Arrays
from clickmask.inference.weights import WeightsFolder
from clickmask.types import Embedding, Segmenter

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the layout changes or a built-in segmenter encodes differently
SUFFIX = ".embedding"
SWEEP_SHARE = 0.01  # share of the capacity written between sweeps: scanning thousands of files takes 0.1 s
MAX_QUEUE = 32  # embeddings that wait to be written
TOUCH_INTERVAL_S = 3600.0  # between two updates of an embedding's time of use
MAX_TOUCHES = 10_000  # embeddings whose last update is remembered
CLOSE_TIMEOUT_S = 10.0  # how long a hanging disk may delay the end of the process
MAX_HALF = 65504.0  # the largest finite number in half precision


class EmbeddingKey(NamedTuple):
    segmenter: str
    digest: str


@runtime_checkable
class Storable(Protocol):
    """An embedding that can be stored. `arrays` gives all of it and is never written to."""

    def arrays(self) -> Arrays: ...


@runtime_checkable
class Restorable(Protocol):
    """A segmenter whose embeddings are worth a file: encoding takes longer than reading it. `restore` gets
    its own copies of what `arrays` gave, of the same types, floats rounded to half precision. It may keep
    them and MUST NOT write to them. An embedding is identified by the segmenter's name, official weights and
    `precision` (f32 if it has none). Anything else that changes it MUST be part of the name."""

    def restore(self, arrays: Arrays) -> Embedding: ...


@dataclass(frozen=True, eq=False)
class _Job:
    """An embedding that waits to be written. The future says whether it was."""

    key: EmbeddingKey
    identity: Mapping[str, str]
    arrays: Arrays
    written: Future[bool] = field(default_factory=Future[bool])


@dataclass(frozen=True)
class DiskStatus:
    bytes: int  # as this process knows the folder; other processes may write to it
    capacity: int
    entries: int
    evicted: int  # since the start, to leave room on the disk for what cannot be made again
    hits: int
    hit_rate: float | None  # share of lookups that found an embedding; None before the first


class DiskEmbeddings:
    """A folder of embeddings. For any thread.

    Several processes may share it: files appear by renaming, and their mtime is the time of last use. Each
    may write a hundredth of the capacity before it adds up the sizes again. What the disk needs for other
    files is left free; see `CacheFolder`. Nothing here fails a click: what cannot be written is not stored,
    what cannot be trusted is computed again. `segmenters` gives a loaded segmenter."""

    def __init__(
        self, folder: CacheFolder, segmenters: Callable[[str], Segmenter[Any]], weights: WeightsFolder
    ) -> None:
        self._folder = folder
        self._segmenters = segmenters
        self._weights = weights
        self._lock = threading.Lock()
        self._asked = self._hits = 0
        self._unswept = 0  # bytes written since the last sweep
        self._queue: queue.Queue[_Job | None] = queue.Queue(MAX_QUEUE)
        self._pending: dict[EmbeddingKey, _Job] = {}
        self._touched = Lru[EmbeddingKey, float](max_count=MAX_TOUCHES)  # monotonic seconds
        self._writer = threading.Thread(target=self._write_all, name="embedding writer", daemon=True)
        self._writer.start()

    def load(self, key: EmbeddingKey) -> Embedding | None:
        """The stored embedding, or None if there is none that can be trusted."""
        segmenter = self._segmenters(key.segmenter)
        if not isinstance(segmenter, Restorable):
            return None
        with self._lock:
            self._asked += 1
        identity = self._identity(key)
        path = self._path(identity)
        try:
            embedding = segmenter.restore(unpack(files.read(path), identity))
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the image is encoded again
            log.warning("a stored embedding of image %s is not usable: %s", key.digest[:8], error)
            return None
        with self._lock:
            self._hits += 1
        return embedding

    def store(self, key: EmbeddingKey, embedding: Embedding) -> Embedding:
        """The embedding as it will be read back, so that no answer depends on where it was kept. A writer
        thread stores it soon. An embedding that cannot be stored is returned unchanged."""
        segmenter = self._segmenters(key.segmenter)
        if not isinstance(segmenter, Restorable) or not isinstance(embedding, Storable):
            return embedding
        try:
            rounded = half_precision(embedding.arrays())
            restored = segmenter.restore(rounded)
        except Exception:  # a plugin may raise anything; the click still has its embedding
            log.exception("an embedding of %s cannot be stored", key.segmenter)
            return embedding
        if not self._submit(_Job(key, self._identity(key), rounded), timeout=0):
            log.warning("the disk is too slow: an embedding of %s is not stored", key.segmenter)
        return restored

    def store_now(self, key: EmbeddingKey, embedding: Embedding, timeout: float) -> bool:
        """Whether the embedding is on disk after at most twice `timeout` seconds. Writes it only if
        needed."""
        if not isinstance(embedding, Storable):
            return False
        identity = self._identity(key)
        with self._lock:
            job = self._pending.get(key)
        if job is None:
            if self._path(identity).exists():
                return True
            job = _Job(key, identity, half_precision(embedding.arrays()))
            if not self._submit(job, timeout):
                return False
        try:
            return job.written.result(timeout)
        except TimeoutError:
            return False

    def touch(self, key: EmbeddingKey) -> None:
        """Update an embedding's time of use, at most once an hour because each update is a write."""
        now = time.monotonic()
        with self._lock:
            if now - (self._touched.get(key) or -math.inf) < TOUCH_INTERVAL_S:
                return
            self._touched.put(key, now)
        with suppress(OSError):  # it was never stored, or was swept away
            os.utime(self._path(self._identity(key)))

    def status(self) -> DiskStatus:
        with self._lock:
            rate = self._hits / self._asked if self._asked else None
            folder = self._folder
            return DiskStatus(
                folder.bytes, self._folder.capacity, folder.entries, folder.evicted, self._hits, rate
            )

    def close(self) -> None:
        """Write what waits in the queue, then stop."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
            self._writer.join(CLOSE_TIMEOUT_S)

    def _identity(self, key: EmbeddingKey) -> dict[str, str]:
        """The fields that identify an embedding. Their order is part of the file's name."""
        checkpoint = self._weights.checkpoints.get(key.segmenter)
        return {
            "segmenter": key.segmenter,
            "weights": checkpoint.sha256 if checkpoint else "",
            "digest": key.digest,
            "precision": str(getattr(self._segmenters(key.segmenter), "precision", "f32")),
        }

    def _path(self, identity: Mapping[str, str]) -> Path:
        parts = identity["segmenter"], identity["digest"]
        readable = "-".join(re.sub(r"[^A-Za-z0-9]+", "_", part)[:32] for part in parts)
        unique = hashlib.sha256(json.dumps([FORMAT, *identity.values()]).encode()).hexdigest()[:16]
        return self._folder.path / f"{readable}-{unique}{SUFFIX}"

    def _submit(self, job: _Job, timeout: float) -> bool:
        """Whether there was room in the queue within `timeout` seconds."""
        with self._lock:
            self._pending[job.key] = job
        try:
            self._queue.put(job, block=timeout > 0, timeout=timeout or None)
        except queue.Full:
            self._finish(job, written=False)
            return False
        return True

    def _finish(self, job: _Job, written: bool) -> None:
        with self._lock:
            if self._pending.get(job.key) is job:
                del self._pending[job.key]
        job.written.set_result(written)

    def _write_all(self) -> None:
        """Run the writer's thread until `close`."""
        self._folder.sweep()
        while (job := self._queue.get()) is not None:
            written = False
            try:
                written = self._write(pack(job.arrays, job.identity), self._path(job.identity))
            except Exception as error:  # noqa: BLE001 - the disk, memory, or an array of Python objects
                log.warning("an embedding is not stored: %s", error)
            self._finish(job, written)
            if self._unswept > self._folder.capacity * SWEEP_SHARE:
                self._unswept = 0
                self._folder.sweep()

    def _write(self, raw: bytes, path: Path) -> bool:
        """Write a file if there is room for it. Raises OSError."""
        if len(raw) > self._folder.capacity:
            return False
        if self._folder.room() < len(raw):
            self._folder.sweep()
            if self._folder.room() < len(raw):
                log.info("an embedding is not stored: the disk needs its room for other files")
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, raw, durable=False, mode=0o600)
        self._unswept += len(raw)
        self._folder.added(len(raw))
        return True


def half_precision(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Copies of the arrays as they will be read back: same types, floats rounded to 16 bits."""
    return {name: _halved(array).astype(array.dtype) for name, array in arrays.items()}


def pack(arrays: Arrays, identity: Mapping[str, str]) -> bytes:
    """The content of a file; see the module docstring. Raises ValueError for arrays of Python objects."""
    described: list[tuple[str, str, tuple[int, ...], str]] = []
    contents: list[bytes] = []
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name} is an array of objects")
        stored = _halved(array)
        described.append((name, stored.dtype.str, stored.shape, array.dtype.str))
        contents.append(stored.tobytes())
    header = json.dumps({**identity, "arrays": described}).encode()
    body = b"".join([header, b"\n", *contents])
    return _first_line(body) + body


def unpack(raw: bytes, identity: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """The arrays of a file, in their original types. Raises ValueError if damaged or of another embedding."""
    begin = raw.find(b"\n") + 1
    if raw[:begin] != _first_line(memoryview(raw)[begin:]):
        raise ValueError("it is damaged, or of another format")
    offset = raw.index(b"\n", begin) + 1
    header = json.loads(raw[begin:offset])
    described = header.pop("arrays")
    if header != identity:
        raise ValueError("it belongs to another image, segmenter or weights")
    arrays: dict[str, NDArray[Any]] = {}
    for name, stored, shape, dtype in described:
        kind = np.dtype(str(stored))
        count = math.prod(shape)
        arrays[name] = np.frombuffer(raw, kind, count, offset).reshape(shape).astype(dtype)
        offset += count * kind.itemsize
    return arrays


def _first_line(body: bytes | memoryview) -> bytes:
    return b"clickmask embedding %d %08x %d\n" % (FORMAT, zlib.crc32(body), len(body))


def _halved(array: NDArray[Any]) -> NDArray[Any]:
    """Floats in half precision, unless one would overflow or is NaN. Other arrays are unchanged."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 2:
        return array
    fits = array.max(initial=0) <= MAX_HALF and array.min(initial=0) >= -MAX_HALF
    return array.astype(np.float16) if fits else array
