"""The gate that decides whether a newly trained model replaces the served one. No torch. Both are measured on
today's validation images, resampled alike, so what is hard for both cancels out."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from clickmask.datasets.snapshot import IGNORED, Dataset, Sample, class_map
from clickmask.errors import Failed, NotReady
from clickmask.images.decode import ImageLimits, decode_image
from clickmask.labels.split import MIN_HELD_OUT, MIN_SPLIT_IMAGES
from clickmask.metrics.confusion import Confusion, iou, miou, miou_with_background, paired_difference
from clickmask.metrics.report import Measured, measure, report_to_json
from clickmask.models.labeller import Labeller, open_labeller
from clickmask.models.versions import Models
from clickmask.training.crops import Labels
from clickmask.types import Pixels

log = logging.getLogger(__name__)

MAX_MIOU_LOSS = 0.02  # how far below zero the interval of the mIoU difference may reach
MAX_CLASS_IOU_LOSS = 0.05  # how far the IoU of any class may fall
MIN_IMAGES_FOR_INTERVAL = 20  # with fewer images an interval says little, and the difference decides
MIN_FIRST_IOU = 0.3  # of the best category of a first model: below it, people would redraw every object
MIN_FIRST_STEPS = 20  # of a first model: before, the learning rate is still rising to its peak
LABEL_MORE = "Accept more labels, then train again"

Part = tuple[Labeller, Sequence[Sample]]  # a network, and pictures it was not trained on


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reason: str  # a sentence
    advice: str = ""  # what to do next, as a sentence; empty if it is promoted


def decide(
    candidate: Confusion,
    served: Confusion | None,
    categories: Sequence[str],
    shared: Sequence[str] = (),
    steps: int = MIN_FIRST_STEPS,
) -> Decision:
    """Compare two models by their (images, K, K) matrices of the same images in the same order.

    K counts the background and `categories`. Only `shared` categories, known to both, are compared. A first
    version (`served` is None), or one that shares none, must beat finding nothing. That alone is easy, so it
    must also have learnt for MIN_FIRST_STEPS of `steps`, and reach MIN_FIRST_IOU in a category: nine steps
    had an IoU of .17 and .47, and beat nothing by .09. Raises ValueError without images.
    """
    if not len(candidate):
        raise ValueError("there is no validation image to judge a model by")
    compared = [number for number, category in enumerate(categories, 1) if category in shared]
    ours, images = candidate.sum(axis=0), f"on {len(candidate)} validation images"
    if served is None or not compared:
        # compare with an empty answer, including the background: noise finds a little of every class
        nothing = np.zeros_like(ours)
        nothing[:, 0] = ours.sum(axis=1)
        found, empty = float(miou_with_background(ours)), float(miou_with_background(nothing))
        best = float(np.nan_to_num(iou(ours)[1:]).max(initial=0))
        promoted = found > empty and best >= MIN_FIRST_IOU and steps >= MIN_FIRST_STEPS
        said = f"the first of its kind has a mIoU, with the background, of {found:.3f}; "
        said += f"to find nothing has {empty:.3f}, {images}"
        advice = "Accept more labels, or raise CLICKMASK_TRAIN_SECONDS, then train again"
        if steps < MIN_FIRST_STEPS:
            said = f"it learnt for only {steps} of at least {MIN_FIRST_STEPS} steps; {said}"
            advice = "Raise CLICKMASK_TRAIN_SECONDS, then train again"
        elif found > empty and not promoted:
            said = f"it has barely learnt: no category reaches an IoU of {MIN_FIRST_IOU}; {said}"
    elif candidate.shape != served.shape:
        raise ValueError(f"matrices of {candidate.shape} and {served.shape} are not of the same images")
    else:
        theirs = served.sum(axis=0)
        falls = zip(compared, (iou(theirs) - iou(ours))[compared], strict=True)
        fallen = {number: fall for number, fall in falls if fall > MAX_CLASS_IOU_LOSS}  # NaN is not larger
        difference = paired_difference(candidate, served, partial(miou, classes=compared))
        said = f"mIoU {float(miou(ours, compared)):.3f} against {float(miou(theirs, compared)):.3f} {images}"
        advice = f"The model that is served stays. {LABEL_MORE}"
        if np.isnan(difference.estimate):
            promoted, said = False, f"none of {', '.join(shared)} is in the validation images"
            advice = f"The model that is served stays. {LABEL_MORE}: new images go to validation, too"
        elif fallen:
            promoted, worst = False, max(fallen, key=lambda number: fallen[number])
            fall = f"{categories[worst - 1]} falls by {fallen[worst]:.3f}"
            said = f"{fall}, more than {MAX_CLASS_IOU_LOSS}; {said}"
            few = f"Accept more labels of {categories[worst - 1]}"
            advice = f"The model that is served stays. {few}, then train again"
        elif len(candidate) < MIN_IMAGES_FOR_INTERVAL:
            promoted = difference.estimate >= 0
            said += f", too few for an interval: the difference is {difference.estimate:+.3f}"
        else:
            promoted = difference.low >= -MAX_MIOU_LOSS
            said += f", the difference is {difference.low:+.3f} to {difference.high:+.3f}"
    return Decision(promoted, f"{'' if promoted else 'not '}promoted: {said}", "" if promoted else advice)


class Measuring:
    """Measurements of models on a dataset's pictures, at full size."""

    def __init__(self, dataset: Dataset, limits: ImageLimits, heartbeat: Callable[[], None]) -> None:
        self.categories = dataset.categories
        self._dataset, self._limits, self._heartbeat = dataset, limits, heartbeat

    def pixels(self, sample: Sample) -> Pixels:
        return decode_image(self._dataset.pictures.read(sample.image), self._limits).pixels

    def measure(self, parts: Iterable[Part], numbers: Labels | None = None) -> Measured:
        """Measure all parts together. `numbers` maps another model's classes to the dataset's."""

        def pairs() -> Iterator[tuple[Labels, Labels]]:
            for labeller, samples in parts:
                for sample in samples:
                    self._heartbeat()
                    found = labeller.predict(self.pixels(sample)).classes
                    truth = class_map(sample, self.categories, self._dataset.unlabelled)
                    yield truth, found if numbers is None else numbers[found]

        return measure(pairs(), self.categories, ignore=IGNORED)


