from __future__ import annotations

import logging
import os
import threading

import pytest

from clickmask_adapters.server.shutdown import end_in_time


def test_the_process_ends_with_status_0_whatever_its_threads_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended, statuses = threading.Event(), list[int]()

    def leave(status: int) -> None:
        statuses.append(status)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    begin = threading.Event()
    end_in_time(begin, 0.0)
    assert not ended.wait(0.05), "nobody has said so"
    begin.set()
    assert ended.wait(60)
    assert statuses == [0]
    assert "ends with work undone" in caplog.text


def test_a_log_that_blocks_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, unblocked = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    blocked = logging.Handler()
    monkeypatch.setattr(blocked, "emit", lambda record: unblocked.wait(60))
    logger = logging.getLogger("clickmask_adapters.server.shutdown")
    logger.addHandler(blocked)
    try:
        begin = threading.Event()
        end_in_time(begin, 0.0)
        begin.set()
        assert ended.wait(30)
    finally:
        unblocked.set()
        logger.removeHandler(blocked)
