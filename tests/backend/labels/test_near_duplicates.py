from __future__ import annotations

import io

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.labels.split import Fingerprint, fingerprint, neighbouring_pairs, neighbours
from clickmask.types import Pixels
from support import photographs
from support.drawn import scene


def saved_again(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


def flat(level: int) -> Pixels:
    return np.full((40, 60, 3), level, np.uint8)


SCENE = scene().pixels


@pytest.mark.parametrize(
    "copy",
    [
        SCENE,
        scene(seed=1).pixels,  # another noise
        saved_again(SCENE, 40),
        cv2.resize(SCENE, (160, 120), interpolation=cv2.INTER_AREA),
        np.clip(SCENE.astype(np.int64) + 12, 0, 255).astype(np.uint8),
        np.roll(SCENE, 2, axis=1),  # the next frame
    ],
    ids=["itself", "noise", "JPEG", "smaller", "brighter", "moved"],
)
def test_copies_of_a_picture_are_its_neighbours(copy: Pixels) -> None:
    assert neighbours(fingerprint(SCENE), [fingerprint(copy)]) == [0]


@pytest.mark.parametrize(
    "other",
    [SCENE[::-1], SCENE[:, ::-1], 255 - SCENE, scene().pixels[:120], flat(90)],
    ids=["upside down", "mirrored", "negative", "upper half", "flat"],
)
def test_other_pictures_are_not(other: Pixels) -> None:
    assert neighbours(fingerprint(SCENE), [fingerprint(np.ascontiguousarray(other))]) == []


def test_photographs_of_different_things_are_no_neighbours() -> None:
    shown = {each.name.split(":")[0]: each.pixels for each in photographs.outlined_objects()}
    assert len(shown) >= 7
    prints = [fingerprint(pixels) for pixels in shown.values()]
    assert all(neighbours(one, prints) == [index] for index, one in enumerate(prints))


def test_flat_pictures_are_neighbours_if_they_are_equally_bright() -> None:
    assert neighbours(fingerprint(flat(90)), [fingerprint(flat(200)), fingerprint(flat(90))]) == [1]


def test_the_most_alike_comes_first_and_of_equals_the_first() -> None:
    noisy, copy = fingerprint(scene(noise=40.0, seed=3).pixels), fingerprint(SCENE)
    assert neighbours(copy, [noisy, copy, copy]) == [1, 2, 0]
    assert neighbours(copy, []) == []


@given(st.integers(0, 50), st.integers(0, 50))
def test_being_neighbours_is_mutual(seed: int, other: int) -> None:
    a, b = (fingerprint(scene((30, 40), seed, noise=60.0).pixels) for seed in (seed, other))
    assert neighbours(a, [b]) == neighbours(b, [a])


@given(st.lists(st.integers(0, 3), max_size=6))
def test_pairs_are_those_that_are_neighbours_of_each_other(levels: list[int]) -> None:
    prints = [fingerprint(scene((30, 40), 7, noise=10.0 + 60 * level).pixels) for level in levels]
    found = {(a, b) for a, one in enumerate(prints) for b in neighbours(one, prints) if a < b}
    assert neighbouring_pairs(prints) == sorted(found)


@given(st.binary(min_size=8, max_size=8), st.lists(st.integers(0, 63), max_size=6, unique=True))
def test_hashes_four_bits_apart_are_close_wherever_the_bits_are(code: bytes, flipped: list[int]) -> None:
    other = int.from_bytes(code, "big")
    for bit in flipped:
        other ^= 1 << bit
    grey = fingerprint(SCENE).thumbnail
    pair = [Fingerprint(code, grey), Fingerprint(other.to_bytes(8, "big"), grey)]
    close = len(flipped) <= 4
    assert neighbouring_pairs(pair) == ([(0, 1)] if close else [])
    assert neighbours(pair[0], pair[1:]) == ([0] if close else [])


def test_what_is_no_fingerprint_is_refused() -> None:
    with pytest.raises(ValueError, match="no fingerprint"):
        Fingerprint(b"1234567", bytes(1024))
