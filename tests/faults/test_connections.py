"""Floods of connections, and clients that do not read, against a real server."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from support.attacked import (
    GET_LARGE,
    LARGE,
    Probe,
    attacked,
    click,
    connect,
    connections_of,
    many,
    picture,
    rss,
)
from support.served import Server

pytestmark = pytest.mark.faults
MINUTE_OF_LOG = 2**20  # bytes
HEALTH_S = 1.0
WAIT = 15.0  # seconds of an attack
ANSWERS = 136


def written(server: Server) -> int:
    return sum(map(len, server.lines))


def test_idle_connections_at_the_limit_of_files_keep_nobody_out(tmp_path: Path) -> None:
    with attacked(tmp_path, nofile=256) as server, many(server, 300):
        before = written(server)
        with Probe(server).asking() as probe:
            time.sleep(WAIT)
        print(f"300 idle connections: {probe}; {written(server) - before} bytes of log in {WAIT:.0f} s")
        assert not probe.failed and max(probe.times) < HEALTH_S
        assert click(server, picture(1)).status_code == 200
        assert written(server) - before < MINUTE_OF_LOG * WAIT / 60


@pytest.mark.parametrize(
    "sent",
    [b"", b"nonsense\r\n\r\n", b"GET /nowhere HTTP/1.1\r\nHost: evil.example\r\n\r\n"],
    ids=["nothing", "nonsense", "a host that is not known"],
)
def test_a_flood_of_connections_writes_little_and_keeps_nobody_out(sent: bytes, tmp_path: Path) -> None:
    with attacked(tmp_path, nofile=256) as server:
        before, end, opened = written(server), threading.Event(), [0, 0]

        def flood(number: int) -> None:
            held = [connect(server)]
            while not end.is_set():
                with contextlib.suppress(OSError):
                    held.append(connect(server, sent))
                    opened[number] += 1
                if len(held) > 200:
                    held.pop(0).close()
            for client in held:
                client.close()

        attackers = [threading.Thread(target=flood, args=(number,)) for number in range(2)]
        for each in attackers:
            each.start()
        with Probe(server).asking() as probe:
            time.sleep(WAIT)
        end.set()
        for each in attackers:
            each.join()
        lines = written(server) - before
        print(f"{sum(opened)} connections: {probe}; {lines} bytes of log in {WAIT:.0f} s")
        assert probe.failed <= 1 and sorted(probe.times)[int(0.95 * len(probe.times))] < HEALTH_S
        assert lines < MINUTE_OF_LOG


def test_answers_that_nobody_reads_are_given_up_and_their_memory_is_bounded(tmp_path: Path) -> None:
    with attacked(tmp_path, encode_s=0.0) as server:
        idle, highest, began = rss(server), 0, time.monotonic()
        with Probe(server).asking() as probe, many(server, 0) as clients:
            for _ in range(ANSWERS):
                clients.append(connect(server, GET_LARGE, receive_buffer=4096))
                with contextlib.suppress(OSError):
                    clients[-1].recv(1)  # from then on, nothing
                highest = max(highest, rss(server))
            held = [highest - idle, connections_of(server)]
            while connections_of(server) > 3 and time.monotonic() - began < 200:
                time.sleep(1)
            took, left = time.monotonic() - began, connections_of(server)
        print(
            f"{ANSWERS} unread answers of {LARGE / 2**20:.0f} MiB: {held[0] / 2**20:.0f} MiB, "
            f"{held[1]} connections; {left} left after {took:.0f} s; {probe}"
        )
        assert held[0] < 5 * 2**27 and took < 100 and not probe.failed
