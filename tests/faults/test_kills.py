"""kill -9 at any moment: whatever was answered "kept" is there, and is read, after the next start."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import pytest

from support.served import Server

pytestmark = pytest.mark.faults

LIVES, POSTERS = 12, 8
SETTINGS: Mapping[str, str] = {"CLICKMASK_TRAIN_AFTER": "0", "CLICKMASK_THREADS": "1"}


def post_until_it_dies(url: str, life: int, poster: int, kept: list[str]) -> None:
    """Adds to `kept` the name of each event that was answered "kept"."""
    for number in range(10**6):
        name = f"{life}-{poster}-{number}"
        body = {"action": "PROJECT_UPDATED", "project": {"id": 1, "title": name}}
        request = urllib.request.Request(
            f"{url}/webhook", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                if json.loads(answer.read()) == {"status": "kept"}:
                    kept.append(name)
        except (OSError, HTTPException, ValueError):  # killed before, during or after its answer
            return


def stored(home: Path) -> set[str]:
    with closing(sqlite3.connect(home / "inbox.sqlite")) as connection:
        return {
            json.loads(body)["project"]["title"] for (body,) in connection.execute("SELECT body FROM events")
        }


def test_no_acknowledged_webhook_is_lost_under_kill_9(tmp_path: Path) -> None:
    home, kept, points = tmp_path / "home", list[str](), random.Random(11)
    for life in range(LIVES):
        server = Server(home, SETTINGS, ["--segmenter", "contours"])
        told = list[str]()
        posters = [
            threading.Thread(target=post_until_it_dies, args=(server.url, life, poster, told))
            for poster in range(POSTERS)
        ]
        for each in posters:
            each.start()
        until = time.monotonic() + 60
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(points.uniform(0, 1.0))
        os.kill(server.process.pid, signal.SIGKILL)
        for each in posters:
            each.join()
        server.stop()
        assert told
        kept += told
        assert set(kept) <= stored(home)
        assert "Traceback" not in server.output
    assert len(kept) == len(set(kept))
    server = Server(home, SETTINGS, ["--segmenter", "contours"])
    try:
        for _ in range(600):
            with urllib.request.urlopen(f"{server.url}/v1/status", timeout=60) as answer:
                intake = json.loads(answer.read())["intake"]
            if not intake["waiting"]:
                break
            time.sleep(0.2)
        assert intake["waiting"] == 0
    finally:
        server.stop()
    print(f"{len(kept)} acknowledged events, {LIVES} kills")
