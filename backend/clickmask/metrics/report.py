"""All measures of one model on one side of a dataset."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from clickmask.metrics import confusion
from clickmask.metrics.boundary import TOLERANCE, boundary_f1, boundary_overlap
from clickmask.metrics.confusion import Confusion, Interval, LabelMap, Values


@dataclass(frozen=True)
class Report:
    """Measures of one model. Those by category leave out categories absent from both truth and prediction."""

    images: int
    miou: float  # from one confusion matrix; NaN if no category is present
    interval: Interval  # of `miou`, over images
    miou_with_background: float
    per_image_miou: float
    iou: Mapping[str, float]
    dice: Mapping[str, float]
    pixel_accuracy: float
    boundary_f1: float  # mean over categories of the means over images
    boundary_iou: float
    absent: tuple[str, ...]  # categories without any measure
    boundary_tolerance: float = TOLERANCE  # of boundary F1, as a share of the image's diagonal


@dataclass(frozen=True, eq=False)
class Measured:
    """A report, and the confusion matrix of each image, which model comparisons need."""

    report: Report
    matrices: Confusion  # (images, K, K)


def measure(
    pairs: Iterable[tuple[LabelMap, LabelMap]], categories: Sequence[str], *, ignore: int | None = None
) -> Measured:
    """Measure (truth, prediction) pairs. Label k of a map is the k-th of `categories`, 0 is background.
    Raises ValueError without any pairs."""
    classes = len(categories) + 1
    matrices: list[Confusion] = []
    f1: list[Values] = []
    overlap = np.zeros((classes, 2), np.int64)
    for truth, prediction in pairs:
        matrices.append(confusion.confusion_matrix(truth, prediction, classes, ignore))
        f1.append(boundary_f1(truth, prediction, classes, ignore))
        overlap += boundary_overlap(truth, prediction, classes, ignore)
    if not matrices:
        raise ValueError("there is nothing to measure")
    by_image = np.stack(matrices)
    whole = by_image.sum(axis=0)
    absent = confusion.absent_classes(whole)
    present = [(name, number) for number, name in enumerate(categories, 1) if number not in absent]
    iou, dice = confusion.iou(whole), confusion.dice(whole)
    report = Report(
        images=len(matrices),
        miou=float(confusion.miou(whole)),
        interval=confusion.bootstrap(by_image),
        miou_with_background=float(confusion.miou_with_background(whole)),
        per_image_miou=confusion.per_image_miou(by_image),
        iou={name: float(iou[number]) for name, number in present},
        dice={name: float(dice[number]) for name, number in present},
        pixel_accuracy=float(confusion.pixel_accuracy(whole)),
        boundary_f1=float(confusion.mean_of_present(confusion.mean_of_present(np.stack(f1).T)[1:])),
        boundary_iou=float(confusion.mean_of_present(confusion.ratio(overlap[1:, 0], overlap[1:, 1]))),
        absent=tuple(categories[number - 1] for number in absent),
    )
    return Measured(report, by_image)


def report_to_json(report: Report) -> dict[str, Any]:
    """The report as plain values, with None for NaN."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in cast("dict[str, object]", value).items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return cast("dict[str, Any]", plain(asdict(report)))
