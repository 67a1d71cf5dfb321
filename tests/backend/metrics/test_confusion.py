"""Metrics against their definitions, spelled out pixel by pixel, and against torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clickmask.metrics.confusion import (
    LabelMap,
    absent_classes,
    bootstrap,
    confusion_matrix,
    dice,
    iou,
    miou,
    miou_with_background,
    paired_difference,
    per_image_miou,
    pixel_accuracy,
)

CLASSES = 4


def label_maps(classes: int = CLASSES) -> st.SearchStrategy[LabelMap]:
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
    return shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, classes - 1)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[LabelMap, LabelMap]:
    truth = draw(label_maps())
    return truth, draw(arrays.arrays(np.uint8, truth.shape, elements=st.integers(0, CLASSES - 1)))


def literal_iou(truth: LabelMap, prediction: LabelMap, number: int) -> float:
    """Intersection over union, one pixel after the other."""
    both = either = 0
    for true, predicted in zip(truth.flat, prediction.flat, strict=True):
        both += true == number and predicted == number
        either += true == number or predicted == number
    return both / either if either else math.nan


def mean_without_nan(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@given(pairs())
def test_every_number_is_its_definition(pair: tuple[LabelMap, LabelMap]) -> None:
    truth, prediction = pair
    matrix = confusion_matrix(truth, prediction, CLASSES)
    expected = [literal_iou(truth, prediction, number) for number in range(CLASSES)]
    np.testing.assert_allclose(iou(matrix), expected, atol=1e-6)
    np.testing.assert_allclose(dice(matrix), [2 * value / (1 + value) for value in expected], atol=1e-6)
    np.testing.assert_allclose(miou(matrix), mean_without_nan(expected[1:]), atol=1e-6)
    np.testing.assert_allclose(miou_with_background(matrix), mean_without_nan(expected), atol=1e-6)
    np.testing.assert_allclose(pixel_accuracy(matrix), (truth == prediction).mean(), atol=1e-6)
    assert absent_classes(matrix) == [k for k in range(1, CLASSES) if math.isnan(expected[k])]


@settings(max_examples=30, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_torchmetrics_gives_the_same_numbers_over_many_images(
    split: list[tuple[LabelMap, LabelMap]],
) -> None:
    pytest.importorskip("torch")
    from torch import tensor
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

    names: dict[str, Any] = {
        "iou": MulticlassJaccardIndex(CLASSES, average="none"),
        "miou_with_background": MulticlassJaccardIndex(CLASSES, average="macro"),
        "dice": MulticlassF1Score(CLASSES, average="none"),
        "pixel_accuracy": MulticlassAccuracy(CLASSES, average="micro"),
    }
    for truth, prediction in split:
        for metric in names.values():
            metric.update(tensor(prediction.astype(int)).ravel(), tensor(truth.astype(int)).ravel())
    theirs = {name: metric.compute().numpy() for name, metric in names.items()}
    matrix = np.sum([confusion_matrix(*pair, CLASSES) for pair in split], axis=0)
    present = ~np.isnan(iou(matrix))  # torchmetrics calls an absent class 0
    np.testing.assert_allclose(iou(matrix)[present], theirs["iou"][present], atol=1e-6)
    np.testing.assert_allclose(dice(matrix)[present], theirs["dice"][present], atol=1e-6)
    np.testing.assert_allclose(miou_with_background(matrix), theirs["miou_with_background"], atol=1e-6)
    np.testing.assert_allclose(pixel_accuracy(matrix), theirs["pixel_accuracy"], atol=1e-6)


def test_identical_masks_of_class_two_have_a_dice_of_one() -> None:
    truth = np.array([[0, 2, 2], [0, 2, 0]], np.uint8)
    matrix = confusion_matrix(truth, truth, 3)
    assert dice(matrix)[2] == 1.0
    assert miou(matrix) == 1.0


def test_a_class_that_is_only_predicted_counts_and_one_that_is_nowhere_does_not() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    prediction = np.array([[0, 2, 1, 1]], np.uint8)
    matrix = confusion_matrix(truth, prediction, 4)
    assert iou(matrix)[:3].tolist() == [0.5, 1.0, 0.0]
    assert miou(matrix) == 0.5
    assert absent_classes(matrix) == [3]
    assert miou(matrix, [1]) == 1.0


def test_nothing_but_background_has_no_miou() -> None:
    nothing = np.zeros((3, 3), np.uint8)
    matrix = confusion_matrix(nothing, nothing, 2)
    assert np.isnan(miou(matrix))
    assert np.isnan(dice(matrix)[1])
    assert miou_with_background(matrix) == 1.0


def test_ignored_pixels_do_not_count_whatever_is_predicted_there() -> None:
    truth = np.array([[1, 1, 255, 0]], np.uint8)
    prediction = np.array([[1, 0, 1, 0]], np.uint8)
    assert confusion_matrix(truth, prediction, 2, ignore=255).tolist() == [[1, 0], [1, 1]]
    everything = np.full((2, 2), 255, np.uint8)
    matrix = confusion_matrix(everything, np.zeros((2, 2), np.uint8), 2, ignore=255)
    assert matrix.sum() == 0
    assert np.isnan(pixel_accuracy(matrix))


def test_maps_that_cannot_be_compared_are_refused() -> None:
    labels = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) does not fit the truth's \(2, 3\)"):
        confusion_matrix(labels, labels.T, 2)
    with pytest.raises(ValueError, match="labels 0 to 7 are not all below 2 classes"):
        confusion_matrix(labels, np.array([[0, 1, 7], [0, 0, 0]]), 2)
    with pytest.raises(ValueError, match="labels -1 to 0"):
        confusion_matrix(np.array([[0, -1, 0], [0, 0, 0]]), labels, 2)


def test_per_image_miou_weighs_images_alike_and_skips_those_without_objects() -> None:
    large = confusion_matrix(np.ones((10, 10), int), np.ones((10, 10), int), 2)
    small = confusion_matrix(np.array([[1, 0]]), np.array([[0, 1]]), 2)
    nothing = confusion_matrix(np.zeros((5, 5), int), np.zeros((5, 5), int), 2)
    assert per_image_miou(np.stack([large, small, nothing])) == 0.5
    assert miou(large + small + nothing) == 100 / 102


def images_of(quality: list[float], seed: int = 0) -> np.ndarray:
    """Confusion matrices of images in which that part of 100 object pixels is found."""
    return np.array([[[900, 0], [100 - round(100 * part), round(100 * part)]] for part in quality])


def test_an_interval_holds_the_estimate_and_is_narrow_for_equal_images() -> None:
    equal = bootstrap(images_of([0.8] * 20))
    assert equal.estimate == equal.low == equal.high == 0.8
    mixed = images_of(list(np.random.default_rng(0).uniform(0.4, 1.0, 50)))
    interval = bootstrap(mixed)
    assert interval.low < interval.estimate < interval.high
    assert bootstrap(mixed) == interval, "the same seed draws the same images"
    assert bootstrap(mixed, seed=1) != interval
    # the spread of a mean of 50 uniform values on [.4, 1] is .173 / sqrt(50); 95 % is +- 1.96 of it
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.173 / 50**0.5, rel=0.25)
    narrower = bootstrap(mixed, level=0.5)
    assert interval.low < narrower.low < narrower.high < interval.high


def test_a_difference_on_the_same_images_is_told_more_surely_than_by_two_intervals() -> None:
    hard = np.random.default_rng(1).uniform(0.2, 0.9, 40)
    served, candidate = images_of(list(hard)), images_of(list(hard + 0.05))
    difference = paired_difference(candidate, served)
    assert difference.estimate == pytest.approx(0.05, abs=0.005)
    assert difference.low > 0.03, "each image is better, so no resample is worse"
    assert bootstrap(candidate).low < bootstrap(served).high, "the intervals alone do not tell"
    same = paired_difference(served, served)
    assert same.estimate == same.low == same.high == 0.0
    worse = paired_difference(served, candidate)
    assert worse.low == pytest.approx(-difference.high)


def test_resamples_without_any_object_say_nothing() -> None:
    nothing = np.array([[[9, 0], [0, 0]]] * 3)
    assert np.isnan(bootstrap(nothing).low)
    assert np.isnan(bootstrap(nothing).estimate)
    rare = np.concatenate([nothing, images_of([0.5])])
    assert bootstrap(rare).low == bootstrap(rare).high == 0.5


def test_no_images_and_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images to draw from"):
        bootstrap(np.zeros((0, 2, 2), np.int64))
    with pytest.raises(ValueError, match="not of the same images"):
        paired_difference(images_of([0.5]), images_of([0.5, 0.6]))
