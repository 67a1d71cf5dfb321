"""Quality of a segmentation of labelled images, from ONE confusion matrix over all of their pixels.

A label map is (H, W) of integers: 0 is the background, k the k-th label class. Pixels whose truth is `ignore`
do not count. Functions take one matrix or a stack, (..., K, K), so that images and resamples need no loop. A
class that is in neither truth nor prediction has no IoU and no Dice: NaN. Means leave it out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickmask.types import Mask

LabelMap = NDArray[np.integer]  # (H, W)
Confusion = NDArray[np.int64]  # (..., K, K) pixels: [true class, predicted class], background first
Values = NDArray[np.float64]
Metric = Callable[[Confusion], Values]  # (..., K, K) -> (...)

ROUNDS = 1000  # resamples of an interval
LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Interval:
    """A measured value, and percentiles of what other images of the same kind would have given."""

    estimate: float
    low: float
    high: float


def confusion_matrix(
    truth: LabelMap, prediction: LabelMap, classes: int, ignore: int | None = None
) -> Confusion:
    """(classes, classes) pixels; `classes` counts the background. Raises ValueError for maps of different
    shapes, or with a number that is not a class."""
    if truth.shape != prediction.shape:
        raise ValueError(f"a prediction of shape {prediction.shape} does not fit the truth's {truth.shape}")
    counted = counted_pixels(truth, ignore)
    true, predicted = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for numbers in (true, predicted):
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < classes):
            raise ValueError(f"labels {numbers.min()} to {numbers.max()} are not all below {classes} classes")
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def counted_pixels(truth: LabelMap, ignore: int | None) -> Mask:
    """(H, W) whether a pixel counts: its truth is not `ignore`."""
    return np.ones(truth.shape, np.bool_) if ignore is None else np.asarray(truth != ignore)


def iou(matrix: Confusion) -> Values:
    """(..., K) intersection over union of each class, background first."""
    both, true, predicted = _counts(matrix)
    return ratio(both, true + predicted - both)


def dice(matrix: Confusion) -> Values:
    """(..., K) Dice (F1) of each class, background first; 1 for identical masks of any class."""
    both, true, predicted = _counts(matrix)
    return ratio(2 * both, true + predicted)


def pixel_accuracy(matrix: Confusion) -> Values:
    """(...) share of the pixels, background included, with the right class; NaN without pixels."""
    return ratio(_counts(matrix)[0].sum(axis=-1), matrix.sum(axis=(-2, -1)))


def miou(matrix: Confusion, classes: Sequence[int] | None = None) -> Values:
    """(...) mean IoU of the classes in truth or prediction, NaN without any. `classes` are the numbers of
    those that count, by default all but the background."""
    chosen = range(1, matrix.shape[-1]) if classes is None else classes
    return mean_of_present(iou(matrix)[..., list(chosen)])


def miou_with_background(matrix: Confusion) -> Values:
    """(...) mean IoU with the background as one more class, which flatters if objects are small."""
    return mean_of_present(iou(matrix))


def absent_classes(matrix: Confusion) -> list[int]:
    """Numbers of the label classes of one (K, K) that are in neither truth nor prediction."""
    return [number for number, value in enumerate(iou(matrix)) if number and np.isnan(value)]


def per_image_miou(matrices: Confusion) -> float:
    """The mean of each image's own `miou`; `matrices` is (images, K, K). Images without any object, true or
    predicted, are left out. Small objects weigh more than in `miou`."""
    return float(mean_of_present(miou(matrices)))


def bootstrap(matrices: Confusion, metric: Metric = miou, *, seed: int = 0, level: float = LEVEL) -> Interval:
    """`metric` of `matrices` (images, K, K), and its percentile interval over images drawn with replacement
    (Efron: Bootstrap Methods, Annals of Statistics 1979)."""
    return _interval(metric(matrices.sum(axis=0)), _samples(matrices, metric, seed), level)


def paired_difference(candidate: Confusion, served: Confusion, metric: Metric = miou) -> Interval:
    """The lead of `candidate` over `served` on the same images, both (images, K, K). Both use the same
    resamples, so that an image that is hard for both cancels out."""
    if candidate.shape != served.shape:
        shapes = f"{candidate.shape} and {served.shape}"
        raise ValueError(f"matrices of shapes {shapes} are not of the same images")
    samples = _samples(candidate, metric) - _samples(served, metric)
    return _interval(metric(candidate.sum(axis=0)) - metric(served.sum(axis=0)), samples)


def _counts(matrix: Confusion) -> tuple[Confusion, Confusion, Confusion]:
    """(..., K) pixels of each class: in both, in the truth, in the prediction."""
    return np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Values:
    """`part` by `whole`; NaN if the whole is 0."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_of_present(values: Values) -> Values:
    """Mean over the last axis of the values that are not NaN; NaN if all are."""
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))


def _samples(matrices: Confusion, metric: Metric, seed: int = 0) -> Values:
    """(ROUNDS,) values of `metric` on resampled images; one seed draws the same ones of as many images."""
    images, classes, _ = matrices.shape
    if images == 0:
        raise ValueError("there are no images to draw from")
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=ROUNDS)
    return metric((draws @ matrices.reshape(images, classes**2)).reshape(-1, classes, classes))


def _interval(estimate: Values, samples: Values, level: float = LEVEL) -> Interval:
    """Percentiles of the samples, leaving out samples without any class."""
    known = samples[~np.isnan(samples)]
    bounds = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if known.size else (np.nan, np.nan)
    return Interval(float(estimate), *map(float, bounds))
