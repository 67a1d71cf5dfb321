from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from clickmask.caches import waiting_elsewhere
from clickmask_adapters.server import places as places_module
from clickmask_adapters.server.failures import Refusal
from clickmask_adapters.server.places import InPlace, Place, Places


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(what: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(what, 60))


async def line_of(places: Places, number: int) -> list[asyncio.Task[Place]]:
    tasks = [asyncio.create_task(places.take()) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


def test_those_in_line_come_in_in_their_order() -> None:
    async def ask() -> None:
        places = Places(1)
        first = await places.take()
        line = await line_of(places, 3)
        assert [each.done() for each in line] == [False] * 3
        places.give_back(first)
        second = await line[0]
        assert [each.done() for each in line] == [True, False, False]
        places.give_back(second)
        places.give_back(second)  # harmless
        await line[1]
        assert [each.done() for each in line] == [True, True, False]
        line[2].cancel()

    run(ask())


def test_whoever_would_wait_too_long_is_turned_away_at_once_and_told_how_long() -> None:
    async def ask() -> None:
        clock = Clock()
        places = Places(1, clock)
        at_work = await places.take()
        for _ in range(20):  # each request takes half a second
            line = await line_of(places, 1)
            clock.now += 0.5
            places.give_back(at_work)
            at_work = await line[0]
        line = await line_of(places, 8)  # 4.5 s for the last of them, with the one at work
        with pytest.raises(Refusal, match="9 requests are at work already") as refused:
            await places.take()
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "5"})
        for each in line:
            each.cancel()

    run(ask())


def test_the_line_is_longer_if_it_moves_faster() -> None:
    async def admitted(seconds: float) -> int:
        clock = Clock()
        places = Places(1, clock)
        at_work = await places.take()
        for _ in range(40):
            line = await line_of(places, 1)
            clock.now += seconds
            places.give_back(at_work)
            at_work = await line[0]
        line = await line_of(places, 200)
        refused = [each for each in line if each.done() and each.exception()]
        for each in line:
            each.cancel()
        return 200 - len(refused)

    assert asyncio.run(admitted(0.1)) == pytest.approx(40, abs=1)
    assert asyncio.run(admitted(0.05)) == pytest.approx(80, abs=1)


def test_one_request_that_takes_a_minute_turns_nobody_away() -> None:
    async def ask() -> None:
        clock = Clock()
        places = Places(4, clock)
        long = await places.take()
        clock.now += 60  # a segmenter was loaded
        places.give_back(long)
        line = await line_of(places, 8)
        assert not [each for each in line if each.done() and each.exception()]
        for each in line:
            each.cancel()

    run(ask())


def test_a_line_that_stands_still_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "PATIENCE_S", 0.01)

    async def ask() -> None:
        places = Places(1)
        place = await places.take()
        with pytest.raises(Refusal):
            await places.take()
        places.give_back(place)
        assert (await places.take()).state == "at work"

    run(ask())


def test_one_who_goes_away_while_it_waits_leaves_no_gap() -> None:
    async def ask() -> None:
        places = Places(1)
        first = await places.take()
        gone, late, stays = await line_of(places, 3)
        gone.cancel()
        places.give_back(first)  # to `late`, which is cancelled before it knows
        late.cancel()
        assert (await stays).state == "at work"
        assert places.expected_wait() > 0

    run(ask())


async def ask(app: Any) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await app({"type": "http"}, receive, send)
    return sent


def test_one_who_waits_for_something_else_leaves_the_place_to_others() -> None:
    """As a click does that waits for its image, in its own thread."""
    come, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        with waiting_elsewhere(), waiting_elsewhere():
            come.set()
            assert go_on.wait(30)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if not come.is_set():
            await asyncio.to_thread(wait)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def both() -> None:
        app = InPlace(serve, Places(1), lambda scope: True)
        waiting = asyncio.create_task(ask(app))
        assert await asyncio.to_thread(come.wait, 30)
        assert (await ask(app))[0]["status"] == 200
        go_on.set()
        assert (await waiting)[0]["status"] == 200
        assert (await ask(app))[0]["status"] == 200

    run(both())


def test_a_place_is_free_when_the_answer_begins() -> None:
    """However slowly its client reads it."""
    read = asyncio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await read.wait()

    async def both() -> None:
        app = InPlace(serve, Places(1), lambda scope: True)
        first, second = asyncio.create_task(ask(app)), asyncio.create_task(ask(app))
        await asyncio.sleep(0.01)
        read.set()
        assert [await first, await second]

    run(both())
