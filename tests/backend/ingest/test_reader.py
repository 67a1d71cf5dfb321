from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clickmask.errors import ImageUnavailable, InvalidRequest, StoreUnavailable, ToolUnavailable
from clickmask.images.archive import ImageArchive
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest import reader as inbox_reader
from clickmask.ingest.apply import Ingester
from clickmask.ingest.inbox import Inbox
from clickmask.ingest.reader import MAX_ATTEMPTS, MAX_RETRY_S, MIN_RETRY_S, InboxReader
from clickmask.labels.submissions import AnnotationDeleted, Submission, Unreadable
from clickmask.store import FailedEvent, Store
from support.accepting import TOOL, FakeTool, box, event, submitted
from support.waiting import until

Open = Callable[[], InboxReader]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tool() -> FakeTool:
    return FakeTool()


@pytest.fixture
def open_reader(store: Store, inbox: Inbox, tool: FakeTool, clock: Clock, tmp_path: Path) -> Iterator[Open]:
    """Opens a reader, as a restart would; the one before it is closed."""
    readers: list[InboxReader] = []

    def open_it() -> InboxReader:
        if readers:
            readers[-1].close()
        kept = ImageArchive(tmp_path / "images", 2**20, store.is_labelled)
        ingester = Ingester(store, ImageSource(Fetcher()), kept)
        readers.append(InboxReader(inbox, store, ingester, {TOOL: tool}, clock))
        readers[-1].start()
        return readers[-1]

    yield open_it
    readers[-1].close()
    store.close()
    inbox.close()


def tasks_of(store: Store) -> list[str]:
    return [label.key.task for label in store.labels(TOOL, "1", all_annotations=True)]


def read_all(reader: InboxReader, inbox: Inbox, store: Store) -> None:
    until(lambda: store.read_to(inbox.id) == inbox.count(), 60)


def test_events_become_labels_in_their_order(open_reader: Open, store: Store, inbox: Inbox) -> None:
    inbox.keep(TOOL, event(submitted(box(), task="1", annotation="1")))
    reader = open_reader()
    inbox.keep(
        TOOL, event(submitted(box(), task="2", annotation="2"), submitted(box(), task="3", annotation="3"))
    )
    inbox.keep(TOOL, event())
    inbox.keep("another tool", b"whatever")
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1", "2", "3"]
    status = reader.status()
    assert (status.waiting, status.set_aside, status.newest_set_aside) == (0, 0, [])


def test_an_image_that_cannot_be_read_keeps_out_no_labels_but_its_own(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool, clock: Clock
) -> None:
    broken = submitted(box(), task="2", annotation="2", address="data:image/png;base64,AAAA")
    unfit = submitted(box(), task="3", annotation="3", size=(1, 1))
    missing = submitted(box(), task="4", annotation="4", address="http://127.0.0.1:1/gone.png")
    inbox.keep(TOOL, event(broken, submitted(box(), task="1"), unfit))
    reader = open_reader()
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1"]
    (given_up,) = reader.status().newest_set_aside
    assert given_up.retry_at is None
    tool.failing = ImageUnavailable("gone")
    inbox.keep(TOOL, event(broken, missing))
    read_all(reader, inbox, store)
    waiting, _ = reader.status().newest_set_aside
    assert (waiting.reason, waiting.retry_at) == ("gone", clock.now + MIN_RETRY_S)
    tool.failing = None
    clock.now += MIN_RETRY_S
    inbox.keep(TOOL, event())
    until(lambda: sorted(tool.asked) == [False, False, False, True], 60)  # in either order


def test_images_that_take_long_to_fail_do_not_hold_up_other_events(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_reader, "MAX_IMAGE_WAIT_S", -1.0)
    tool.failing = ImageUnavailable("timed out")
    inbox.keep(TOOL, event(*(submitted(box(), task=name, annotation=name) for name in "12")))
    read_all(open_reader(), inbox, store)
    assert [submission.task for submission in tool.located] == ["1"]