def report_scores(
    measuring: Measuring, candidate: Labeller, test: Sequence[Sample], others: Sequence[Part]
) -> dict[str, Any]:
    """Scores on the test side; if it is too small, those of `others` on pictures new to them."""
    if others:
        found = measuring.measure(others).report
        said = f"too few: a test side of {len(test)} of {found.images} images says little (it counts from "
        said += f"{MIN_HELD_OUT} of {MIN_SPLIT_IMAGES} on), so the numbers are those of {len(others)} "
        said += "networks on images that they were not trained on"
        return {"split": "cross-validation", **report_to_json(found), "too_few": said}
    return {"split": "test", **report_to_json(measuring.measure([(candidate, test)]).report)}


def compare(
    measuring: Measuring, ours: Measured, samples: Sequence[Sample], models: Models, steps: int
) -> Decision:
    """Compare a new model, trained for `steps`, with the served one, whose categories that no longer exist
    count as background."""
    categories = measuring.categories
    try:
        with models.lock_served() as served:
            labeller = open_labeller(served.network) if served else None
    except (Failed, NotReady) as error:  # any model is better than one that cannot run
        log.error("%s", error)
        served = labeller = None
    theirs, known = None, served.provenance.categories if served else ()
    if labeller:
        places = {category: number for number, category in enumerate(categories, 1)}
        numbers = np.array([0, *(places.get(category, 0) for category in known)], np.uint8)
        theirs = measuring.measure([(labeller, samples)], numbers).matrices
    decision = decide(ours.matrices, theirs, categories, sorted(set(known) & set(categories)), steps)
    log.info("%s", decision.reason)
    return decision
