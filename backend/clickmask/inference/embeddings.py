"""Embeddings in memory, backed by those on disk, and a queue to compute the rest: one encode per image."""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from clickmask.caches import Lru, waiting_elsewhere
from clickmask.errors import Busy, ClickmaskError, NotStored
from clickmask.inference.disk_cache import DiskEmbeddings, DiskStatus, EmbeddingKey
from clickmask.types import Embedding

log = logging.getLogger(__name__)

CLICK, PREPARATION, BATCH = 0, 1, 2  # priorities in the queue: a waiting annotator comes first
MAX_CLICK_WAIT_S = 4.0  # that a click on a new image may expect to wait for its embedding
MIN_CLICKS = 2  # new images that may wait in any case, however slow the segmenter is
FIRST_ENCODE_S = 0.5  # what an encode is taken to last until one was measured
MAX_CALLERS = 48  # that wait, each with a thread; many may want one image
SMOOTHING = 0.3  # weight of the newest encode


@dataclass(frozen=True)
class CacheStatus:
    bytes: int
    capacity: int
    entries: int
    hits: int
    misses: int
    hit_rate: float | None  # share of clicks that found their image; None before the first
    waiting: int
    queue_length: int
    disk: DiskStatus | None


@dataclass(eq=False)
class _Encoding:
    """One image, waiting or being encoded once for everyone who asks for it."""

    key: EmbeddingKey
    compute: Callable[[], Embedding]
    priority: int
    ticket: int  # among equal priorities, the lowest comes first
    keep: bool  # in memory and on disk
    future: Future[Embedding] = field(default_factory=Future[Embedding])