def test_what_is_behind_images_that_take_long_to_fail_is_tried_again(
    open_reader: Open,
    store: Store,
    inbox: Inbox,
    tool: FakeTool,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool.failing = InvalidRequest("a region is damaged")  # which no time would mend
    with monkeypatch.context() as patched:
        patched.setattr(inbox_reader, "MAX_IMAGE_WAIT_S", -1.0)
        inbox.keep(TOOL, event(*(submitted(box(), task=name, annotation=name) for name in "12")))
        reader = open_reader()
        until(lambda: reader.status().set_aside == 1)
    (aside,) = reader.status().newest_set_aside
    assert aside.retry_at == clock.now + MIN_RETRY_S
    tool.failing = None
    clock.now += MIN_RETRY_S
    inbox.arrived.set()
    until(lambda: tasks_of(store) == ["1", "2"])


def test_events_of_an_inbox_that_lost_its_newest_ones_are_read(
    open_reader: Open, store: Store, inbox: Inbox
) -> None:
    """A log that is lost, or a file that is restored, gives ids again that the store has read."""
    store.mark_read(inbox.id, 7)
    open_reader()
    inbox.keep(TOOL, event(submitted(box())))
    until(lambda: tasks_of(store) == ["1"])
    assert store.read_to(inbox.id) == 1


def test_a_restart_reads_nothing_twice_and_leaves_nothing_out(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool
) -> None:
    reader = open_reader()
    inbox.keep(TOOL, event(submitted(box(), task="1", annotation="1")))
    read_all(reader, inbox, store)
    reader.close()
    inbox.keep(TOOL, event(submitted(box(), task="2", annotation="2")))
    assert reader.status().waiting == 1
    read_all(open_reader(), inbox, store)
    assert tasks_of(store) == ["1", "2"]
    assert [submission.task for submission in tool.located] == ["1", "2"]


def test_an_event_that_is_read_again_after_a_crash_changes_nothing(
    open_reader: Open, store: Store, inbox: Inbox
) -> None:
    inbox.keep(TOOL, event(submitted(box())))
    read_all(open_reader(), inbox, store)
    before = store.labels(TOOL, "1")
    store.mark_read(inbox.id, 0)  # as if the crash came between the labels and this note
    read_all(open_reader(), inbox, store)
    assert store.labels(TOOL, "1") == before


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (InvalidRequest("an event without a task"), "an event without a task"),
        (
            KeyError("secret path"),
            "something went wrong inside clickmask (KeyError); its log has the details",
        ),
        (Unreadable("annotation 7: a polygon of 2 points"), "annotation 7: a polygon of 2 points"),
    ],
)
def test_a_poisonous_event_is_set_aside_and_the_others_go_on(
    open_reader: Open, store: Store, inbox: Inbox, clock: Clock, poison: Exception | Unreadable, reason: str
) -> None:
    inbox.keep(TOOL, event(submitted(box(), task="1", annotation="1"), poison))
    inbox.keep(TOOL, event(submitted(box(), task="2", annotation="2")))
    reader = open_reader()
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1", "2"]
    said = f"{reason} (of the event's submissions 1 were taken in, 1 not)"
    assert reader.status().newest_set_aside == [FailedEvent(1, TOOL, said, 1000.0, 1, None)]
    assert reader.status().set_aside == 1


