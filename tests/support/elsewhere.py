"""Threads that wait elsewhere than where requests compute, counted."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clickmask.caches import ELSEWHERE


class Waiting:
    now = 0
    most = 0

    @contextmanager
    def context(self) -> Iterator[None]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield
        finally:
            self.now -= 1


@contextmanager
def counted() -> Iterator[Waiting]:
    """What waits elsewhere in this context, and in threads that `in_thread` starts in it."""
    waiting = Waiting()
    token = ELSEWHERE.set(waiting.context)
    try:
        yield waiting
    finally:
        ELSEWHERE.reset(token)


def in_thread(call: Callable[[], object]) -> threading.Thread:
    """A thread that has started `call` in this context, as those of a server's routes have theirs."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
    thread.start()
    return thread
