"""Places of those who wait for hosts: with events instead of seconds."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from clickmask.errors import Busy, ImageUnavailable
from clickmask.images import connections, places
from clickmask.images.connections import Resolver
from clickmask.images.fetch import Fetched, Fetcher, NotModified, Require, Validator
from clickmask.images.places import FetchPlaces
from clickmask.images.source import ImageSource
from clickmask.types import ImageRef
from support.elsewhere import counted
from support.pictures import png_base64
from support.waiting import until


class SlowHosts(Fetcher):
    """Hosts that send nothing until `release`, but for `fast`."""

    def __init__(self) -> None:
        super().__init__(trusted_origins=["https://tool"])
        self.release = threading.Event()
        self.asked: list[str] = []

    def fetch(
        self, ref: ImageRef, known: Validator | None = None, require: Require = lambda count: None
    ) -> Fetched | NotModified:
        if ref.uri.startswith("https://fast/"):
            return Fetched(base64.b64decode(png_base64()), 300, None)
        self.asked.append(ref.uri)
        assert self.release.wait(30)
        raise ImageUnavailable("the host did not answer in time")


@contextmanager
def waiting_for(source: ImageSource, fetcher: SlowHosts, uris: list[str]) -> Iterator[None]:
    with ThreadPoolExecutor(len(uris)) as pool:
        asked = [pool.submit(source.identify, ImageRef(uri)) for uri in uris]
        until(lambda: sum(host.threads for host in source._places._hosts.values()) == len(uris))  # pyright: ignore
        yield
        fetcher.release.set()
        for each in asked:
            with pytest.raises((ImageUnavailable, Busy)):
                each.result(30)


def test_a_slow_host_takes_its_own_places_alone() -> None:
    fetcher = SlowHosts()
    source = ImageSource(fetcher)
    known = ImageRef("https://fast/known")
    identity = source.identify(known)
    uris = [f"https://slow/{number}" for number in range(places.MAX_THREADS_PER_HOST)]
    with waiting_for(source, fetcher, uris):
        until(lambda: len(fetcher.asked) == places.MAX_FETCHES_PER_HOST)
        with pytest.raises(Busy, match="slow"):
            source.identify(ImageRef("https://slow/another"))
        assert source.identify(known) == identity == source.identify(ImageRef("https://fast/another"))
    assert source._places._hosts == {} and source._places._strangers == 0  # pyright: ignore


def test_many_slow_hosts_leave_the_labeling_tool_its_places() -> None:
    fetcher = SlowHosts()
    source = ImageSource(fetcher)
    strangers = [f"https://slow{number}/" for number in range(places.MAX_THREADS)]
    everybody = [*strangers, "https://tool/data/upload/1.png"]
    with waiting_for(source, fetcher, everybody), pytest.raises(Busy):
        source.identify(ImageRef("https://fast/another"))


def test_a_thread_waits_elsewhere_while_it_fetches_and_no_longer() -> None:
    source = ImageSource(SlowHosts())
    with counted() as waiting:
        source.identify(ImageRef("https://fast/a"))
        assert (waiting.now, waiting.most) == (0, 1)
        source.identify(ImageRef("https://fast/a"))  # known: no wait
        assert (waiting.now, waiting.most) == (0, 1)


def test_a_known_image_is_still_known_if_nobody_may_ask_its_host_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    source = ImageSource(SlowHosts(), clock=lambda: now[0])
    known = source.identify(ImageRef("https://fast/a"))
    now[0] = 10_000.0  # its answer is trusted no more
    monkeypatch.setattr(places, "MAX_THREADS_PER_HOST", 0)
    assert source.identify(ImageRef("https://fast/a")) == known
    with pytest.raises(Busy):
        source.identify(ImageRef("https://fast/b"))


def test_ports_of_one_host_are_hosts_of_their_own() -> None:
    fetcher = Fetcher(trusted_origins=["http://tool:8080"])
    assert fetcher.host_of(ImageRef("http://tool:8080/a.png")) == ("tool:8080", True)
    assert fetcher.host_of(ImageRef("http://tool/a.png")) == ("tool:80", False)


def test_whoever_gets_no_place_to_fetch_in_time_is_told_to_come_back() -> None:
    slow = FetchPlaces(patience=0.0)
    with slow.at("host", trusted=False), ThreadPoolExecutor(1):
        fetches = slow._hosts["host"].fetches  # pyright: ignore
        for _ in range(places.MAX_FETCHES_PER_HOST):
            assert fetches.acquire(blocking=False)
        with slow.at("host", trusted=False) as fetching, pytest.raises(Busy) as refused, fetching:
            pytest.fail("there was no place")
    assert refused.value.retry_after > 0


def test_names_that_hang_are_given_up_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(connections, "MAX_LOOKUPS", 2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(30) and [])
    resolver = Resolver()
    for _ in range(2):
        with pytest.raises(ImageUnavailable, match="in time"):
            resolver.addresses_of("hangs.test", 443, 0.0)
    with pytest.raises(Busy):
        resolver.addresses_of("hangs.test", 443, 0.0)
    release.set()
    until(lambda: resolver._places._value == 2)  # pyright: ignore
