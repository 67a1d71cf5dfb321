from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask.labels.split import (
    SIDES,
    Assigned,
    Fingerprint,
    Side,
    SideCounts,
    choose_side,
    neighbouring_side,
    quarantined,
)


@functools.cache
def unlike(number: int) -> Fingerprint:
    """A fingerprint that is like no other one."""
    drawn = np.random.default_rng(number).integers(0, 256, 8 + 32 * 32, np.uint8).tobytes()
    return Fingerprint(drawn[:8], drawn[8:])


def flipped(one: Fingerprint, bits: int) -> Fingerprint:
    code = int.from_bytes(one.hash, "big") ^ ((1 << bits) - 1)
    return Fingerprint(code.to_bytes(8, "big"), one.thumbnail)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@dataclass(frozen=True)
class Labelled(Assigned):
    categories: frozenset[str] = frozenset()
    counts: bool = True


def choose(
    name: str, shown: Fingerprint, categories: frozenset[str], placed: Sequence[Labelled | Assigned]
) -> Side:
    """As an image gets its side; `Assigned` alone are of no category."""
    standing: dict[Side, SideCounts] = {}
    for side in SIDES:
        here = [i for i in placed if i.side == side and not (isinstance(i, Labelled) and not i.counts)]
        seen = frozenset[str]().union(*(i.categories for i in here if isinstance(i, Labelled)))
        standing[side] = SideCounts(len(here), seen)
    return neighbouring_side(shown, placed) or choose_side(name, categories, standing)


def place(categories: Sequence[str], placed: Sequence[Labelled] = (), number: int | None = None) -> Labelled:
    number = len(placed) if number is None else number
    names = frozenset(categories)
    side = choose(digest(number), unlike(number), names, placed)
    return Labelled(digest(number), side, unlike(number), names)


def place_all(kinds: Sequence[Sequence[str]]) -> list[Labelled]:
    placed: list[Labelled] = []
    for categories in kinds:
        placed.append(place(categories, placed))
    return placed


def counts(placed: Sequence[Assigned]) -> list[int]:
    images = Counter(image.side for image in placed)
    return [images[side] for side in SIDES]


def test_the_first_three_images_of_a_class_are_trained_on_and_held_out_twice() -> None:
    assert counts(place_all([["cell"]] * 3)) == [1, 1, 1]
    assert place(["cell"]).side == "train"


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=3), max_size=60))
def test_quotas_are_kept_within_two_images_and_three_are_held_out_from_sixteen_on(
    kinds: list[list[str]],
) -> None:
    placed = place_all(kinds)
    for so_far in range(1, len(placed) + 1):
        train, validation, test = counts(placed[:so_far])
        if so_far >= 16:
            assert min(validation, test) >= 3
            assert train >= 0.7 * so_far - 4
        if so_far >= 20:
            assert abs(validation - 0.15 * so_far) <= 2
            assert abs(test - 0.15 * so_far) <= 2


def test_a_large_set_is_divided_as_the_quotas_say() -> None:
    assert counts(place_all([["cell"]] * 200)) == [140, 30, 30]


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_a_class_of_three_images_in_sixty_gets_onto_every_side(rng: random.Random) -> None:
    kinds = [["common"]] * 57 + [["common", "rare"]] * 3
    rng.shuffle(kinds)
    sides = {image.side for image in place_all(kinds) if "rare" in image.categories}
    assert sides == set(SIDES)


def test_a_class_that_is_seen_first_is_trained_on() -> None:
    for images in range(30):
        placed = place_all([["common"]] * images)
        last_call = images in (13, 14, 15) and min(counts(placed)[1:]) < 3
        assert last_call or place(["new"], placed).side == "train"


def test_a_neighbour_follows_its_nearest_whatever_the_quotas() -> None:
    placed = place_all([["cell"]] * 40)
    held_out = next(image for image in placed if image.side == "test")
    copies: list[Labelled] = []
    for number in range(100, 130):
        copy = flipped(held_out.fingerprint, number % 5)
        side = choose(digest(number), copy, held_out.categories, [*placed, *copies])
        copies.append(Labelled(digest(number), side, copy, held_out.categories))
    assert {copy.side for copy in copies} == {"test"}
    assert quarantined([*placed, *copies]) == frozenset()


def test_a_neighbour_follows_an_image_whose_labels_are_gone() -> None:
    gone = Labelled(digest(0), "test", unlike(0), frozenset(), counts=False)
    assert choose(digest(1), unlike(0), frozenset(), [gone]) == "test"
    assert place([], [gone]).side == "train"  # it counts for nothing else


@pytest.mark.parametrize("sides", [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_neighbours_on_two_sides_are_quarantined_and_nothing_else_is(sides: tuple[Side, Side]) -> None:
    apart = [Assigned(digest(n), side, unlike(0)) for n, side in enumerate(sides)]
    others = [Assigned(digest(n), "train", unlike(n)) for n in range(2, 9)]
    together = Assigned(digest(9), "train", unlike(8))
    assert quarantined([*others, apart[0], together, apart[1]]) == {digest(0), digest(1)}


def test_a_picture_between_two_sides_is_quarantined_with_the_one_that_it_did_not_follow() -> None:
    middle = unlike(0)
    left = Assigned(digest(1), "train", flipped(middle, 3))
    right = Assigned(
        digest(2),
        "test",
        Fingerprint((int.from_bytes(middle.hash, "big") ^ 0b11110000).to_bytes(8, "big"), middle.thumbnail),
    )
    assert quarantined([left, right]) == frozenset()
    side = choose(digest(3), middle, frozenset(), [left, right])
    late = Assigned(digest(3), side, middle)
    assert digest(3) in quarantined([left, right, late])
    assert len(quarantined([left, right, late])) == 2


def test_ties_are_broken_by_the_digest_and_by_nothing_else() -> None:
    first = Labelled(digest(0), "train", unlike(0), frozenset({"cell"}))
    sides = {choose(digest(n), unlike(n), frozenset({"cell"}), [first]) for n in range(1, 20)}
    assert sides == {"validation", "test"}
    again = [choose(digest(5), unlike(n), frozenset({"cell"}), [first]) for n in range(5, 9)]
    assert len(set(again)) == 1


def test_what_neighbours_crowded_into_training_is_made_up_for_by_the_next() -> None:
    crowd = [Labelled(digest(n), "train", unlike(n), frozenset({"cell"})) for n in range(30)]
    placed = list(crowd)
    for _ in range(6):
        placed.append(place(["cell"], placed))
    assert counts(placed) == [30, 3, 3]