class EmbeddingCache:
    """Embeddings by segmenter and image digest, at most `capacity` bytes; the least recently used go first.

    One worker computes missing ones, clicks before preparations before batches, so that encodes never compete
    for cores. At most `queue_length` images wait; an urgent one may displace a less urgent one. A click that
    would wait longer than MAX_CLICK_WAIT_S, as encodes lasted so far, is refused at once. An embedding larger
    than the capacity is not kept. The caller's thread reads the disk, which takes milliseconds, no place in
    the queue. `get` waits `patience` seconds; the tools give up after 100. The cache closes its `disk`.
    """

    def __init__(
        self,
        capacity: int,
        queue_length: int = 64,
        patience: float = 95.0,
        disk: DiskEmbeddings | None = None,
    ) -> None:
        self._capacity = capacity
        self._queue_length = queue_length
        self._patience = patience
        self._disk = disk
        self._kept = Lru[EmbeddingKey, Embedding](max_bytes=capacity, size=lambda each: each.nbytes)
        self._hits = self._misses = 0
        self._callers = 0  # that wait for an encoding
        self._under_way: dict[EmbeddingKey, _Encoding] = {}
        self._waiting: dict[EmbeddingKey, _Encoding] = {}
        self._ticket = itertools.count()
        self._closed = False
        self._encode_s = FIRST_ENCODE_S  # an average
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._worker.start()

    def get(
        self, key: EmbeddingKey, compute: Callable[[], Embedding], priority: int = CLICK
    ) -> tuple[Embedding, bool]:
        """The embedding, and whether it was cached; otherwise waits for `compute` and raises what it raises.
        Raises Busy if the queue is full or the wait too long."""
        if (found := self.find(key)) is not None:
            return found, True
        with self._changed:
            self._misses += 1
            if (kept := self._kept.get(key)) is not None:  # finished since
                return kept, True
            future = self._ask(key, compute, priority)
        return self._wait(future), False

    def compute(
        self, key: EmbeddingKey, compute: Callable[[], Embedding], priority: int = BATCH
    ) -> Embedding:
        """As `get`, of what is wanted only once: it is not looked for, and kept nowhere."""
        with self._changed:
            future = self._ask(key, compute, priority, keep=False)
        return self._wait(future)

    def find(self, key: EmbeddingKey) -> Embedding | None:
        """The embedding from memory or disk; None if it has to be computed."""
        kept = self._kept.get(key)
        if kept is None:
            stored = self._read_back(key)
            with self._changed:
                self._misses += stored is not None
            return stored
        with self._changed:
            self._hits += 1
        if self._disk:
            self._disk.touch(key)
        return kept

    def holds(self, key: EmbeddingKey) -> bool:
        """Whether the embedding is in memory, read back from disk perhaps. Counts as no click."""
        return key in self._kept or self._read_back(key) is not None

    def wait(self, key: EmbeddingKey) -> None:
        """Wait until the embedding is computed, or fails to be, if it is under way."""
        with self._changed:
            encoding = self._under_way.get(key) or self._waiting.get(key)
        if encoding:
            wait([encoding.future], self._patience)

    def prepare(self, key: EmbeddingKey, compute: Callable[[], Embedding]) -> bool:
        """Read the embedding from disk now, or compute it when no click waits; False if the queue is full."""
        self._read_back(key)
        with self._changed:
            if key not in self._kept:
                try:
                    self._enqueue(key, compute, PREPARATION)
                except Busy:
                    return False
            return True

    def store(self, key: EmbeddingKey, embedding: Embedding) -> None:
        """Wait until the embedding that `get` gave is on disk, usually a moment later. Raises NotStored."""
        if self._disk is None or not self._disk.store_now(key, embedding, self._patience):
            raise NotStored("its embedding is not stored: the disk is full, broken or slow")

    def status(self) -> CacheStatus:
        with self._changed:
            asked = self._hits + self._misses
            rate = self._hits / asked if asked else None
            kept = self._kept.bytes, self._capacity, len(self._kept)
            queue = len(self._waiting), self._queue_length
            disk = self._disk.status() if self._disk else None
            return CacheStatus(*kept, self._hits, self._misses, rate, *queue, disk)

    def close(self) -> None:
        """Finish the current encode and refuse those that wait."""
        with self._changed:
            self._closed = True
            for encoding in self._waiting.values():
                encoding.future.set_exception(Busy("the server is shutting down"))
            self._waiting.clear()
            self._changed.notify_all()
        self._worker.join()
        if self._disk:
            self._disk.close()

    def _read_back(self, key: EmbeddingKey) -> Embedding | None:
        """The embedding, read from disk into memory. None if it is not there or already known."""
        with self._changed:
            known = key in self._kept or key in self._under_way or key in self._waiting
        if self._disk is None or known or (stored := self._disk.load(key)) is None:
            return None
        with self._changed:
            if (kept := self._kept.get(key)) is not None:  # another thread was faster
                return kept
            self._kept.put(key, stored)
            return stored

    def _ask(
        self, key: EmbeddingKey, compute: Callable[[], Embedding], priority: int, keep: bool = True
    ) -> Future[Embedding]:
        """Enqueue for a caller, who then waits. Raises Busy if too many do."""
        if self._callers >= MAX_CALLERS:
            raise Busy(f"{self._callers} requests wait for images to be encoded; try again in a moment")
        future = self._enqueue(key, compute, priority, keep).future
        self._callers += 1
        return future

    def _wait(self, future: Future[Embedding]) -> Embedding:
        try:
            with waiting_elsewhere():
                return future.result(self._patience)
        except TimeoutError:
            raise Busy("the image is still being encoded; click again in a moment") from None
        finally:
            with self._changed:
                self._callers -= 1

    def _enqueue(
        self, key: EmbeddingKey, compute: Callable[[], Embedding], priority: int, keep: bool = True
    ) -> _Encoding:
        """The encoding of this image, moved forward if this caller is more urgent. Raises Busy."""
        encoding = self._under_way.get(key) or self._waiting.get(key)
        if encoding is None:
            if self._closed:
                raise Busy("the server is shutting down")
            if priority == CLICK:
                self._require_short_wait()
            if len(self._waiting) >= self._queue_length:  # drop the newest less urgent one
                newest_first = reversed(self._waiting.values())
                victim = next((waiting for waiting in newest_first if waiting.priority > priority), None)
                if victim is None:
                    already = f"{self._queue_length} images wait to be encoded already"
                    raise Busy(f"{already}; try again in a moment")
                del self._waiting[victim.key]
                victim.future.set_exception(Busy("others who wait came first; try again in a moment"))
            encoding = self._waiting[key] = _Encoding(key, compute, priority, next(self._ticket), keep)
            self._changed.notify()
        elif encoding.priority > priority:
            encoding.priority, encoding.ticket = priority, next(self._ticket)
        return encoding

    def _require_short_wait(self) -> None:
        """Raise Busy if a click on one more image would wait too long."""
        before = sum(each.priority == CLICK for each in self._waiting.values())
        wait = (len(self._under_way) + before + 1) * self._encode_s
        if before >= MIN_CLICKS and wait > MAX_CLICK_WAIT_S:
            said = f"{before} images wait to be encoded already, which takes {wait:.0f} s; try again then"
            raise Busy(said, retry_after=math.ceil(wait))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                encoding = min(self._waiting.values(), key=lambda each: (each.priority, each.ticket))
                self._under_way[encoding.key] = self._waiting.pop(encoding.key)
            began = time.monotonic()
            try:
                embedding = encoding.compute()
                if self._disk and encoding.keep:
                    embedding = self._disk.store(encoding.key, embedding)
            except BaseException as error:  # noqa: BLE001 - a plugin may raise anything; the waiting callers get it
                with self._changed:
                    del self._under_way[encoding.key]
                if encoding.priority == PREPARATION:
                    level = logging.INFO if isinstance(error, ClickmaskError) else logging.ERROR
                    log.log(level, "preparing image %s failed: %s", encoding.key.digest[:8], error)
                encoding.future.set_exception(error)
            else:
                with self._changed:
                    del self._under_way[encoding.key]
                    if encoding.keep:
                        self._kept.put(encoding.key, embedding)
                    self._encode_s += SMOOTHING * (time.monotonic() - began - self._encode_s)
                encoding.future.set_result(embedding)
            # A thread that waits for the next one would hold the pixels, which are in `compute`.
            del encoding
            embedding = None
