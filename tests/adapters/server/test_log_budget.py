from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from clickmask_adapters.server import log_budget
from clickmask_adapters.server.log_budget import LogBudget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written(clock: Clock) -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(LogBudget(clock))
    log.addHandler(handler)
    log.setLevel("INFO")
    yield text
    log.removeHandler(handler)


log = logging.getLogger("tests.log_budget")


def flood(lines: int = 4000) -> None:
    for number in range(lines):
        log.info("GET /%d: 401", number)


def test_a_flood_of_lines_writes_no_more_than_the_budget_a_minute(written: io.StringIO, clock: Clock) -> None:
    flood()
    assert 0.1 * log_budget.MAX_BYTES < len(written.getvalue()) < log_budget.MAX_BYTES
    first = len(written.getvalue())
    clock.now = 59.0
    flood(1)
    assert len(written.getvalue()) == first
    clock.now = 61.0
    flood(1)
    assert "GET /0: 401 (" in written.getvalue()[first:]
    assert written.getvalue().endswith("lines like this one were left out)\n")
    left_out = int(written.getvalue()[first:].split("(")[1].split()[0])
    assert left_out + written.getvalue().count("\n") == 4002


def test_other_places_and_levels_are_still_written(written: io.StringIO) -> None:
    flood()
    log.info("a click")
    for level in (logging.INFO, logging.WARNING):
        log.log(level, "of one place")
    assert written.getvalue().count("a click") == 1
    assert written.getvalue().count("of one place") == 2


def test_tracebacks_count(written: io.StringIO) -> None:
    for _ in range(1000):
        try:
            raise ValueError
        except ValueError:
            log.exception("failed")
    assert written.getvalue().count("Traceback") < 60
