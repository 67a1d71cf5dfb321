from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from clickmask.datasets import snapshot
from clickmask.datasets.snapshot import assign_image, assign_images
from clickmask.errors import Gone, StoreUnavailable
from clickmask.labels.split import SIDES, Assigned, Fingerprint, Side, SideCounts, fingerprint, quarantined
from clickmask.store import Store
from clickmask.types import Pixels
from support.labelled import PROJECT, TOOL, digest_of, noise, polygon, submit

SQUARE = polygon((10, 10), (30, 10), (30, 30), (10, 30))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CELL = frozenset({"cell"})


def picture(name: str) -> Pixels:
    """`name` and `name'` are near duplicates."""
    return np.clip(noise(ord(name[0])) + 6.0 * name.count("'"), 0, 255).astype(np.uint8)


class Pictures:
    """The pixels of these by the digests of their names; and how often each was asked for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {digest_of(name): name for name in names}
        self.asked = Counter[str]()

    def __call__(self, digest: str) -> Pixels:
        if digest not in self.names:
            raise Gone("not at hand")
        self.asked[self.names[digest]] += 1
        return picture(self.names[digest])


@pytest.fixture
def other(store: Store) -> Iterator[Store]:
    """The same database as `store`'s, as another process has it."""
    url = store._database.engine.url.render_as_string(hide_password=False)
    with closing(Store(url)) as opened:
        yield opened


def place(store: Store, name: str, categories: frozenset[str] = CELL) -> Side:
    return assign_image(store, TOOL, PROJECT, digest_of(name), categories, Pictures([name]))


def sides(store: Store) -> dict[str, Side]:
    return {placed.digest: placed.side for placed in store.sides(TOOL, PROJECT)}


def test_an_image_without_a_side_gets_one_and_keeps_it(store: Store) -> None:
    pictures = Pictures("a")
    first = assign_image(store, TOOL, PROJECT, digest_of("a"), CELL, pictures)
    assert sides(store) == {digest_of("a"): first}
    assert assign_image(store, TOOL, PROJECT, digest_of("a"), frozenset({"another"}), pictures) == first
    assert pictures.asked == {"a": 1}


def test_a_picture_that_is_not_at_hand_gets_none(store: Store) -> None:
    with pytest.raises(Gone):
        assign_image(store, TOOL, PROJECT, digest_of("a"), CELL, Pictures(""))
    assert sides(store) == {}


def test_images_get_their_sides_in_the_order_in_which_they_were_accepted(store: Store) -> None:
    for number, name in enumerate("dbca"):
        submit(store, name, {"r": ("cell", SQUARE)}, task=name, at=1000 + number)
    assert assign_images(store, TOOL, PROJECT, Pictures("abcd")) == {}
    found = sides(store)
    assert found[digest_of("d")] == "train"
    assert {found[digest_of("b")], found[digest_of("c")]} == {"validation", "test"}
    assert found[digest_of("a")] == "train"


def test_those_that_are_not_at_hand_are_named_and_placed_when_they_are(store: Store) -> None:
    for name in "ab":
        submit(store, name, {"r": ("cell", SQUARE)}, task=name)
    assert list(assign_images(store, TOOL, PROJECT, Pictures("b"))) == [digest_of("a")]
    assert list(sides(store)) == [digest_of("b")]
    pictures = Pictures("ab")
    assert assign_images(store, TOOL, PROJECT, pictures) == {}
    assert pictures.asked == {"a": 1}
    assert len(sides(store)) == 2


def test_without_a_store_no_image_is_said_to_be_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, "a", {"r": ("cell", SQUARE)}, task="1")

    def away(*_: object) -> None:
        raise StoreUnavailable("no room")

    monkeypatch.setattr(store, "side_of", away)
    with pytest.raises(StoreUnavailable):
        assign_images(store, TOOL, PROJECT, Pictures("a"))


def test_what_counts_for_a_side_is_what_stands_there_now(store: Store) -> None:
    for name, category in (("a", "cell"), ("b", "nucleus"), ("c", "cell")):
        place(store, name, frozenset({category}))
        submit(store, name, {"r": (category, SQUARE)}, task=name)
    wanted = {"cell", "nucleus", "neither"}
    counts = store.side_counts(TOOL, PROJECT, wanted)
    assert sum(each.images for each in counts.values()) == 3
    for side in SIDES:
        here = {placed.digest for placed in store.sides(TOOL, PROJECT) if placed.side == side}
        drawn = {"nucleus" if digest == digest_of("b") else "cell" for digest in here}
        assert counts[side] == SideCounts(len(here), frozenset(drawn))
    submit(store, "a", {}, task="a", at=2000.0, skipped=True)
    left = store.side_counts(TOOL, PROJECT, wanted)
    assert sum(each.images for each in left.values()) == 2
    assert store.side_counts(TOOL, "another project", wanted)["train"].images == 0


def test_a_neighbour_that_another_process_places_meanwhile_is_followed(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and deciding: the one who looked looks again."""
    for name in "abc":
        place(store, name)
        submit(store, name, {"r": ("cell", SQUARE)}, task=name)
    by_quota = place(store, "z")
    assign, looked = store.assign_side, 0

    def late(tool: str, project: str, digest: str, side: Side, shown: Fingerprint, known: int) -> Side | None:
        nonlocal looked
        looked += 1
        if looked == 1:
            neighbour = fingerprint(picture("d'"))
            opposite: Side = "test" if side == "train" else "train"
            assert other.assign_side(tool, project, digest_of("d'"), opposite, neighbour, known)
        return assign(tool, project, digest, side, shown, known)

    monkeypatch.setattr(store, "assign_side", late)
    side = place(store, "d")
    assert looked == 2
    assert side == sides(store)[digest_of("d'")]
    assert by_quota == sides(store)[digest_of("z")]
    assert quarantined(store.sides(TOOL, PROJECT)) == frozenset()


@pytest.mark.parametrize("most", [0, 500])
def test_a_neighbour_is_followed_however_many_there_are(
    store: Store, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(snapshot, "_MAX_QUERY_DIGESTS", most)
    first: dict[str, Side] = {}
    for name in "abcd":
        first[name] = place(store, name)
        submit(store, name, {"r": ("cell", SQUARE)}, task=name)
    assert {name: place(store, f"{name}'") for name in "abcd"} == first
    assert len(set(first.values())) == 3


def test_whoever_assigns_an_image_first_is_believed(store: Store, other: Store) -> None:
    shown = fingerprint(picture("a"))
    assert store.assign_side(TOOL, PROJECT, digest_of("a"), "test", shown, known=0) == "test"
    assert other.assign_side(TOOL, PROJECT, digest_of("a"), "train", shown, known=0) == "test"
    assert other.assign_side(TOOL, PROJECT, digest_of("b"), "train", shown, known=0) is None
    assert store.sides(TOOL, PROJECT) == [Assigned(digest_of("a"), "test", shown)]


def test_processes_that_place_images_at_once_leave_no_neighbours_apart(store: Store, other: Store) -> None:
    names = [letter + mark for letter in LETTERS for mark in ("", "'")]
    start = threading.Barrier(2)

    def place_half(mine: Store, half: Sequence[str]) -> None:
        start.wait()
        for name in half:
            place(mine, name)
            submit(mine, name, {"r": ("cell", SQUARE)}, task=name)

    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(place_half, mine, half) for mine, half in ((store, names[::2]), (other, names[1::2]))
        ]:
            done.result()
    placed = store.sides(TOOL, PROJECT)
    assert len(placed) == len(names)
    assert quarantined(placed) == frozenset()
    assert min(Counter(each.side for each in placed).values()) >= 3
