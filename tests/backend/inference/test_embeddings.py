from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from clickmask.errors import Busy
from clickmask.inference import embeddings
from clickmask.inference.embeddings import BATCH, EmbeddingCache, EmbeddingKey
from support.waiting import until

KIB = 1024


def key(name: str, segmenter: str = "fake") -> EmbeddingKey:
    return EmbeddingKey(segmenter, name)


def embedding(kib: int = 1) -> np.ndarray:
    return np.zeros(kib * KIB, np.uint8)


@pytest.fixture
def cache() -> Iterator[EmbeddingCache]:
    cache = EmbeddingCache(capacity=10 * KIB, queue_length=3)
    yield cache
    cache.close()


class Blocker:
    """An encode that holds the worker until it is released."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self.started, self.released = threading.Event(), threading.Event()
        cache.prepare(key("blocker"), self.encode)
        assert self.started.wait(5)

    def encode(self) -> np.ndarray:
        self.started.set()
        assert self.released.wait(5)
        return embedding()


def test_second_click_on_an_image_reuses_its_embedding(cache: EmbeddingCache) -> None:
    assert cache.status().hit_rate is None
    first, was_there = cache.get(key("a"), embedding)
    assert not was_there
    again, was_there = cache.get(key("a"), lambda: pytest.fail("encoded twice"))
    assert was_there
    assert again is first
    assert (cache.status().hits, cache.status().misses) == (1, 1)


def test_segmenters_do_not_share_embeddings(cache: EmbeddingCache) -> None:
    one, _ = cache.get(key("a", "one"), embedding)
    other, was_there = cache.get(key("a", "other"), embedding)
    assert not was_there
    assert other is not one


def test_concurrent_misses_compute_once(cache: EmbeddingCache) -> None:
    blocker, encodes = Blocker(cache), []

    def encode() -> np.ndarray:
        encodes.append(1)
        return embedding()

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(cache.get, key("a"), encode) for _ in range(8)]
        until(lambda: cache.status().misses >= 8)
        blocker.released.set()
        results = {id(answer.result(5)[0]) for answer in answers}
    assert len(encodes) == 1
    assert len(results) == 1


def test_least_recently_used_embeddings_leave_first(cache: EmbeddingCache) -> None:
    for name in "abc":
        cache.get(key(name), lambda: embedding(3))
    cache.get(key("a"), embedding)
    cache.get(key("d"), lambda: embedding(3))
    assert cache.status().bytes == 9 * KIB
    assert cache.get(key("a"), embedding)[1]
    assert not cache.get(key("b"), lambda: embedding(3))[1]


def test_an_embedding_over_the_capacity_is_given_but_not_kept(cache: EmbeddingCache) -> None:
    cache.get(key("small"), embedding)
    assert cache.get(key("huge"), lambda: embedding(11))[0].nbytes == 11 * KIB
    assert cache.status().entries == 1
    assert cache.get(key("small"), embedding)[1]


def test_clicks_come_before_preparations(cache: EmbeddingCache) -> None:
    blocker, order = Blocker(cache), []

    def encode(name: str) -> np.ndarray:
        order.append(name)
        return embedding()

    assert cache.prepare(key("prepared first"), lambda: encode("prepared first"))
    assert cache.prepare(key("prepared, then clicked"), lambda: encode("prepared, then clicked"))
    with ThreadPoolExecutor(2) as pool:
        clicks = [pool.submit(cache.get, key("prepared, then clicked"), lambda: pytest.fail("encoded twice"))]
        until(lambda: cache.status().misses >= 1)
        clicks.append(pool.submit(cache.get, key("clicked"), lambda: encode("clicked")))
        until(lambda: cache.status().misses >= 2)
        blocker.released.set()
        for click in clicks:
            click.result(5)
    cache.get(key("prepared first"), lambda: pytest.fail("encoded twice"))
    assert order == ["prepared, then clicked", "clicked", "prepared first"]


def test_batches_come_last_and_make_room_for_all_others(cache: EmbeddingCache) -> None:
    blocker, order = Blocker(cache), []

    def encode(name: str) -> np.ndarray:
        order.append(name)
        return embedding()

    with ThreadPoolExecutor(2) as pool:
        batches: list[Future[Any]] = []
        for name in ("batch", "later batch"):
            batches.append(pool.submit(cache.get, key(name), lambda name=name: encode(name), BATCH))
            until(lambda: cache.status().waiting == len(batches), 60)
        for name in ("prepared", "prepared too"):  # the second takes the place of the later batch
            assert cache.prepare(key(name), lambda name=name: encode(name))
        with pytest.raises(Busy, match="came first"):
            batches[1].result(60)
        blocker.released.set()
        batches[0].result(60)
    assert order == ["prepared", "prepared too", "batch"]


def test_a_full_queue_refuses_clicks_and_drops_preparations(cache: EmbeddingCache) -> None:
    blocker = Blocker(cache)
    with ThreadPoolExecutor(3) as pool:
        clicks = [pool.submit(cache.get, key(name), embedding) for name in "abc"]
        until(lambda: cache.status().waiting >= 3)
        with pytest.raises(Busy) as refusal:
            cache.get(key("d"), embedding)
        assert refusal.value.retry_after > 0
        assert not cache.prepare(key("d"), embedding)
        blocker.released.set()
        assert [click.result(5)[1] for click in clicks] == [False] * 3


def test_a_click_takes_the_place_of_a_waiting_preparation(cache: EmbeddingCache) -> None:
    blocker = Blocker(cache)
    for name in "abc":
        assert cache.prepare(key(name), embedding)
    with ThreadPoolExecutor(1) as pool:
        click = pool.submit(cache.get, key("clicked"), embedding)
        until(lambda: cache.status().misses >= 1)
        assert cache.status().waiting == 3
        blocker.released.set()
        assert click.result(5)[0].nbytes == KIB


def test_an_encode_that_fails_is_told_to_all_who_wait_and_tried_again_later(cache: EmbeddingCache) -> None:
    blocker = Blocker(cache)

    def fail() -> np.ndarray:
        raise ValueError("no such image")

    with ThreadPoolExecutor(2) as pool:
        clicks = [pool.submit(cache.get, key("a"), fail) for _ in range(2)]
        until(lambda: cache.status().misses >= 2)
        blocker.released.set()
        for click in clicks:
            with pytest.raises(ValueError, match="no such image"):
                click.result(5)
    assert cache.get(key("a"), embedding)[0].nbytes == KIB


def test_a_wait_that_is_too_long_ends_with_a_sentence() -> None:
    cache = EmbeddingCache(capacity=KIB, patience=0.05)
    blocker = Blocker(cache)
    with pytest.raises(Busy, match="still being encoded"):
        cache.get(key("a"), embedding)
    blocker.released.set()
    cache.close()


def test_closing_refuses_those_who_wait() -> None:
    cache = EmbeddingCache(capacity=10 * KIB)
    blocker = Blocker(cache)
    with ThreadPoolExecutor(2) as pool:
        click = pool.submit(cache.get, key("a"), embedding)
        until(lambda: cache.status().waiting >= 1)
        closing = pool.submit(cache.close)
        with pytest.raises(Busy, match="shutting down"):
            click.result(5)
        blocker.released.set()
        closing.result(5)
    with pytest.raises(Busy):
        cache.get(key("b"), embedding)


@pytest.mark.parametrize(("encode_s", "admitted"), [(0.1, 40), (1.0, 4), (60.0, 3)])
def test_a_click_that_would_wait_too_long_is_refused_at_once(encode_s: float, admitted: int) -> None:
    """By how long encodes lasted so far: one is under way, the others wait."""
    cache, go_on = EmbeddingCache(10 * KIB, queue_length=64), threading.Event()
    cache._encode_s = encode_s

    def compute() -> Any:
        assert go_on.wait(60)
        return np.zeros(1)

    refused: list[Busy] = []

    def ask(number: int) -> None:
        try:
            cache.get(EmbeddingKey("s", str(number)), compute)
        except Busy as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    threads[0].start()
    until(lambda: bool(cache._under_way))
    for each in threads[1:]:
        each.start()
    until(lambda: len(refused) == 50 - admitted)
    assert min(error.retry_after for error in refused) > 4
    cache.prepare(EmbeddingKey("s", "later"), compute)  # nobody waits for it
    assert cache.status().waiting == admitted
    go_on.set()
    for each in threads:
        each.join()
    cache.close()


def test_an_image_that_was_encoded_is_held_by_nobody(cache: EmbeddingCache) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    gone = weakref.ref(pixels)
    cache.get(key("a"), lambda pixels=pixels: pixels[:10, :10, 0].copy())
    del pixels
    until(lambda: gone() is None)


def test_few_callers_wait_at_a_time_however_few_images_they_want(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "MAX_CALLERS", 2)
    blocker = Blocker(cache)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(cache.get, key("a"), embedding) for _ in range(2)]
        until(lambda: cache._callers == 2)  # pyright: ignore
        with pytest.raises(Busy, match="2 requests wait"):
            cache.get(key("a"), embedding)
        blocker.released.set()
        assert all(each.result(30)[0].nbytes for each in waiting)
    assert cache._callers == 0  # pyright: ignore
    cache.get(key("b"), embedding)
