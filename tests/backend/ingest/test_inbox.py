from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clickmask.errors import StoreUnavailable
from clickmask.files import DamagedFiles
from clickmask.ingest import inbox as inbox_module
from clickmask.ingest.inbox import PRAGMAS, Inbox, mend_inbox
from support import damage

# Each of 20 threads prints what it was told is kept: a line is written in one call, so it is whole.
POSTERS = """
import os, sys, threading
from pathlib import Path
from clickmask.ingest.inbox import Inbox
inbox, life = Inbox(Path(sys.argv[1])), sys.argv[2]
def post(poster):
    for number in range(1_000_000):
        body = f"{life}-{poster}-{number}"
        kept = inbox.keep("poster", body.encode())
        os.write(1, f"{kept} {body}\\n".encode())
for poster in range(20):
    threading.Thread(target=post, args=(poster,)).start()
"""


def killed_posters(path: Path, life: int, acknowledged_first: int, then_seconds: float) -> dict[int, str]:
    """What 20 concurrent posters were told is kept before they were killed, at a point of its own."""
    posters = subprocess.Popen(
        [sys.executable, "-c", POSTERS, str(path), str(life)], stdout=subprocess.PIPE, text=True
    )
    assert posters.stdout is not None
    lines = [posters.stdout.readline() for _ in range(acknowledged_first)]
    time.sleep(then_seconds)
    posters.send_signal(signal.SIGKILL)
    posters.wait()
    lines += posters.stdout.read().splitlines(keepends=True)
    posters.stdout.close()
    told = [line.split() for line in lines if line.endswith("\n")]
    return {int(number): body for number, body in told}


def stored(path: Path) -> dict[int, str]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT id, body FROM events").fetchall()
    connection.close()
    return {number: body.decode() for number, body in rows}


def test_events_come_back_byte_for_byte_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    bodies = [b"{}", b"\x00\xff not even text", b""]
    ids = [inbox.keep("label_studio", body) for body in bodies]
    assert [event.body for event in inbox.events()] == bodies
    assert [event.id for event in inbox.events(after=ids[0])] == ids[1:]
    assert len(inbox.events(limit=2)) == 2
    found = inbox.event(ids[1])
    assert found is not None
    assert found.body == bodies[1]
    assert inbox.event(ids[-1] + 1) is None
    name = inbox.id
    inbox.close()
    reopened = Inbox(tmp_path / "inbox.sqlite")
    assert reopened.count() == 3
    assert reopened.events()[0].source == "label_studio"
    assert reopened.id == name
    reopened.close()


def test_twenty_threads_lose_nothing(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    bodies = [b"%d" % number for number in range(400)]
    with ThreadPoolExecutor(20) as pool:
        ids = list(pool.map(lambda body: inbox.keep("test", body), bodies))
    assert {event.id: event.body for event in inbox.events(limit=1000)} == dict(zip(ids, bodies, strict=True))
    inbox.close()


@pytest.mark.parametrize("connection", ["_writer", "_reader"])
def test_every_commit_is_flushed_to_the_disk(tmp_path: Path, connection: str) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    for name, value in {"synchronous": 2, "journal_mode": "wal", "busy_timeout": 500}.items():
        assert getattr(inbox, connection).execute(f"PRAGMA {name}").fetchone() == (value,)
    inbox.close()


def test_settings_that_sqlite_does_not_take_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "PRAGMAS", {**PRAGMAS, "journal_mode": "network"})
    with pytest.raises(StoreUnavailable, match="journal_mode"):
        Inbox(tmp_path / "inbox.sqlite")


class CountingInbox(Inbox):
    """Counts transactions, and holds the first one up until it is let go."""

    def __init__(self, path: Path) -> None:
        self.transactions: list[int] = []
        self.go = threading.Event()
        super().__init__(path)

    def _insert(self, together: Sequence[Any]) -> list[int]:
        assert self.go.wait(10)
        self.transactions.append(len(together))
        return super()._insert(together)


