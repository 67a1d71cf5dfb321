"""The thread that reads the inbox: it turns events into labels, in order, whatever happens."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from clickmask.errors import Busy, ClickmaskError, ImageUnavailable, StoreUnavailable, ToolUnavailable
from clickmask.images.archive import ArchiveStatus
from clickmask.ingest.apply import Ingester, LabelSource
from clickmask.ingest.inbox import Event, Inbox
from clickmask.labels.submissions import submission_of
from clickmask.store import FailedEvent, Store

log = logging.getLogger(__name__)

# Errors after which an event is tried again: short memory and a full disk pass too.
RETRYABLE = (Busy, ImageUnavailable, StoreUnavailable, ToolUnavailable, MemoryError, OSError)
MAX_HOLD_UPS = 6  # tries, in half a minute, of an event that cannot be stored, before the others go on
MIN_RETRY_S = 10.0  # before the second attempt; each further wait doubles, up to MAX_RETRY_S
MAX_RETRY_S = 3600.0
MAX_ATTEMPTS = 32  # about a day
QUIET_S = 0.05  # time without arrivals before an event is read
MAX_YIELD_S = 1.0  # the longest wait for such a quiet time
MAX_IMAGE_WAIT_S = 60.0  # spent on one event's unreadable images before it waits for its next attempt
MIN_PAUSE_S = 0.5  # after the reader itself failed; each further pause doubles, up to MAX_PAUSE_S
MAX_PAUSE_S = 60.0
_MAX_BATCH = 50
_IDLE_S = 5.0  # between checks for due events


@dataclass(frozen=True)
class IngestStatus:
    waiting: int  # unread events
    set_aside: int  # events that could not be stored
    newest_set_aside: list[FailedEvent]
    kept_images: ArchiveStatus


class InboxReader:
    """Stores labels from the inbox and resumes where it stopped. Close it before inbox and store.

    An event that fails is set aside, and the others go on. If the reason may pass, it is retried for a day;
    otherwise once after a restart, when settings may be corrected. If the reader itself fails, such as
    without the store, everything waits: `trouble` says why, `failures` counts, and it tries again ever more
    rarely. If only one event cannot be stored, such as for its image's folder, the others go on after
    MAX_HOLD_UPS tries, and it is retried for ever."""

    def __init__(
        self,
        inbox: Inbox,
        store: Store,
        ingester: Ingester,
        tools: Mapping[str, LabelSource],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inbox = inbox
        self._store = store
        self._ingester = ingester
        self._tools = tools
        self._clock = clock
        self.trouble = ""
        """Why events wait, as a sentence; empty while they are read."""
        self.failures = 0
        """How often reading failed since the start."""
        self._held_up = 0, 0  # by the event, so many times
        self._newest_before = inbox.newest
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inbox-reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the current event."""
        self._closing.set()
        self._inbox.arrived.set()
        if self._thread.ident is not None:
            self._thread.join()

    def status(self) -> IngestStatus:
        """Counts of waiting and failed events, and the archive's status. Raises StoreUnavailable."""
        store, inbox = self._store, self._inbox.id
        waiting, archive = self._inbox.count(after=store.read_to(inbox)), self._ingester.archive.status()
        return IngestStatus(waiting, store.count_set_aside(inbox), store.set_aside(inbox), archive)

    def refuses(self) -> str:
        """Why a new event should be refused, since it would not be read; empty if it would."""
        if self._thread.ident is not None and not self._thread.is_alive() and not self._closing.is_set():
            return "events are no longer read: restart clickmask"
        return self._inbox.unreadable

    def _run(self) -> None:
        pause, restarted = MIN_PAUSE_S, True
        while not self._closing.is_set():
            try:
                if restarted:
                    if self._store.read_to(self._inbox.id) > self._newest_before:
                        # Its last events are lost, or it was restored: new ones get ids that count as read.
                        log.error("the inbox lost its newest events: all that it has are read again")
                        self._store.mark_read(self._inbox.id, 0)
                    self._store.retry_set_aside(self._inbox.id, self._clock())
                    restarted = False
                self._read_some()
                pause, self.trouble = MIN_PAUSE_S, ""
            except BaseException as error:  # noqa: BLE001 - whatever it is: events wait, and webhooks are answered "kept"
                with suppress(BaseException):  # memory may be too short to say so
                    self._note(error, pause)
                self._closing.wait(pause)
                pause = min(2 * pause, MAX_PAUSE_S)

    def _note(self, error: BaseException, pause: float) -> None:
        self.failures += 1
        reason, unexpected = str(error), not isinstance(error, ClickmaskError)
        if unexpected:  # its own text may contain paths
            reason = (
                f"something went wrong inside clickmask ({type(error).__name__}); its log has the details"
            )
        self.trouble = f"events wait in the inbox: {reason}"
        log.error("%s; the next try is in %g s", self.trouble, pause, exc_info=error if unexpected else None)

    def _read_some(self) -> None:
        """Read what has arrived, or retry an event that is due, or wait for either."""
        self._inbox.arrived.clear()
        events = self._inbox.events(after=self._store.read_to(self._inbox.id), limit=_MAX_BATCH)
        for event in events:
            # Wait for a quiet moment: parsing holds the GIL and would delay answers.
            until = time.monotonic() + MAX_YIELD_S
            while (rest := QUIET_S - self._inbox.quiet_for()) > 0 and time.monotonic() < until:
                if self._closing.wait(rest):
                    return
            if self._closing.is_set():
                return
            self._store.mark_read(self._inbox.id, event.id, self._apply(event, 0))
            self._inbox.forget_to(event.id)
            if len(events) == _MAX_BATCH:
                self._retry_one()  # a flood of new events must not starve old ones
        if not events and not self._retry_one():
            self.trouble = ""
            self._inbox.arrived.wait(_IDLE_S)

    def _retry_one(self) -> bool:
        """Retry the failed event that is due. Returns False if none is."""
        due = self._store.due(self._inbox.id, self._clock())
        if due is None:
            return False
        event = self._inbox.event(due.event)
        if event and (failed := self._apply(event, due.attempts)):
            self._store.defer(self._inbox.id, failed)
        else:
            self._store.resolve(self._inbox.id, due.event)
        return True

    def _apply(self, event: Event, attempts: int) -> FailedEvent | None:
        """Store the event's labels. Returns its failure, if any. Raises StoreUnavailable for the first tries
        of a new event: mostly the whole store is away."""
        tool = self._tools.get(event.source)
        if tool is None:
            return None  # the tool has no labels to give
        taken, lost, cut, failed = 0, 0.0, False, list[BaseException]()
        # A failed submission does not keep the others out, unless it took long or would fail them too.
        try:
            for change in tool.changes(event.body, attempts > 0):
                began = time.monotonic()
                try:
                    self._ingester.apply(change, tool)
                    taken += submission_of(change) is not None
                except (Busy, StoreUnavailable, ToolUnavailable):
                    raise
                except BaseException as error:  # noqa: BLE001  # submissions beside it must be read in any case
                    failed.append(error)
                    lost += time.monotonic() - began
                    if cut := lost > MAX_IMAGE_WAIT_S:
                        break
        except StoreUnavailable as error:
            last, times = self._held_up
            self._held_up = event.id, times + 1 if last == event.id else 1
            if not attempts and self._held_up[1] < MAX_HOLD_UPS:
                raise
            failed.append(error)
        except BaseException as error:  # noqa: BLE001  # events behind it must be read in any case
            failed.append(error)
        if not failed:
            return None
        for error in failed:
            if not isinstance(error, ClickmaskError):
                log.error("a part of event %d of %s failed", event.id, event.source, exc_info=error)
        worst = next((error for error in failed if isinstance(error, RETRYABLE)), failed[0])
        retry_at: float | None = None
        patient = attempts + 1 < MAX_ATTEMPTS or isinstance(worst, StoreUnavailable)
        if (cut or isinstance(worst, RETRYABLE)) and patient:
            retry_at = self._clock() + min(MIN_RETRY_S * 2 ** min(attempts, MAX_ATTEMPTS), MAX_RETRY_S)
        reason = str(worst)
        if not isinstance(worst, ClickmaskError):  # its own text may contain paths
            kind = type(worst).__name__
            reason = f"something went wrong inside clickmask ({kind}); its log has the details"
        if taken:
            reason += f" (of the event's submissions {taken} were taken in, {len(failed)} not)"
        # A database refuses half a character and, if it is PostgreSQL, a NUL: the event would never be read.
        reason = reason.encode(errors="replace").decode().replace("\0", "?")
        log.warning("event %d of %s is set aside: %s", event.id, event.source, reason)
        return FailedEvent(event.id, event.source, reason, self._clock(), attempts + 1, retry_at)
