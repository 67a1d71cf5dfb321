from __future__ import annotations

import numpy as np
import pytest

from clickmask.metrics.boundary import BAND, TOLERANCE, boundary_f1, boundary_overlap
from clickmask.types import Mask
from support.drawn import disc, rectangle

SIZE = (60, 80)  # a diagonal of 100 px: 1 px of tolerance, a band of 2 px


def labels(mask: Mask, number: int = 1) -> np.ndarray:
    return mask.astype(np.uint8) * number


def test_the_tolerance_and_the_band_are_those_of_the_papers() -> None:
    assert TOLERANCE * 100 <= 1
    assert BAND * 100 == 2


def test_the_same_outline_is_met_and_another_class_is_not_there() -> None:
    truth = labels(disc(SIZE, (40, 30), 20), 2)
    f1 = boundary_f1(truth, truth, 4)
    assert f1[0] == f1[2] == 1.0
    assert np.isnan(f1[[1, 3]]).all()
    overlap = boundary_overlap(truth, truth, 4)
    assert overlap[2, 0] == overlap[2, 1] > 0
    assert not overlap[[1, 3]].any()


def test_an_outline_one_pixel_off_is_met() -> None:
    truth = labels(rectangle(SIZE, (20, 20, 60, 40)))
    assert boundary_f1(truth, labels(rectangle(SIZE, (21, 20, 61, 40))), 2)[1] == 1.0
    # one more down, a corner of each is 1.4 px from the other outline
    assert boundary_f1(truth, labels(rectangle(SIZE, (21, 21, 61, 41))), 2)[1] == pytest.approx(115 / 116)


def test_precision_and_recall_are_shares_of_outlines_by_hand() -> None:
    truth = labels(rectangle(SIZE, (20, 20, 60, 40)))  # an outline of 2 * 40 + 2 * 18 = 116 px
    longer = labels(rectangle(SIZE, (20, 20, 70, 40)))  # 136 px, 10 columns further to the right
    # Of the longer one, the left side (18), and of the long sides the columns 20 to 60 (2 * 41) are
    # near; of the true one all but its right side, whose ends are 1 px from the long sides (16).
    precision, recall = (18 + 2 * 41) / 136, (116 - 16) / 116
    assert boundary_f1(truth, longer, 2)[1] == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_class_in_one_of_the_maps_only_is_missed() -> None:
    thing, nothing = labels(rectangle(SIZE, (20, 20, 60, 40))), np.zeros(SIZE, np.uint8)
    assert boundary_f1(thing, nothing, 2)[1] == 0.0
    assert boundary_f1(nothing, thing, 2)[1] == 0.0
    assert boundary_overlap(nothing, thing, 2)[1, 0] == 0


def test_masks_of_the_whole_image_have_no_boundary_and_agree() -> None:
    everything = np.ones(SIZE, np.uint8)
    assert boundary_f1(everything, everything, 2)[1] == 1.0
    half = labels(rectangle(SIZE, (0, 0, 40, 60)))
    assert boundary_f1(half, everything, 2)[1] == 0.0


def test_a_band_is_two_pixels_inside_the_outline_and_along_the_edge_of_the_image() -> None:
    inner = labels(rectangle(SIZE, (20, 20, 40, 40)))
    assert boundary_overlap(inner, inner, 2)[1].tolist() == [20**2 - 16**2] * 2
    corner = labels(rectangle(SIZE, (0, 0, 20, 20)))
    assert boundary_overlap(corner, corner, 2)[1].tolist() == [20**2 - 16**2] * 2
    wider = labels(rectangle(SIZE, (18, 18, 42, 42)))  # bands of 2 px beside each other
    assert boundary_overlap(inner, wider, 2)[1].tolist() == [0, 20**2 - 16**2 + 24**2 - 20**2]


def test_ignored_pixels_are_of_no_boundary() -> None:
    truth = labels(rectangle(SIZE, (20, 20, 60, 40)))
    wrong = truth.copy()
    wrong[:10] = 1
    assert boundary_f1(truth, wrong, 2)[1] < 1
    truth[:14] = 255
    assert boundary_f1(truth, wrong, 2, ignore=255)[1] == 1.0
    overlap = boundary_overlap(truth, wrong, 2, ignore=255)
    assert overlap[1, 0] == overlap[1, 1]