def test_many_who_wait_share_one_flush(tmp_path: Path) -> None:
    inbox = CountingInbox(tmp_path / "inbox.sqlite")
    first = inbox.keep_soon("test", b"first")
    waiting: list[Future[int]] = [inbox.keep_soon("test", b"%d" % number) for number in range(200)]
    inbox.go.set()
    wait([first, *waiting], timeout=10)
    assert len({future.result() for future in waiting}) == 200
    assert sum(inbox.transactions) == 201
    assert len(inbox.transactions) <= 3
    inbox.close()


def test_whoever_hangs_up_has_told_us_all_the_same(tmp_path: Path) -> None:
    inbox = CountingInbox(tmp_path / "inbox.sqlite")
    kept = inbox.keep_soon("test", b"said")
    assert not kept.cancel()
    inbox.go.set()
    assert kept.result(10) == 1
    inbox.close()


def test_a_closed_inbox_keeps_what_arrived_and_refuses_the_rest(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    last = inbox.keep_soon("test", b"last")
    inbox.close()
    assert last.result() == 1
    with pytest.raises(StoreUnavailable, match="shutting down"):
        inbox.keep("test", b"late")


def test_what_cannot_be_kept_is_said_and_later_events_are_kept(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite")
    inbox._writer.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'full'); END")
    with pytest.raises(StoreUnavailable, match="room"):
        inbox.keep("test", b"lost")
    inbox._writer.execute("DROP TRIGGER full")
    inbox.keep("test", b"kept")
    assert [event.body for event in inbox.events()] == [b"kept"]
    inbox.close()


def test_a_full_disk_is_tried_once_more_if_it_can_be_given_room(tmp_path: Path) -> None:
    asked = list[bool]()

    def make_room() -> bool:
        asked.append(True)
        inbox._writer.execute("PRAGMA max_page_count = 1000")
        return len(asked) == 1

    inbox = Inbox(tmp_path / "inbox.sqlite", make_room=make_room)
    inbox._writer.execute("PRAGMA max_page_count = 1")  # SQLite then says that the disk is full
    assert inbox.keep("test", bytes(10_000)) == 1
    assert asked == [True]
    with pytest.raises(StoreUnavailable, match="room"):
        inbox.keep("test", bytes(5_000_000))
    assert inbox.keep("test", bytes(10_000)) == 2
    assert asked == [True, True]
    inbox.close()


def test_an_event_that_is_too_large_refuses_none_that_came_with_it(tmp_path: Path) -> None:
    inbox = CountingInbox(tmp_path / "inbox.sqlite")
    inbox._writer.execute("PRAGMA max_page_count = 100")
    kept = [inbox.keep_soon("test", bytes(size)) for size in (1, 2, 5_000_000, 3)]
    inbox.go.set()
    wait(kept)
    assert [each.exception() is None for each in kept] == [True, True, False, True]
    assert [len(event.body) for event in inbox.events()] == [1, 2, 3]
    inbox.close()


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(1), KeyError("a mistake of ours")])
def test_no_error_ends_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(together: object) -> list[int]:
        raise error

    inbox = Inbox(tmp_path / "inbox.sqlite")
    with monkeypatch.context() as patched:
        patched.setattr(inbox, "_insert", broken)
        with pytest.raises(StoreUnavailable, match=f"could not be kept: {type(error).__name__}"):
            inbox.keep("test", b"1")
    assert inbox.keep("test", b"2") == 1
    inbox.close()


def test_an_event_that_cannot_be_written_leaves_no_transaction_open(tmp_path: Path) -> None:
    with closing(Inbox(tmp_path / "inbox.sqlite")) as inbox:
        with pytest.raises(StoreUnavailable, match="UnicodeEncodeError"):
            inbox.keep("\ud800", b"1")
        assert inbox.keep("test", b"2") == 1


