"""A bound on the log, which strangers could otherwise fill: each request that they send may write a line."""

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MAX_BYTES = 200 * 2**10  # a minute, of the lines that one place in the code writes at one level
MINUTE_S = 60.0
PREFIX_BYTES, TRACEBACK_BYTES = 80, 4000  # estimates: time, level and name; a traceback


@dataclass
class _Spent:
    began: float
    bytes: int = 0
    left_out: int = 0


class LogBudget(logging.Filter):
    """A handler's filter that leaves out lines beyond MAX_BYTES a minute, for each place and level by itself.
    The next line from there that is written says how many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._spent: dict[Hashable, _Spent] = {}  # as many as there are places that log

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno, record.levelno), self._clock()
        spent = self._spent.setdefault(place, _Spent(now))
        left_out = 0
        if now - spent.began >= MINUTE_S:
            left_out = spent.left_out
            spent = self._spent[place] = _Spent(now)
        size = PREFIX_BYTES + len(record.getMessage()) + (TRACEBACK_BYTES if record.exc_info else 0)
        if spent.bytes + size > MAX_BYTES:
            spent.left_out += 1
            return False
        spent.bytes += size
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} lines like this one were left out)"
            record.args = None
        return True
