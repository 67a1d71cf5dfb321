from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from clickmask.errors import InvalidInput
from clickmask.masks.controls import MAX_SMOOTH, Controls, controls_of, read_controls, smooth_mask
from clickmask.masks.regions import fill_pinholes, keep_parts
from clickmask.types import Mask, Prediction
from support import drawn

masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=24))
radii = st.floats(1, 5)
every_mask = pytest.mark.parametrize("draw", drawn.MASKS.values(), ids=drawn.MASKS)


@every_mask
def test_without_wishes_it_is_the_mask_itself(draw: Any) -> None:
    mask = draw()
    assert Controls().apply(mask) is mask


@given(masks, radii)
def test_smoothing_is_the_majority_of_a_disc(mask: Mask, radius: float) -> None:
    reach = int(radius)
    around = np.pad(mask, reach, mode="edge")
    votes, voters = np.zeros(mask.shape, int), 0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx**2 + dy**2 <= radius**2:
                votes += around[reach + dy :, reach + dx :][: mask.shape[0], : mask.shape[1]]
                voters += 1
    before = mask.copy()
    assert np.array_equal(smooth_mask(mask, radius), 2 * votes > voters)
    assert np.array_equal(mask, before)


@settings(max_examples=30)
@given(masks, radii)
def test_smoothing_changes_nothing_farther_from_the_edge_than_the_radius(mask: Mask, radius: float) -> None:
    reach = int(radius)
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= radius
    around = cv2.copyMakeBorder(mask.view(np.uint8), *(reach,) * 4, cv2.BORDER_REPLICATE)
    inner = (slice(reach, -reach or None),) * 2
    deep = cv2.erode(around, disc.astype(np.uint8))[inner] > 0
    far = cv2.dilate(around, disc.astype(np.uint8))[inner] == 0
    smooth = smooth_mask(mask, radius)
    assert smooth[deep].all()
    assert not smooth[far].any()


def test_smoothing_keeps_a_straight_edge_and_the_edge_of_the_image() -> None:
    half = drawn.rectangle((40, 60), (0, 0, 60, 17))
    assert np.array_equal(smooth_mask(half, 6.0), half)
    assert smooth_mask(np.ones((20, 30), bool), 8.0).all()


def test_smoothing_takes_away_a_hair_and_closes_a_crack() -> None:
    mask = drawn.rectangle((60, 60), (10, 10, 50, 40))
    ragged = mask.copy()
    ragged[20, 50:58] = True  # a hair
    ragged[10:40, 30] = False  # a crack
    smooth = smooth_mask(ragged, 3.0)
    assert not smooth[20, 51:].any()
    assert smooth[14:36, 30].all()


@settings(max_examples=60)
@given(masks, st.floats(0, 4), st.integers(0, 40), st.floats(0, 1), st.none() | st.integers(1, 3))
def test_every_wish_holds_of_the_result(
    mask: Mask, smooth: float, fill_holes: int, min_part_share: float, max_parts: int | None
) -> None:
    controls = Controls(smooth, fill_holes, min_part_share, max_parts)
    made = controls.apply(mask)
    assert np.array_equal(fill_pinholes(made, fill_holes), made)
    assert np.array_equal(keep_parts(made, 0.0, max_parts), made)
    # Nothing else changes: what was not smoothed is in the mask, in a hole of it, or in a part left out.
    smoothed = smooth_mask(mask, smooth) if smooth else mask
    filled = fill_pinholes(smoothed, fill_holes)
    assert np.array_equal(keep_parts(filled, min_part_share, max_parts), made)


@pytest.mark.parametrize(
    "wishes",
    [
        {"smooth": -1.0},
        {"smooth": MAX_SMOOTH + 1},
        {"smooth": float("nan")},
        {"fill_holes": -1},
        {"min_part_share": 1.5},
        {"max_parts": 0},
    ],
)
def test_a_wish_out_of_its_range_is_refused(wishes: dict[str, Any]) -> None:
    (name,) = wishes
    with pytest.raises(InvalidInput, match=name):
        Controls(**wishes)


every_wish = st.builds(
    Controls,
    st.floats(0, MAX_SMOOTH),
    st.integers(0, 10**9),
    st.floats(0, 1),
    st.none() | st.integers(1, 99),
    st.booleans(),
)


@given(every_wish)
def test_wishes_can_be_written_as_json_and_as_words(controls: Controls) -> None:
    wishes = json.loads(json.dumps(controls.wishes()))
    assert controls_of(wishes) == controls
    assert read_controls([f"{name}={json.dumps(value)}" for name, value in wishes.items()]) == controls


def test_nothing_is_asked_for_by_default() -> None:
    assert Controls().wishes() == {}
    assert controls_of({}) == read_controls([]) == Controls()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("sharp=2", "there is no control 'sharp'; there are: smooth, fill_holes"),
        ("smooth", "'smooth' is not a control such as smooth=2"),
        ("smooth=two", "not a control such as"),
        ('smooth="2"', 'smooth is a number, not "2"'),
        ("smooth=true", "smooth is a number, not true"),
        ("fill_holes=1.5", "fill_holes is a whole number, not 1.5"),
        ("max_parts=null", "max_parts is a whole number, not null"),
        ("smooth=NaN", "smooth is a radius"),
        ("max_parts=0", "at least 1"),
        ("smooth=2 smooth=3", "smooth is there twice"),
        ("second_look=1", "second_look is true or false, not 1"),
    ],
)
def test_words_that_are_no_wishes_are_refused(words: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read_controls(words.split())


def test_a_prediction_is_shaped_when_its_mask_is_read_and_keeps_its_score() -> None:
    mask = drawn.rectangle((30, 40), (3, 3, 20, 20)) | drawn.rectangle((30, 40), (30, 3, 34, 9))
    reads: list[None] = []
    shaped = Controls(max_parts=1).applied(Prediction(lambda: reads.append(None) or mask, 0.5, "disc"))
    assert not reads
    assert np.array_equal(shaped.mask, keep_parts(mask, most=1))
    assert (shaped.score, shaped.segmenter) == (0.5, "disc")
