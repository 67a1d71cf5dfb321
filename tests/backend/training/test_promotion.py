"""Which models are promoted, and the sentence that says why."""

from __future__ import annotations

import numpy as np
import pytest

from clickmask.metrics.confusion import Confusion
from clickmask.training.promotion import (
    MAX_CLASS_IOU_LOSS,
    MIN_FIRST_IOU,
    MIN_FIRST_STEPS,
    MIN_IMAGES_FOR_INTERVAL,
    decide,
)

CATEGORIES = ("cell", "hole")


def matrices(images: int, cell: float, hole: float = 0.8, spread: float = 0.0) -> Confusion:
    """Images of 1000 px background, 100 of cell and 100 of hole, of which such shares are found.

    What is missed is taken for background. `spread` makes images differ, alike at each call.
    """
    found = np.zeros((images, 3, 3), np.int64)
    found[:, 0, 0] = 1000
    shift = np.random.default_rng(0).uniform(-spread, spread, images)
    for number, share in ((1, cell), (2, hole)):
        right = np.rint(100 * np.clip(share + shift, 0, 1)).astype(np.int64)
        found[:, number, number], found[:, number, 0] = right, 100 - right
    return found


def test_the_first_version_must_be_better_than_to_find_nothing() -> None:
    first = decide(matrices(3, 0.4, 0.4), None, CATEGORIES)
    assert first.promoted
    assert "to find nothing has" in first.reason
    assert not decide(matrices(3, 0, 0), None, CATEGORIES).promoted


def test_a_first_version_that_spoils_the_background_is_not_promoted() -> None:
    noise = np.array([[[200, 400, 400], [30, 40, 30], [30, 30, 40]]])
    assert not decide(noise, None, CATEGORIES).promoted


def test_with_few_images_the_difference_itself_decides() -> None:
    better, worse = matrices(MIN_IMAGES_FOR_INTERVAL - 1, 0.85), matrices(MIN_IMAGES_FOR_INTERVAL - 1, 0.82)
    assert decide(better, worse, CATEGORIES, CATEGORIES).promoted
    decision = decide(worse, better, CATEGORIES, CATEGORIES)
    assert not decision.promoted
    assert decision.reason.startswith("not promoted: mIoU 0.810 against 0.825 on 19 validation images")


def test_a_model_that_may_be_a_little_worse_is_promoted_among_many_images() -> None:
    served = matrices(40, 0.80, spread=0.15)
    assert decide(matrices(40, 0.79, spread=0.15), served, CATEGORIES, CATEGORIES).promoted
    worse = decide(matrices(40, 0.76, 0.76, spread=0.15), served, CATEGORIES, CATEGORIES)
    assert not worse.promoted
    assert "the difference is -0.0" in worse.reason


@pytest.mark.parametrize("images", [MIN_IMAGES_FOR_INTERVAL - 1, MIN_IMAGES_FOR_INTERVAL + 20])
def test_no_class_may_fall_however_much_the_others_gain(images: int) -> None:
    served = matrices(images, 0.5, 0.8)
    assert decide(
        matrices(images, 0.9, 0.8 - MAX_CLASS_IOU_LOSS + 0.01), served, CATEGORIES, CATEGORIES
    ).promoted
    decision = decide(matrices(images, 0.9, 0.8 - MAX_CLASS_IOU_LOSS - 0.01), served, CATEGORIES, CATEGORIES)
    assert not decision.promoted
    assert decision.reason.startswith("not promoted: hole falls by 0.060")


def test_a_category_that_only_one_model_knows_decides_nothing() -> None:
    served = matrices(8, 0.8, 0.0)
    assert decide(matrices(8, 0.81, 0.9), served, CATEGORIES, ["cell"]).promoted
    assert not decide(matrices(8, 0.79, 0.9), served, CATEGORIES, ["cell"]).promoted


def test_without_a_shared_category_it_is_a_first_version() -> None:
    assert decide(matrices(8, 0.4), matrices(8, 0.9), CATEGORIES, []).promoted


def test_nothing_is_promoted_where_no_validation_image_shows_what_both_know() -> None:
    blank = np.zeros((5, 3, 3), np.int64)
    blank[:, 0, 0] = 10
    decision = decide(blank, blank, CATEGORIES, CATEGORIES)
    assert (decision.promoted, decision.reason) == (
        False,
        "not promoted: none of cell, hole is in the validation images",
    )


def test_a_class_that_is_in_no_image_is_no_fall() -> None:
    candidate, served = matrices(8, 0.81), matrices(8, 0.8)
    for each in (candidate, served):
        each[:, 2] = 0
    assert decide(candidate, served, CATEGORIES, CATEGORIES).promoted


def test_models_are_compared_on_the_same_images_and_on_some() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        decide(matrices(3, 0.8), matrices(4, 0.8), CATEGORIES, CATEGORIES)
    with pytest.raises(ValueError, match="no validation image"):
        decide(matrices(0, 0.8), None, CATEGORIES)


def test_a_first_version_that_barely_learnt_is_not_promoted_though_it_beats_nothing() -> None:
    poor = decide(matrices(3, MIN_FIRST_IOU - 0.02, 0.1), None, CATEGORIES)
    assert not poor.promoted
    assert poor.reason.startswith("not promoted: it has barely learnt: no category reaches an IoU of 0.3; ")
    assert decide(matrices(3, MIN_FIRST_IOU, 0), None, CATEGORIES).promoted, "one category is of use"
    good = matrices(3, 0.9, 0.9)
    early = decide(good, None, CATEGORIES, steps=9)
    assert not early.promoted
    assert early.reason.startswith("not promoted: it learnt for only 9 of at least 20 steps; ")
    assert early.advice == "Raise CLICKMASK_TRAIN_SECONDS, then train again"
    assert decide(good, None, CATEGORIES, steps=MIN_FIRST_STEPS).promoted
    assert decide(good, matrices(3, 0.5), CATEGORIES, CATEGORIES, steps=9).promoted, (
        "better than what is served"
    )


@pytest.mark.parametrize(
    ("cell", "served", "advice"),
    [
        (0, None, "Accept more labels, or raise CLICKMASK_TRAIN_SECONDS, then train again"),
        (0.79, 0.8, "The model that is served stays. Accept more labels, then train again"),
        (0.6, 0.8, "The model that is served stays. Accept more labels of cell, then train again"),
        (0.9, 0.8, ""),
    ],
)
def test_a_decision_says_what_to_do_next(cell: float, served: float | None, advice: str) -> None:
    before = None if served is None else matrices(8, served)
    found = decide(matrices(8, cell, 0.8 if before is not None else 0), before, CATEGORIES, CATEGORIES)
    assert (found.promoted, found.advice) == (not advice, advice)
