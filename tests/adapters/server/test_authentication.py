from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from clickmask_adapters.server import authentication
from clickmask_adapters.server.addresses import client_network
from clickmask_adapters.server.authentication import WrongSecrets
from clickmask_adapters.server.failures import Refusal


class Time:
    """Delays pass when `pass_by` says so."""

    def __init__(self) -> None:
        self.now, self.delays, self.passed = 1000.0, list[float](), asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        await self.passed.wait()


def run(what: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(what, 60))


def test_each_wrong_secret_is_answered_later_than_the_one_before() -> None:
    async def guess() -> None:
        time = Time()
        time.passed.set()
        wrong = WrongSecrets(time.clock, time.sleep)
        for _ in range(12):
            await wrong.slow_down("198.51.100.7")
        assert time.delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
        await wrong.slow_down("198.51.100.8")  # another one
        time.now += authentication.FORGOTTEN_AFTER_S + 1
        await wrong.slow_down("198.51.100.7")
        assert len(time.delays) == 7

    run(guess())


def test_few_answers_are_delayed_at_one_time() -> None:
    async def guess() -> None:
        time = Time()
        wrong = WrongSecrets(time.clock, time.sleep)

        async def guesses(client: str, number: int) -> list[asyncio.Task[None]]:
            for _ in range(authentication.FREE_TRIES):
                await wrong.slow_down(client)
            tasks = [asyncio.create_task(wrong.slow_down(client)) for _ in range(number)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return tasks

        tasks = await guesses("198.51.100.7", 100)
        refused = [each.exception() for each in tasks if each.done()]
        assert len(refused) == 96
        assert {type(each) for each in refused} == {Refusal}
        first = refused[0]
        assert isinstance(first, Refusal)
        assert (first.status, first.headers) == (429, {"Retry-After": "4"})
        for number in range(100):
            tasks += await guesses(f"203.0.113.{number}", 1)
        assert len(time.delays) == authentication.MAX_DELAYED
        time.passed.set()
        await asyncio.wait(tasks)
        assert not wrong._delayed

    run(guess())


def test_only_so_many_clients_are_remembered() -> None:
    async def guess() -> None:
        wrong = WrongSecrets()
        for number in range(2 * authentication.MAX_CLIENTS):
            await wrong.slow_down(str(number))
        assert len(wrong._tries) == authentication.MAX_CLIENTS

    run(guess())


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(address: str, client: str) -> None:
    assert client_network(address) == client
