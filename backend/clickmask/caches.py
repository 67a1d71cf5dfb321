"""Bounded caches and shared computations, for any thread."""

import logging
import math
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Generic, TypeVar

from clickmask import files

log = logging.getLogger(__name__)

RESERVE_BYTES = 2**30  # left free on a cache's disk for what cannot be made again
RESERVE_SHARE = 0.1  # of the disk, if that is less
STALE_DRAFT_S = 3600.0  # an older draft belongs to a killed process
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


# What a caller does around a wait: a server may let others compute meanwhile.
ELSEWHERE: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar(
    "elsewhere", default=nullcontext
)


def waiting_elsewhere() -> AbstractContextManager[None]:
    """A context for code that only waits: for another thread, or for another server."""
    return ELSEWHERE.get()()


class Lru(Generic[K, V]):
    """A map that drops its least recently used entries beyond `max_count` entries or `max_bytes`. `size`
    gives the bytes of a value. A value over `max_bytes` is not kept and displaces nothing; with `keep_newest`
    it stays, alone, until the next put. `put` and `pop` give the value that goes, or None."""

    def __init__(
        self,
        *,
        max_count: int | None = None,
        max_bytes: int | None = None,
        size: Callable[[V], int] | None = None,
        keep_newest: bool = False,
    ) -> None:
        if (max_bytes is None) != (size is None):
            raise ValueError("max_bytes and size are given together")
        self._max_count = math.inf if max_count is None else max_count
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._size: Callable[[V], int] = size or (lambda value: 0)
        self._min_count = 1 if keep_newest else 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()  # with the size when it was put
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V) -> V | None:
        size = self._size(value)
        with self._lock:
            replaced = self._remove(key)
            if size > self._max_bytes and not self._min_count:
                return replaced
            self._entries[key] = value, size
            self._bytes += size
            while self._bytes > self._max_bytes or len(self._entries) > self._max_count:
                if len(self._entries) == self._min_count:
                    break
                self._remove(next(iter(self._entries)))
            return replaced

    def pop(self, key: K) -> V | None:
        with self._lock:
            return self._remove(key)

    def drop_oldest(self) -> bool:
        """Drop the least recently used entry, the newest too. False if there is none."""
        with self._lock:
            if not self._entries:
                return False
            self._remove(next(iter(self._entries)))
            return True

    @property
    def bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        """Whether `key` is kept. Does not count as a use."""
        return key in self._entries

    def _remove(self, key: K) -> V | None:
        value, size = self._entries.pop(key, (None, 0))
        self._bytes -= size
        return value


class SingleFlight(Generic[V]):
    """Concurrent calls for one key share one computation and its result or error. Nothing is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Future[V]] = {}

    def run(self, key: Hashable, compute: Callable[[], V]) -> V:
        own = Future[V]()
        with self._lock:
            flight = self._flights.setdefault(key, own)
        if flight is not own:
            with waiting_elsewhere():
                return flight.result()
        try:
            flight.set_result(compute())
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[key]
        return flight.result()


class CacheFolder:
    """Files named `*SUFFIX` in a folder, at most `capacity` bytes; the least recently used go first. For any
    thread, and several processes may share it.

    They can be made again, so they leave a reserve of the disk for what cannot, such as labels: `sweep`
    removes files until it is free. `evicted` counts those that went for its sake."""

    def __init__(self, path: Path, suffix: str, capacity: int) -> None:
        self.path, self._suffix, self.capacity = path, suffix, capacity
        self.bytes = self.entries = self.evicted = 0  # as this process knows the folder
        self._lock = threading.Lock()

    def room(self) -> int:
        """Bytes that may be written without touching the reserve; negative if it is touched already."""
        disk = shutil.disk_usage(next(each for each in (self.path, *self.path.parents) if each.is_dir()))
        return disk.free - _reserve(disk.total)

    def make_room(self) -> bool:
        """Remove files for a write that met a full disk, at least a quarter of them, since a quota does not
        show in the disk's room. Returns whether any went."""
        before = self.evicted
        self.sweep(0.25)
        return self.evicted > before

    def added(self, size: int) -> None:
        """Count a file that was written."""
        with self._lock:
            self.bytes += size
            self.entries += 1

    def sweep(self, share: float = 0.0) -> None:
        """Remove stale drafts, and files until the rest fits and the reserve is free; at least a `share` of
        their bytes."""
        found: list[tuple[int, int, str]] = []
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(OSError):  # another process removed it first, or it is a link to nowhere
                    status = entry.stat()
                    if entry.name.endswith(self._suffix):
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
                    elif entry.name.endswith(files.DRAFT) and time.time() - status.st_mtime > STALE_DRAFT_S:
                        files.remove(Path(entry.path))
        found.sort(reverse=True)
        total = sum(size for _, size, _ in found)
        wanted = total * (1 - share)
        with suppress(OSError):
            if (room := self.room()) < 0:  # and an eighth more, so that the next files need no sweep each
                wanted = min(wanted, total + room - _reserve(shutil.disk_usage(self.path).total) // 8)
        went = 0
        while found and total > min(self.capacity, wanted):
            _, size, path = found.pop()
            went += total <= self.capacity
            total -= size
            files.remove(Path(path))
        if went:
            log.warning("%d files of %s went to leave room on the disk", went, self.path.name)
        with self._lock:
            self.bytes, self.entries, self.evicted = total, len(found), self.evicted + went


def _reserve(total: int) -> int:
    """Bytes of a disk of `total` bytes that a cache leaves free."""
    return min(RESERVE_BYTES, int(RESERVE_SHARE * total))