def test_a_mending_that_is_killed_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inbox.sqlite"
    with closing(Inbox(path)) as inbox:
        for number in range(40):
            inbox.keep("test", b"%d " % number * 500)
    damage.flipped(path.stat().st_size // damage.PAGE // 2)(path)

    def killed(source: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inbox_module, "_readable", killed)
        with pytest.raises(KeyboardInterrupt):
            mend_inbox(path, DamagedFiles(tmp_path))
    assert not list(tmp_path.glob("*.damaged-*"))
    mend_inbox(path, DamagedFiles(tmp_path))
    with closing(Inbox(path)) as inbox:
        assert inbox.count() >= 30


def test_events_of_a_damaged_inbox_are_read_back_into_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "inbox.sqlite"
    with closing(Inbox(path)) as inbox:
        for number in range(40):
            inbox.keep("test", b"%d " % number * 500)
        earlier = inbox.id
    damage.flipped(path.stat().st_size // damage.PAGE // 2)(path)
    damaged = DamagedFiles(tmp_path)
    mend_inbox(path, damaged)
    with closing(Inbox(path)) as inbox:
        numbers = [int(event.body.split()[0]) for event in inbox.events()]
        assert inbox.id != earlier, "the store must not believe that all of them were read"
        assert inbox.keep("test", b"new") > numbers[-1]
    assert 30 <= len(numbers) < 40
    assert numbers == sorted(numbers)
    (said,) = (each.sentence for each in damaged.all())
    assert f"{len(numbers)} events were read back from it, {40 - len(numbers)} or more" in said
    mend_inbox(path, damaged)
    assert len(damaged.all()) == 1


@pytest.mark.parametrize(
    "act", [damage.empty, damage.garbage, damage.folder, damage.loop, damage.other_schema]
)
def test_an_inbox_of_which_nothing_can_be_read_is_set_aside(
    tmp_path: Path, act: Callable[[Path], None]
) -> None:
    path = tmp_path / "inbox.sqlite"
    with closing(Inbox(path)) as inbox:
        inbox.keep("test", b"1")
    act(path)
    damaged = DamagedFiles(tmp_path)
    mend_inbox(path, damaged)
    with closing(Inbox(path)) as inbox:
        assert inbox.count() == 0
    assert "0 events were read back" in damaged.all()[0].sentence


def test_events_that_were_read_are_forgotten_when_they_are_old(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite", kept_for=-1.0)
    ids = [inbox.keep("test", b"%d" % number) for number in range(3)]
    assert inbox.count() == 3
    inbox.forget_to(ids[1])
    inbox.keep("test", b"3")
    assert [event.body for event in inbox.events()] == [b"2", b"3"]
    inbox.close()
    patient = Inbox(tmp_path / "inbox.sqlite")
    patient.forget_to(ids[2])
    patient.keep("test", b"4")
    assert patient.count() == 3
    patient.close()


def test_events_are_counted_without_reading_them(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox.sqlite", kept_for=-1.0)
    assert [inbox.count(), inbox.count(after=3)] == [0, 0]
    for number in range(6):
        inbox.forget_to(2)
        inbox.keep("test", b"%d" % number)
    for after in range(8):
        assert inbox.count(after) == len(inbox.events(after))
    assert inbox.count() == 4
    inbox.close()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "inbox.sqlite"
    acknowledged: dict[int, str] = {}
    for life, wanted in enumerate((1, 40)):
        acknowledged |= killed_posters(path, life, wanted, 0)
    assert len(acknowledged) >= 41
    assert acknowledged.items() <= stored(path).items()


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_fifty_kills(tmp_path: Path) -> None:
    path = tmp_path / "inbox.sqlite"
    points = random.Random(5)
    acknowledged: dict[int, str] = {}
    for life in range(50):
        told = killed_posters(path, life, points.randrange(1, 30), points.uniform(0, 0.05))
        assert not told.keys() & acknowledged.keys()
        acknowledged |= told
        found = stored(path)
        assert acknowledged.items() <= found.items()
        # Whatever else is there was on its way when the kill came: at most one event a poster.
        assert len(found) - len(acknowledged) <= 20 * (life + 1)
        inbox = Inbox(path)
        assert len(inbox.events(limit=10**6)) == len(found)
        inbox.close()