def test_a_submission_that_fails_in_no_expected_way_keeps_out_no_other(
    open_reader: Open, store: Store, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = store.accept

    def surprised(submission: Submission, *rest: Any) -> bool:
        if submission.task == "2":
            raise ZeroDivisionError("secret path")
        return accept(submission, *rest)

    monkeypatch.setattr(store, "accept", surprised)
    inbox.keep(TOOL, event(*(submitted(box(), task=name, annotation=name) for name in "123")))
    reader = open_reader()
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1", "3"]
    (aside,) = reader.status().newest_set_aside
    assert "(ZeroDivisionError)" in aside.reason
    assert "of the event's submissions 2 were taken in, 1 not" in aside.reason
    assert "secret" not in aside.reason
    monkeypatch.setattr(store, "accept", accept)
    reader = open_reader()  # and is tried once more after a restart
    until(lambda: reader.status().set_aside == 0, 60)
    assert tasks_of(store) == ["1", "2", "3"]


def test_what_cannot_be_read_is_tried_once_more_after_a_restart(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool
) -> None:
    tool.failing = InvalidRequest("set LABEL_STUDIO_API_KEY")
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    read_all(reader, inbox, store)
    until(lambda: reader.status().set_aside == 1)
    tool.failing = None
    reader = open_reader()
    until(lambda: reader.status().set_aside == 0)
    assert tasks_of(store) == ["1"]


@pytest.mark.parametrize(
    "failure", [ToolUnavailable("Label Studio does not answer"), ImageUnavailable("503")]
)
def test_what_may_pass_is_tried_again_later_and_later(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool, clock: Clock, failure: Exception
) -> None:
    tool.failing = failure
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    until(lambda: reader.status().set_aside == 1)
    (aside,) = reader.status().newest_set_aside
    assert (aside.reason, aside.attempts, aside.retry_at) == (str(failure), 1, clock.now + MIN_RETRY_S)
    clock.now += MIN_RETRY_S
    inbox.arrived.set()
    until(lambda: reader.status().newest_set_aside[0].attempts == 2)
    assert reader.status().newest_set_aside[0].retry_at == clock.now + 2 * MIN_RETRY_S
    tool.failing = None
    clock.now += 2 * MIN_RETRY_S
    inbox.arrived.set()
    until(lambda: reader.status().set_aside == 0)
    assert tasks_of(store) == ["1"]


def test_after_a_day_of_failures_an_event_is_given_up(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool, clock: Clock
) -> None:
    tool.failing = ToolUnavailable("gone")
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    began = clock.now
    for attempt in range(1, MAX_ATTEMPTS):
        until(lambda attempt=attempt: [each.attempts for each in store.set_aside(inbox.id)] == [attempt])
        retry_at = store.set_aside(inbox.id)[0].retry_at
        assert retry_at is not None
        assert retry_at - clock.now <= MAX_RETRY_S
        clock.now = retry_at
        inbox.arrived.set()
    until(lambda: store.set_aside(inbox.id)[0].attempts == MAX_ATTEMPTS)
    assert store.set_aside(inbox.id)[0].retry_at is None
    assert clock.now - began > 20 * 3600
    assert reader.status().set_aside == 1


def test_an_event_that_is_no_longer_kept_is_not_tried_again(
    open_reader: Open, store: Store, inbox: Inbox
) -> None:
    store.defer(inbox.id, FailedEvent(7, TOOL, "long ago", 0.0, 3, None))
    reader = open_reader()
    until(lambda: reader.status().set_aside == 0)


def test_a_late_retry_does_not_undo_what_came_after_it(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool, clock: Clock
) -> None:
    tool.failing = ImageUnavailable("later")
    inbox.keep(TOOL, event(submitted(box(region="old"), at=1.0)))
    reader = open_reader()
    until(lambda: reader.status().set_aside == 1)
    tool.failing = None
    inbox.keep(TOOL, event(submitted(box(region="new"), at=2.0)))
    read_all(reader, inbox, store)
    clock.now += MIN_RETRY_S
    inbox.arrived.set()
    until(lambda: reader.status().set_aside == 0)
    assert [label.key.region for label in store.labels(TOOL, "1")] == ["new"]


def test_while_the_store_is_away_everything_waits(
    open_reader: Open, store: Store, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()
    accept = store.accept

    def away(*arguments: object) -> bool:
        tried.set()
        raise StoreUnavailable("no room")

    monkeypatch.setattr(store, "accept", away)
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    assert tried.wait(10)
    assert reader.status().waiting == 1
    assert reader.status().set_aside == 0
    monkeypatch.setattr(store, "accept", accept)
    inbox.arrived.set()
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1"]


def test_an_event_that_alone_cannot_be_stored_lets_the_others_go_on(
    open_reader: Open, store: Store, inbox: Inbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, tries = store.accept, list[str]()

    def broken(change: Submission, *arguments: Any) -> bool:
        tries.append(change.task)
        if change.task == "1":
            raise StoreUnavailable("the folder of its image cannot be written")
        return accept(change, *arguments)

    monkeypatch.setattr(inbox_reader, "MIN_PAUSE_S", 0.001)
    monkeypatch.setattr(store, "accept", broken)
    for task in ("1", "2"):
        inbox.keep(TOOL, event(submitted(box(), task=task, annotation=task)))
    reader = open_reader()
    until(lambda: tasks_of(store) == ["2"])
    assert tries[: inbox_reader.MAX_HOLD_UPS] == ["1"] * inbox_reader.MAX_HOLD_UPS
    for attempts in (1, 2, 3):
        until(lambda attempts=attempts: reader.status().newest_set_aside[0].attempts == attempts)
        clock.now += MAX_RETRY_S
        inbox.arrived.set()
    assert reader.status().newest_set_aside[0].reason == "the folder of its image cannot be written"
    until(lambda: reader.status().newest_set_aside[0].attempts == 4)
    store.defer(inbox.id, reader.status().newest_set_aside[0]._replace(attempts=10**4))  # after a year
    clock.now += MAX_RETRY_S
    inbox.arrived.set()
    until(lambda: reader.status().newest_set_aside[0].attempts == 10**4 + 1)
    assert reader.status().newest_set_aside[0].retry_at == clock.now + MAX_RETRY_S
    monkeypatch.setattr(store, "accept", accept)
    clock.now += MAX_RETRY_S
    inbox.arrived.set()
    until(lambda: tasks_of(store) == ["1", "2"])
    until(lambda: not reader.trouble)


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("the database cannot be used just now"),
        sqlite3.DatabaseError("database disk image is malformed"),
        MemoryError(),
        OSError(errno.EIO, "Input/output error", "/secret/path"),
        KeyError("a mistake of ours"),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_error_ends_the_reader(
    open_reader: Open,
    store: Store,
    inbox: Inbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    read_to, failed = store.read_to, threading.Event()

    def broken(inbox: str) -> int:
        if threading.current_thread().name != "inbox-reader" or failed.is_set():
            return read_to(inbox)
        failed.set()
        raise error

    monkeypatch.setattr(inbox_reader, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(store, "read_to", broken)
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    read_all(reader, inbox, store)
    until(lambda: not reader.trouble)
    assert (tasks_of(store), reader.failures, reader.refuses()) == (["1"], 1, "")
    (said,) = (each.getMessage() for each in caplog.records if each.levelname == "ERROR")
    assert said.startswith("events wait in the inbox: ")
    assert said.endswith("the next try is in 0.01 s")
    assert "secret" not in said


def test_while_reading_fails_it_is_said_and_tried_ever_more_rarely(
    open_reader: Open, store: Store, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = list[float]()
    monkeypatch.setattr(inbox_reader, "MIN_PAUSE_S", 0.001)
    monkeypatch.setattr(inbox_reader, "MAX_PAUSE_S", 0.004)
    monkeypatch.setattr(store, "due", lambda *given: 1 / 0)
    note = InboxReader._note
    monkeypatch.setattr(
        InboxReader, "_note", lambda self, error, pause: (pauses.append(pause), note(self, error, pause))
    )
    reader = open_reader()
    until(lambda: reader.failures >= 5)
    assert "something went wrong inside clickmask (ZeroDivisionError)" in reader.trouble
    assert pauses[:5] == [0.001, 0.002, 0.004, 0.004, 0.004]


def test_an_inbox_that_cannot_be_read_refuses_new_events(
    open_reader: Open, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_reader, "MIN_PAUSE_S", 0.01)
    reader = open_reader()
    assert reader.refuses() == ""
    inbox._writer.execute("ALTER TABLE events RENAME TO elsewhere")
    until(lambda: bool(reader.refuses()))
    assert reader.refuses().startswith("the inbox cannot be read: ")
    assert reader.trouble == f"events wait in the inbox: {reader.refuses()}"
    inbox._writer.execute("ALTER TABLE elsewhere RENAME TO events")
    until(lambda: not reader.trouble and not reader.refuses())


def test_a_reader_whose_thread_is_gone_refuses_new_events(
    open_reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InboxReader, "_run", lambda self: None)
    reader = open_reader()
    until(lambda: bool(reader.refuses()))
    assert reader.refuses() == "events are no longer read: restart clickmask"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left"), SystemExit(1)])
def test_an_event_that_fails_in_any_way_keeps_out_no_other(
    open_reader: Open, store: Store, inbox: Inbox, tool: FakeTool, clock: Clock, error: BaseException
) -> None:
    changes = tool.changes

    def failing(event: bytes, retry: bool = False) -> Any:
        if b"poison" in event:
            raise error
        return changes(event, retry)

    tool.changes = failing  # type: ignore[method-assign]
    inbox.keep(TOOL, b"poison")
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1"]
    (aside,) = reader.status().newest_set_aside
    assert type(error).__name__ in aside.reason
    passes = not isinstance(error, SystemExit)
    assert aside.retry_at == (clock.now + MIN_RETRY_S if passes else None)


def test_a_reason_that_no_database_takes_is_stored_all_the_same(
    open_reader: Open, store: Store, inbox: Inbox
) -> None:
    """A lone surrogate in a label's name stopped the reader at this event for good."""
    inbox.keep(TOOL, event(InvalidRequest("no label \ud800 or \0")))
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1"]
    assert [each.reason for each in reader.status().newest_set_aside] == ["no label ? or ?"]


def test_reading_gives_way_to_what_arrives(
    open_reader: Open, store: Store, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def never_quiet() -> float:
        asked.set()
        return 0.0

    monkeypatch.setattr(inbox_reader, "MAX_YIELD_S", 60.0)
    monkeypatch.setattr(inbox, "quiet_for", never_quiet)
    inbox.keep(TOOL, event(submitted(box())))
    reader = open_reader()
    assert asked.wait(10)
    asked.clear()
    assert asked.wait(10)
    assert reader.status().waiting == 1
    monkeypatch.setattr(inbox, "quiet_for", lambda: 1.0)
    read_all(reader, inbox, store)
    assert tasks_of(store) == ["1"]


def test_reading_goes_on_even_if_it_is_never_quiet(
    open_reader: Open, store: Store, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_reader, "MAX_YIELD_S", 0.1)
    monkeypatch.setattr(inbox, "quiet_for", lambda: 0.0)
    inbox.keep(TOOL, event(submitted(box())))
    read_all(open_reader(), inbox, store)
    assert tasks_of(store) == ["1"]


def test_a_reader_that_never_started_can_be_closed(store: Store, inbox: Inbox, tmp_path: Path) -> None:
    kept = ImageArchive(tmp_path / "images", 2**20, store.is_labelled)
    InboxReader(inbox, store, Ingester(store, ImageSource(Fetcher()), kept), {}).close()
    store.close()
    inbox.close()


# Takes in what the inbox keeps until it is killed; prints how many events were read.
READER = """
import sys, time
from pathlib import Path
from support.accepting import TOOL, FakeTool
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest.inbox import Inbox
from clickmask.ingest.reader import InboxReader
from clickmask.ingest.apply import Ingester
from clickmask.images.archive import ImageArchive
from clickmask.store import Store
home = Path(sys.argv[1])
inbox, store = Inbox(home / "inbox.sqlite"), Store(home / "store.sqlite")
kept = ImageArchive(home / "images", 2**20, store.is_labelled)
InboxReader(inbox, store, Ingester(store, ImageSource(Fetcher()), kept), {TOOL: FakeTool()}).start()
print("reading", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_kills_while_events_are_read_change_nothing(
    open_reader: Open, store: Store, inbox: Inbox, tmp_path: Path
) -> None:
    points = random.Random(3)
    tasks = [str(number) for number in range(25)]
    for number in range(150):
        task = points.choice(tasks)
        regions = [box(points.randrange(40), region=str(each)) for each in range(points.randrange(4))]
        change = submitted(*regions, annotation=f"a{task}", task=task, at=float(number))
        inbox.keep(TOOL, event(AnnotationDeleted(TOOL, f"a{task}") if number % 37 == 0 else change))
    killed = tmp_path / "killed"
    killed.mkdir()
    with (
        closing(sqlite3.connect(tmp_path / "inbox.sqlite")) as mine,
        closing(sqlite3.connect(killed / "inbox.sqlite")) as copy,
    ):
        mine.backup(copy)
    for _ in range(12):
        reading = subprocess.Popen(
            [sys.executable, "-c", READER, str(killed)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert reading.stdout
        reading.stdout.readline()
        time.sleep(points.uniform(0, 0.6))
        reading.kill()
        reading.wait()
        reading.stdout.close()
    read_all(open_reader(), inbox, store)
    with closing(Store(killed / "store.sqlite")) as other, closing(Inbox(killed / "inbox.sqlite")) as copied:
        assert 0 < other.read_to(copied.id)
        kept = ImageArchive(killed / "images", 2**20, other.is_labelled)
        rest = InboxReader(copied, other, Ingester(other, ImageSource(Fetcher()), kept), {TOOL: FakeTool()})
        rest.start()
        until(lambda: rest.status().waiting == 0, 60)
        rest.close()
        assert other.labels(TOOL, "1") == store.labels(TOOL, "1") != []
        assert rest.status().set_aside == 0
