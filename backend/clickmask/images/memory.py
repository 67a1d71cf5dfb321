"""Budgets of memory for pictures: one for encoded bytes, one for everything that is decoded."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Self

from clickmask.caches import waiting_elsewhere
from clickmask.errors import Busy, TooLarge
from clickmask.types import Pixels

DECODE_BYTES = 1000 * 2**20  # of pixels, and of what decoding them takes
SMALL_SHARE = 16  # a request for at most such a part of the budget finds room beside waiting large ones
PATIENCE_S = 10.0
RETRY_S = 5.0


class MemoryBudget:
    """`most` bytes that all requests share, `places` of them at a time. For any thread. Large requests are
    served in turn, and leave the last part (1 / SMALL_SHARE) and the last place to small ones. `spare` drops
    something that is only kept for speed; False if nothing is left to drop."""

    def __init__(
        self,
        most: int,
        places: int,
        spare: Callable[[], bool] = lambda: False,
        patience: float = PATIENCE_S,
    ) -> None:
        self._most, self._places = most, places
        self._spare = spare
        self._patience = patience
        self._changed = threading.Condition()
        self._held = 0
        self._taken = 0  # places
        self._queue = deque[object]()  # large requests, in order
        self._returned = deque[int]()  # by finalizers, which may run in any thread at any time

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        with self._changed:
            return self._settled()

    def room(self) -> "Room":
        """Room for one picture, empty at first, as a context manager."""
        return Room(self)

    def take(self, count: int, before: int | None = None) -> None:
        """Hold `count` bytes, and a place, instead of `before` (None: nothing, and no place). Raises TooLarge
        if there can never be room, and Busy if there is none within the patience."""
        is_large = count > self._most // SMALL_SHARE
        most = self._most - self._most // SMALL_SHARE * is_large
        if count > most:
            needed, there = (f"{-(-size // 10**6)} MB" for size in (count, most))
            setting = "CLICKMASK_DECODE_BYTES"
            raise TooLarge(f"the image takes {needed} to decode; at most {there} are given ({setting})")
        places = self._places - is_large if before is None else self._places + 1
        in_turn = is_large and before is None  # those who queue may wait for what is held before
        own, until = object(), time.monotonic() + self._patience
        with self._changed:
            if in_turn:
                self._queue.append(own)
            try:
                while True:
                    if self._taken < places and (not in_turn or self._queue[0] is own):
                        if self._settled() + count - (before or 0) <= most:
                            break
                        if self._spare():
                            continue
                    if time.monotonic() >= until:
                        raise Busy("other large images are being read; try again in a moment", RETRY_S)
                    with waiting_elsewhere():
                        self._changed.wait(0.1)  # finalizers wake nobody
            finally:
                if in_turn:
                    self._queue.remove(own)
                self._changed.notify_all()
            self._held += count - (before or 0)
            self._taken += before is None

    @contextmanager
    def lend(self, count: int, beside: int = 0) -> Generator[None]:
        """Hold `count` bytes, and no place, for a while, with the `beside` that are held for it all the time.
        Raises what `take` raises."""
        self.take(count + beside, beside)
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def give_back(self, count: int, kept: Pixels | None = None) -> None:
        """Give back a place, and `count` bytes. Those of `kept` follow when nobody has the array any more."""
        later = 0 if kept is None else kept.nbytes
        if kept is not None:
            weakref.finalize(kept, self._returned.append, later).atexit = False
        with self._changed:
            self._held -= count - later
            self._taken -= 1
            self._changed.notify_all()

    def _settled(self) -> int:
        while self._returned:
            self._held -= self._returned.popleft()
        return self._held


class Room:
    """The memory of one picture."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._count: int | None = None

    def require(self, count: int) -> None:
        """Hold `count` bytes instead of those before. Raises what `MemoryBudget.take` raises."""
        self._budget.take(count, self._count)
        self._count = count

    def keep(self, pixels: Pixels) -> None:
        """Go on holding the bytes of `pixels` while the array lives, and no others."""
        self._give_back(pixels)

    def _give_back(self, kept: Pixels | None = None) -> None:
        if self._count is not None:
            count, self._count = self._count, None
            self._budget.give_back(count, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
