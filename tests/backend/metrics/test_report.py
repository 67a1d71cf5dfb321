from __future__ import annotations

import numpy as np
import pytest

from clickmask.metrics.report import measure
from support.drawn import disc, rectangle

SIZE = (60, 80)
CATEGORIES = ("cell", "debris", "scratch")


def test_a_report_has_every_number_of_a_split_and_says_what_is_absent() -> None:
    truth = np.zeros(SIZE, np.uint8)
    truth[disc(SIZE, (25, 30), 15)] = 1
    truth[rectangle(SIZE, (50, 10, 70, 50))] = 2
    half = truth.copy()
    half[30:][half[30:] == 2] = 0
    measured = measure([(truth, truth), (truth, half)], CATEGORIES)
    report = measured.report
    assert report.images == 2
    assert report.iou == {"cell": 1.0, "debris": 0.75}
    assert report.dice["debris"] == pytest.approx(6 / 7)
    assert report.miou == report.interval.estimate == 0.875
    assert report.interval.low == 0.75
    assert report.interval.high == 1.0
    assert report.per_image_miou == (1.0 + 0.75) / 2
    assert report.pixel_accuracy == 1 - 400 / (2 * 60 * 80)
    assert report.absent == ("scratch",)
    assert report.miou_with_background > report.miou
    assert 0.8 < report.boundary_f1 < 1
    assert 0.5 < report.boundary_iou < report.boundary_f1
    assert measured.matrices.shape == (2, 4, 4)
    assert measured.matrices.sum() == 2 * 60 * 80


def test_what_is_ignored_is_in_no_number() -> None:
    truth, wrong = np.zeros(SIZE, np.uint8), np.ones(SIZE, np.uint8)
    truth[:, :40] = 1
    truth[:, 40:] = 255
    report = measure([(truth, wrong)], ("cell",), ignore=255).report
    assert report.miou == report.pixel_accuracy == report.boundary_f1 == 1.0


def test_a_split_without_objects_has_no_miou_and_one_without_images_is_refused() -> None:
    nothing = np.zeros(SIZE, np.uint8)
    report = measure([(nothing, nothing)], CATEGORIES).report
    assert np.isnan([report.miou, report.boundary_f1, report.boundary_iou, report.per_image_miou]).all()
    assert report.iou == {}
    assert report.absent == CATEGORIES
    with pytest.raises(ValueError, match="nothing to measure"):
        measure([], CATEGORIES)
