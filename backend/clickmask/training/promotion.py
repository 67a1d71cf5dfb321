"""Whether a newly trained model takes the place of the one in service. No torch.

Both are measured anew on today's validation images, so neither is judged by other images than the
other. What is hard for both cancels out: the images are resampled for both alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickmask.datasets.snapshot import IGNORED, Dataset, Sample, class_map
from clickmask.errors import ModelDamaged, SegmenterNotReady
from clickmask.images.decode import ImageLimits, decode_image
from clickmask.labels.split import MIN_SPLIT_IMAGES
from clickmask.metrics.confusion import (
    Confusion,
    LabelMap,
    iou,
    miou,
    miou_with_background,
    paired_difference,
)
from clickmask.metrics.report import Measured, measure, report_to_json
from clickmask.models.labeller import Labeller, open_labeller
from clickmask.models.versions import Models
from clickmask.training.cross_validation import Heartbeat
from clickmask.types import Pixels

log = logging.getLogger(__name__)

MAX_MIOU_LOSS = 0.02  # of mIoU: how far below no difference the lower bound may be
MAX_CLASS_IOU_LOSS = 0.05  # of IoU: how far no class may fall
MIN_IMAGES_FOR_INTERVAL = 20  # images; with fewer an interval says little, and the difference itself decides


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reason: str  # a sentence


def decide(
    candidate: Confusion,
    served: Confusion | None,
    categories: Sequence[str],
    shared: Sequence[str] = (),
) -> Decision:
    """Compare (images, K, K) matrices over the background and `categories`, of the same images in one order.

    `shared` are the categories that both models know; by them they are compared. `served` None is
    the first version: it must be better than to find nothing. So must one that shares no category
    with its predecessor, as nothing else can be said of it. Raises ValueError without images.
    """
    if not len(candidate):
        raise ValueError("there is no validation image to judge a model by")
    compared = [number for number, category in enumerate(categories, 1) if category in shared]
    if served is None or not compared:
        return _against_background(candidate)
    if candidate.shape != served.shape:
        raise ValueError(f"matrices of {candidate.shape} and {served.shape} are not of the same images")
    ours, theirs = (iou(matrices.sum(axis=0))[compared] for matrices in (candidate, served))
    falls = {categories[number - 1]: theirs[at] - ours[at] for at, number in enumerate(compared)}
    fallen = {
        category: fall for category, fall in falls.items() if fall > MAX_CLASS_IOU_LOSS
    }  # NaN is not above
    difference = paired_difference(candidate, served, partial(miou, classes=compared))
    said = (
        f"mIoU {float(miou(candidate.sum(axis=0), compared)):.3f} against "
        f"{float(miou(served.sum(axis=0), compared)):.3f} on {len(candidate)} validation images"
    )
    if np.isnan(difference.estimate):
        return Decision(False, f"not promoted: none of {', '.join(shared)} is in the validation images")
    if fallen:
        worst = max(fallen, key=lambda category: fallen[category])
        return Decision(
            False,
            f"not promoted: {worst} falls by {fallen[worst]:.3f}, more than {MAX_CLASS_IOU_LOSS}; {said}",
        )
    if len(candidate) < MIN_IMAGES_FOR_INTERVAL:
        promoted = bool(difference.estimate >= 0)
        said += f", too few for an interval: the difference is {difference.estimate:+.3f}"
    else:
        promoted = bool(difference.low >= -MAX_MIOU_LOSS)
        said += f", the difference is {difference.low:+.3f} to {difference.high:+.3f}"
    return Decision(promoted, f"{'' if promoted else 'not '}promoted: {said}")


def _against_background(candidate: Confusion) -> Decision:
    """With the background counted: noise finds a little of every class, and spoils the rest."""
    whole = candidate.sum(axis=0)
    nothing = np.zeros_like(whole)
    nothing[:, 0] = whole.sum(axis=1)
    ours, theirs = float(miou_with_background(whole)), float(miou_with_background(nothing))
    said = (
        f"the first of its kind has a mIoU, with the background, of {ours:.3f}; "
        f"to find nothing has {theirs:.3f}, on {len(candidate)} validation images"
    )
    promoted = ours > theirs
    return Decision(promoted, f"{'' if promoted else 'not '}promoted: {said}")


CROSS_VALIDATION = "cross-validation"  # in place of a side, in a report
Part = tuple[Labeller, Sequence[Sample]]  # a network, and pictures that it has not seen


class Measuring:
    """At the pictures' full size."""

    def __init__(self, dataset: Dataset, limits: ImageLimits, beat: Heartbeat) -> None:
        self.categories = dataset.categories
        self._dataset, self._limits, self._beat = dataset, limits, beat

    def pixels(self, sample: Sample) -> Pixels:
        return decode_image(self._dataset.pictures.read(sample.image), self._limits).pixels

    def measure(self, parts: Iterable[Part], numbers: NDArray[np.uint8] | None = None) -> Measured:
        """All parts together; `numbers` are the dataset's classes for those of another model."""

        def pairs() -> Iterator[tuple[LabelMap, LabelMap]]:
            for labeller, samples in parts:
                for sample in samples:
                    self._beat()
                    found = labeller.label(self.pixels(sample)).classes
                    truth = class_map(sample, self.categories, self._dataset.unlabelled)
                    yield truth, found if numbers is None else numbers[found]

        return measure(pairs(), self.categories, ignore=IGNORED)


def report_scores(
    measuring: Measuring,
    candidate: Labeller,
    test: Sequence[Sample],
    others: Sequence[Part],
) -> dict[str, Any]:
    """The numbers to go by: of the test side, or of networks like this one on all that few pictures."""
    if others:
        found, split = measuring.measure(others), CROSS_VALIDATION
        said = (
            f"too few: a test side of {found.report.images} images says little (from {MIN_SPLIT_IMAGES} "
            "on it counts), "
            f"so the numbers are those of {len(others)} networks on images that they were not trained on"
        )
        return {"split": split, **report_to_json(found.report), "too_few": said}
    return {"split": "test", **report_to_json(measuring.measure([(candidate, test)]).report)}


def compare(measuring: Measuring, ours: Measured, samples: Sequence[Sample], models: Models) -> Decision:
    """Against the model in service; what it finds that is no category any more is background."""
    categories = measuring.categories
    try:
        with models.lock_served() as served:
            labeller = open_labeller(served.network) if served else None
    except (ModelDamaged, SegmenterNotReady) as error:  # any model is better than one that cannot run
        log.error("%s", error)
        served = labeller = None
    if served is None or labeller is None:
        decision = decide(ours.matrices, None, categories)
    else:
        known = served.provenance.categories
        places = {category: number for number, category in enumerate(categories, 1)}
        numbers = np.array([0, *(places.get(category, 0) for category in known)], np.uint8)
        theirs = measuring.measure([(labeller, samples)], numbers)
        shared = sorted(set(known) & set(categories))
        decision = decide(ours.matrices, theirs.matrices, categories, shared)
    log.info("%s", decision.reason)
    return decision
