"""Places for requests that compute, and the line before them.

All who are let in share the processor, so each one more makes the others slower. Few compute at a time,
others wait in line, and one who would wait too long, as requests took so far, is turned away at once.
Those who wait for something else meanwhile, such as another server, leave their place.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clickmask.caches import ELSEWHERE
from clickmask.inference.sessions import usable_cores
from clickmask_adapters.server.failures import Refusal

MIN_PLACES, PLACES_PER_CORE = 4, 2
MAX_ELSEWHERE = 144  # requests that wait for something else, each with a thread
MAX_WAITING = 128
MAX_WAIT_S = 4.0  # for the answer, as it is expected
PATIENCE_S = 3.0  # for a place, if the line moves more slowly than was expected
FIRST_INTERVAL_S = 0.05  # between two answers while all places are taken, until it is measured
MAX_HELD_S = 1.0  # that counts: a segmenter that is loaded for a minute says nothing of the next request
SMOOTHING = 0.2  # weight of the newest request


class Places:
    """The places and the line. Everything happens in one event loop, except in `Place.elsewhere`."""

    def __init__(self, most: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` compute at a time; by default two for each core, because some of them wait for the disk."""
        self._most = most or max(MIN_PLACES, PLACES_PER_CORE * usable_cores())
        self._clock = clock
        self._at_work = self._elsewhere = 0
        self._line = deque[asyncio.Future[None]]()
        self._interval = FIRST_INTERVAL_S  # an average

    @property
    def threads(self) -> int:
        """The most that the requests with a place, or elsewhere, may need."""
        return self._most + MAX_ELSEWHERE

    def expected_wait(self) -> float:
        """Seconds until a new request would be answered; 0 if it need not wait in line."""
        return 0.0 if self._is_free() else (len(self._line) + self._most) * self._interval

    def require_short_line(self) -> None:
        """Raise Refusal if a new request would wait too long."""
        if self.expected_wait() > MAX_WAIT_S or len(self._line) >= MAX_WAITING:
            raise self._overloaded()

    async def take(self) -> "Place":
        """A place, at once or when it is this request's turn. Raises Refusal."""
        if not self._is_free():
            self.require_short_line()
            turn = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await turn
            except (asyncio.CancelledError, TimeoutError) as error:
                if turn.cancelled():
                    with suppress(ValueError):
                        self._line.remove(turn)
                else:
                    self._at_work -= 1
                    self._move()
                if isinstance(error, TimeoutError):
                    raise self._overloaded() from None
                raise
        else:
            self._at_work += 1
        return Place(self, self._clock())

    def leave(self, place: "Place") -> None:
        """The request waits for something else, and others may compute."""
        if place.state == "at work":
            place.state = "elsewhere"
            place.held += self._clock() - place.since
            self._at_work -= 1
            self._elsewhere += 1
            self._move()

    def come_back(self, place: "Place") -> None:
        """The request computes again, beside those who have taken its place."""
        if place.state == "elsewhere":
            place.state, place.since = "at work", self._clock()
            self._at_work += 1
            self._elsewhere -= 1

    def give_back(self, place: "Place") -> None:
        """The request is answered, as far as it computes. Harmless if repeated."""
        if place.state == "at work":
            place.held += self._clock() - place.since
            # Fewer than there are cores take as long as that many.
            interval = min(place.held, MAX_HELD_S) / max(self._at_work, self._most / PLACES_PER_CORE)
            self._interval += SMOOTHING * (interval - self._interval)
        self._at_work -= place.state == "at work"
        self._elsewhere -= place.state == "elsewhere"
        place.state = "gone"
        self._move()

    def _overloaded(self) -> Refusal:
        return Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{self._at_work + len(self._line)} requests are at work already; try again in a moment",
            {"Retry-After": str(max(1, math.ceil(self.expected_wait())))},
            kind="overloaded",
        )

    def _is_free(self) -> bool:
        return self._at_work < self._most and self._elsewhere < MAX_ELSEWHERE and not self._line

    def _move(self) -> None:
        """Let those in line whose turn it is come in."""
        while self._line and self._at_work < self._most and self._elsewhere < MAX_ELSEWHERE:
            turn = self._line.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._at_work += 1


class Place:
    """The place of one request."""

    def __init__(self, places: Places, since: float) -> None:
        self.state, self.since, self.held = "at work", since, 0.0  # held: seconds, before `since`
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._depth = 0

    @contextmanager
    def elsewhere(self) -> Generator[None]:
        """Leave the place for a while, from the request's own thread or from the event loop."""
        self._depth += 1
        if self._depth == 1:
            self._tell(self._places.leave)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._tell(self._places.come_back)

    def _tell(self, change: "Callable[[Place], None]") -> None:
        with suppress(RuntimeError):  # the event loop has ended before this thread
            self._loop.call_soon_threadsafe(change, self)


class ShortLine:
    """Turn a request away before its body is read, if it would wait too long for a place."""

    def __init__(self, app: ASGIApp, places: Places, computes: Callable[[Scope], bool]) -> None:
        self._app, self._places, self._computes = app, places, computes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._computes(scope):
            self._places.require_short_line()
        await self._app(scope, receive, send)


class InPlace:
    """Let a request that is all there take a place, which it has until its answer begins."""

    def __init__(self, app: ASGIApp, places: Places, computes: Callable[[Scope], bool]) -> None:
        self._app, self._places, self._computes = app, places, computes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._computes(scope):
            await self._app(scope, receive, send)
            return
        place = await self._places.take()

        async def answer(message: Message) -> None:
            self._places.give_back(place)
            await send(message)

        ELSEWHERE.set(place.elsewhere)
        try:
            await self._app(scope, receive, answer)
        finally:
            self._places.give_back(place)
