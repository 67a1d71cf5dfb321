"""How the time of some work grows, of which the machine's speed says nothing."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """What the work takes of a processor, the shortest of some runs."""
    found: list[float] = []
    for _ in range(5):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def grows_linearly(work: Callable[[int], object], count: int) -> bool:
    """Whether 16 times as much takes about 16 times as long, and far from 256 times."""
    return seconds(lambda: work(16 * count)) < 64 * seconds(lambda: work(count)) + 0.001
