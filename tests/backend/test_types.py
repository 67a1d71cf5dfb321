from __future__ import annotations

import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clickmask.errors import InvalidInput
from clickmask.masks.regions import crop_mask
from clickmask.types import ImageRef, Mask, Prediction, Prompt, one_by_one

SIZE = (30, 40)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"background": ((1.0, 1.0),)},
        {"foreground": ((math.nan, 1.0),)},
        {"foreground": ((1.0, math.inf),)},
        {"foreground": ((1.0,),)},
        {"foreground": ((1.0, 1.0),), "background": ((1.0, -math.inf),)},
        {"box": (0.0, 0.0, math.nan, 1.0)},
        {"box": (5.0, 0.0, 5.0, 1.0)},
        {"box": (5.0, 0.0, 4.0, 1.0)},
        {"box": (0.0, 0.0, 1.0)},
        {"mask": np.zeros((2, 2, 3), bool)},
    ],
    ids=str,
)
def test_a_wrong_prompt_cannot_be_written(wrong: dict) -> None:
    with pytest.raises(InvalidInput):
        Prompt(**wrong)


@pytest.mark.parametrize(
    "inside",
    [
        {"foreground": ((0.0, 0.0), (40.0, 30.0))},  # the image's own corners
        {"box": (0.0, 0.0, 40.0, 30.0)},
        {"mask": np.ones(SIZE, bool)},
    ],
    ids=["corners", "whole image", "mask"],
)
def test_a_prompt_may_touch_the_edges_of_the_image(inside: dict) -> None:
    Prompt(**inside).require_inside(SIZE)


@pytest.mark.parametrize(
    "outside",
    [
        {"foreground": ((40.1, 1.0),)},
        {"foreground": ((1.0, -0.1),)},
        {"foreground": ((1.0, 1.0),), "background": ((1.0, 30.5),)},
        {"box": (-1.0, 0.0, 10.0, 10.0)},
        {"box": (0.0, 0.0, 10.0, 31.0)},
        {"mask": np.ones((40, 30), bool)},
    ],
    ids=str,
)
def test_a_prompt_outside_of_the_image_is_refused_with_its_size(outside: dict) -> None:
    with pytest.raises(InvalidInput, match="40x30"):
        Prompt(**outside).require_inside(SIZE)


def test_a_token_in_a_reference_is_neither_printed_nor_compared() -> None:
    ref = ImageRef("https://example.com/a.jpg", {"Authorization": "Token secret"})
    assert "secret" not in repr(ref)
    assert ref == ImageRef("https://example.com/a.jpg")


@pytest.mark.parametrize("score", [-0.01, 1.01, math.nan])
def test_a_score_outside_of_0_to_1_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="score"):
        Prediction(np.zeros(SIZE, bool), score, "disc")


def test_a_mask_is_computed_when_it_is_first_looked_at_and_once() -> None:
    made: list[int] = []

    def compute() -> Mask:
        made.append(1)
        threading.Event().wait(0.02)  # long enough for the others to come
        return np.eye(3, dtype=bool)

    prediction = Prediction(compute, 0.5, "disc")
    assert made == []
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda _: prediction.mask, range(4)))
    assert made == [1]
    assert all(mask is masks[0] for mask in masks) and masks[0].sum() == 3


def test_a_mask_that_is_not_kept_is_computed_each_time_it_is_looked_at() -> None:
    made: list[int] = []
    prediction = Prediction(lambda: np.full(SIZE, made.append(1) is None), 0.5, "disc", keep=False)
    first = prediction.mask
    first[:] = False
    assert prediction.mask.all() and made == [1, 1]


def test_a_mask_that_could_not_be_computed_is_tried_again() -> None:
    failures = [MemoryError()]

    def compute() -> Mask:
        if failures:
            raise failures.pop()
        return np.eye(3, dtype=bool)

    prediction = Prediction(compute, 0.5, "disc")
    with pytest.raises(MemoryError):
        _ = prediction.mask
    assert prediction.mask.sum() == 3


def test_a_cropped_mask_is_whole_when_it_is_read_and_not_kept() -> None:
    mask = np.zeros((50, 70), np.bool_)
    mask[10:14, 20:25] = True
    cropped = crop_mask(mask)
    assert (cropped.part.shape, cropped.top, cropped.left) == ((4, 5), 10, 20)
    prediction = Prediction(cropped.whole, 0.5, "drawn", keep=False)
    np.testing.assert_array_equal(prediction.mask, mask)
    assert prediction.mask is not prediction.mask
    assert not crop_mask(np.zeros((5, 7), np.bool_)).whole().any()


def test_masks_that_were_read_are_let_go_one_by_one() -> None:
    predictions = [Prediction(lambda: np.zeros((5, 7), np.bool_), 0.1 * each, "drawn") for each in range(3)]
    masks = [weakref.ref(each.mask) for each in one_by_one(predictions)]
    assert [mask() is None for mask in masks] == [True, True, True]
    assert not predictions
