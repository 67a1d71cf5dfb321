from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clickmask.inbox import Inbox

POSTER = """
import sys
from pathlib import Path
from clickmask.inbox import Inbox
inbox = Inbox(Path(sys.argv[1]))
for number in range(1_000_000):
    print(inbox.keep("poster", b"%d" % number), flush=True)
"""


def test_events_come_back_byte_for_byte_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    bodies = [b"{}", b"\x00\xff not even text", b""]
    ids = [inbox.keep("label_studio", body) for body in bodies]
    assert [event.body for event in inbox.events()] == bodies
    assert [event.id for event in inbox.events(after=ids[0])] == ids[1:]
    assert len(inbox.events(limit=2)) == 2
    inbox.close()
    reopened = Inbox(tmp_path / "inbox.sqlite")
    assert reopened.count() == 3
    assert reopened.events()[0].source == "label_studio"
    reopened.close()


def test_eight_threads_lose_nothing(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    bodies = [b"%d" % number for number in range(80)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda body: inbox.keep("test", body), bodies))
    assert {event.id: event.body for event in inbox.events()} == dict(zip(ids, bodies, strict=True))
    inbox.close()


def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    assert inbox._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert inbox._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    inbox.close()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "inbox.sqlite"
    acknowledged = 0
    for wanted in (1, 7, 40):
        poster = subprocess.Popen(
            [sys.executable, "-c", POSTER, str(path)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert poster.stdout is not None
        for _ in range(wanted):
            acknowledged = int(poster.stdout.readline())
        poster.send_signal(signal.SIGKILL)
        poster.wait()
        rest = poster.stdout.read().split("\n")[:-1]
        poster.stdout.close()
        acknowledged = int(rest[-1]) if rest else acknowledged
        with sqlite3.connect(path) as connection:
            kept = {number for (number,) in connection.execute("SELECT id FROM events")}
        connection.close()
        assert kept >= set(range(1, acknowledged + 1))
