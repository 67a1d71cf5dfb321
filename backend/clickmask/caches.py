"""Bounded caches and shared computations, for any thread."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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
