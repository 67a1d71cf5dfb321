"""One thread that reads the inbox: each event becomes labels, in its order, whatever happens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clickmask.errors import Busy, ClickmaskError, ImageUnavailable, StoreUnavailable, ToolUnavailable
from clickmask.images.archive import KeptStatus
from clickmask.ingest.apply import Accepting, Intake
from clickmask.ingest.inbox import Event, Inbox
from clickmask.labels.submissions import Submission
from clickmask.store import SetAside, Store

log = logging.getLogger(__name__)

MAY_PASS = (Busy, ImageUnavailable, ToolUnavailable)  # an event that fails so is tried again later
FIRST_RETRY = 10.0  # seconds; each further one after twice as long, up to LONGEST_RETRY
LONGEST_RETRY = 3600.0
MOST_ATTEMPTS = 32  # a day
QUIET = 0.05  # seconds without an arrival, after which an event is read
LONGEST_WAY = 1.0  # seconds that the reader gives way at most
MOST_LOST = 60.0  # seconds on images of one event that cannot be read, before it waits for its next try
_MOST_READ = 50  # events at once
_IDLE = 5.0  # seconds between looks for what is due


@dataclass(frozen=True)
class IntakeStatus:
    """`waiting` events were not read yet; those set aside could not be taken in, newest first."""

    waiting: int
    set_aside: int
    newest_set_aside: list[SetAside]
    kept_images: KeptStatus


class InboxReader:
    """Takes in what the inbox keeps, and goes on where it stopped. Close it before inbox and store.

    An event that cannot be taken in is set aside, and the others go on: one that fails for what may
    pass is tried again, later and later, for a day; any other once more after a restart, when
    the settings may be mended. While the store is unavailable everything waits.
    """

    def __init__(
        self,
        inbox: Inbox,
        store: Store,
        intake: Intake,
        tools: Mapping[str, Accepting],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inbox = inbox
        self._store = store
        self._intake = intake
        self._tools = tools
        self._clock = clock
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inbox-reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the event under way."""
        self._closing = True
        self._inbox.arrived.set()
        if self._thread.ident is not None:
            self._thread.join()

    def status(self) -> IntakeStatus:
        """Raises StoreUnavailable."""
        waiting = self._inbox.count(after=self._store.read_to(self._inbox.id))
        aside = self._store.count_set_aside(self._inbox.id)
        newest = self._store.set_aside(self._inbox.id)
        return IntakeStatus(waiting, aside, newest, self._intake.kept_status())

    def _run(self) -> None:
        anew = True
        while not self._closing:
            self._inbox.arrived.clear()
            try:
                if anew:
                    self._store.retry_set_aside(self._inbox.id, self._clock())
                    anew = False
                if not self._read_some() and not self._retry_one():
                    self._inbox.arrived.wait(_IDLE)
            except StoreUnavailable as error:
                log.error("events wait in the inbox: %s", error)
                self._inbox.arrived.wait(_IDLE)

    def _read_some(self) -> bool:
        """Whether there were new events."""
        events = self._inbox.events(after=self._store.read_to(self._inbox.id), limit=_MOST_READ)
        for event in events:
            self._give_way()
            if self._closing:
                break
            self._store.mark_read(self._inbox.id, event.id, self._take(event, 0))
            self._inbox.forget_to(event.id)
            if len(events) == _MOST_READ:
                self._retry_one()  # a flood of new events must not starve the old ones
        return bool(events)

    def _give_way(self) -> None:
        """Whoever waits for an answer goes first: reading takes the interpreter from all other threads."""
        until = time.monotonic() + LONGEST_WAY
        while (
            (rest := QUIET - self._inbox.quiet_for()) > 0 and time.monotonic() < until and not self._closing
        ):
            time.sleep(rest)

    def _retry_one(self) -> bool:
        """Whether an event was due."""
        due = self._store.due(self._inbox.id, self._clock())
        if due is None:
            return False
        event = self._inbox.event(due.event)
        again = self._take(event, due.attempts) if event else None
        if again:
            self._store.put_aside(self._inbox.id, again)
        else:
            self._store.take_back(self._inbox.id, due.event)
        return True

    def _take(self, event: Event, attempts: int) -> SetAside | None:
        """Take the event in; what is to be said of it if that cannot be. Raises StoreUnavailable."""
        tool = self._tools.get(event.source)
        if tool is None:
            return None  # of a tool that has no labels to give
        taken, failed = self._take_changes(event, tool, again=attempts > 0)
        if not failed:
            return None
        for error in failed:
            if not isinstance(error, ClickmaskError):
                log.error("a part of event %d of %s failed", event.id, event.source, exc_info=error)
        worst = next((error for error in failed if isinstance(error, MAY_PASS)), failed[0])
        retry_at: float | None = None
        if isinstance(worst, MAY_PASS) and attempts + 1 < MOST_ATTEMPTS:
            retry_at = self._clock() + min(FIRST_RETRY * 2**attempts, LONGEST_RETRY)
        reason = _sentence(worst, taken, len(failed))
        log.warning("event %d of %s is set aside: %s", event.id, event.source, reason)
        return SetAside(event.id, event.source, reason, self._clock(), attempts + 1, retry_at)

    def _take_changes(self, event: Event, tool: Accepting, again: bool) -> tuple[int, list[Exception]]:
        """How many submissions were taken in, and what became of the rest. Raises StoreUnavailable.

        A submission that fails, for whatever reason, keeps none of the others out; unless it took long,
        or what it waits for would fail them too.
        """
        taken, lost, failed = 0, 0.0, list[Exception]()
        try:
            for change in tool.changes(event.body, again):
                began = time.monotonic()
                try:
                    self._intake.take(change, tool)
                    taken += isinstance(change, Submission)
                except (Busy, StoreUnavailable, ToolUnavailable):
                    raise
                except Exception as error:  # noqa: BLE001  # whatever it is, those beside it must be read
                    failed.append(error)
                    lost += time.monotonic() - began
                    if lost > MOST_LOST:
                        break
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  # whatever an event holds, those behind it must be read
            failed.append(error)
        return taken, failed


def _sentence(error: Exception, taken: int, failed: int) -> str:
    if isinstance(error, ClickmaskError):
        reason = str(error)
    else:  # its own words may hold paths
        reason = f"something went wrong inside clickmask ({type(error).__name__}); its log has the details"
    if not taken:
        return reason
    return f"{reason} (of the event's submissions {taken} were taken in, {failed} not)"
