from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from clickmask.types import Mask
from clickmask_adapters.tools.cvat.mask_points import mask_to_crop, mask_to_points, points_to_mask
from support.drawn import MASKS, rectangle

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))


@settings(deadline=None)
@given(masks)
def test_points_give_the_mask_back(mask: Mask) -> None:
    assert (points_to_mask(mask_to_points(mask), mask.shape) == mask).all()


@settings(deadline=None)
@given(masks)
def test_points_give_the_mask_back_when_they_return_as_floats(mask: Mask) -> None:
    floats = [float(number) for number in mask_to_points(mask)]
    assert (points_to_mask(floats, mask.shape) == mask).all()


@pytest.mark.slow
@settings(deadline=None)
@given(masks)
def test_points_are_those_of_cvats_own_sdk(mask: Mask) -> None:
    oracle = pytest.importorskip("cvat_sdk.masks")
    points = mask_to_points(mask)
    assert points == oracle.encode_mask(mask)
    height, width = mask.shape
    assert (oracle.decode_mask(points, image_width=width, image_height=height) == mask).all()


@pytest.mark.parametrize("draw", MASKS.values(), ids=MASKS)
def test_a_drawn_mask_comes_back_from_its_points(draw: Callable[[], Mask]) -> None:
    mask = draw()
    assert (points_to_mask(mask_to_points(mask), mask.shape) == mask).all()


def test_points_are_runs_from_zero_row_by_row_then_the_inclusive_box() -> None:
    """The stored mask of the contract, section 1.4: a block, and one with its first pixels cut."""
    block = rectangle((100, 100), (20, 10, 60, 40))
    assert mask_to_points(block) == [0, 1200, 20, 10, 59, 39]
    block[10:15, 20:30] = False
    assert mask_to_points(block) == [10, 30, 10, 30, 10, 30, 10, 30, 10, 1030, 20, 10, 59, 39]
    one = np.array([[False, False, False], [False, True, False]])
    assert mask_to_points(one) == [0, 1, 1, 1, 1, 1]


def test_an_empty_mask_is_one_unset_pixel() -> None:
    assert mask_to_points(np.zeros((7, 9), bool)) == [1, 0, 0, 0, 0]


def test_every_size_from_a_pixel_to_a_photo_comes_back() -> None:
    for size in ((1, 1), (1, 4000), (4000, 1), (3000, 4000), (1023, 1025)):
        mask = np.zeros(size, bool)
        mask[size[0] // 3 : -(size[0] // 4) or None, size[1] // 5 :] = True
        mask[-1, -1] = mask[0, 0] = True
        assert (points_to_mask(mask_to_points(mask), size) == mask).all()


def test_a_view_of_any_layout_is_read_as_it_looks() -> None:
    mask = rectangle((8, 12), (2, 3, 7, 5))
    for view in (mask.T, mask[::-1], mask[:, ::2], np.asfortranarray(mask)):
        assert (points_to_mask(mask_to_points(view), view.shape) == view).all()


@settings(deadline=None)
@given(masks.filter(np.any))
def test_a_crop_is_the_tightest_that_holds_the_mask(mask: Mask) -> None:
    crop, (left, top, right, bottom) = mask_to_crop(mask)
    assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
    whole = np.zeros_like(mask)
    whole[top : bottom + 1, left : right + 1] = crop
    assert (whole == mask).all()


@pytest.mark.parametrize(
    "points",
    [
        [],
        [1, 0, 0, 0],
        [2, 0, 0, 0, 0],
        [0, 4, 3, 3, 4, 4],  # the image ends at column 3
        [0, 1, -1, 0, -1, 0],
        [0, 1, 2, 2, 1, 1],  # upside down
        [3, -2, 0, 0, 0, 0],
        [0.5, 0.5, 0, 0, 0, 0],
        [float("nan"), 0, 0, 0, 0],
        [float("inf"), 0, 0, 0, 0],
        [2**53, 0, 0, 0, 0],
        [10**30, 0, 0, 0, 0],
        [10**400, 0, 0, 0, 0],
        [2**62, 2**62, 2**62, 2**62, 1, 0, 0, 0, 0],  # the sum of the runs overflows to 1
        ["1", 0, 0, 0, 0],
        [None, 0, 0, 0, 0],
        [True, False, False, False, False],
        [[1], 0, 0, 0, 0],
        [[1, 0, 0, 0, 0]],
        ["x" * 10**6, *[0] * 10**5],  # NumPy would take 400 GB for it
        10**12,
        "text",
        {"0": 1},
    ],
)
def test_points_that_are_no_mask_are_refused(points: Any) -> None:
    with pytest.raises(ValueError, match=r" "):
        points_to_mask(points, (4, 4))


@settings(deadline=None)
@given(st.lists(st.integers(-3, 20) | st.floats(), max_size=12))
def test_points_are_read_as_cvats_sdk_reads_them_or_refused(points: list[float]) -> None:
    try:
        mask = points_to_mask(points, (5, 4))
    except ValueError:
        return
    assert mask.shape == (5, 4) and mask.sum() == sum(points[1:-4:2])


def test_a_mask_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        mask_to_points(np.zeros((0, 4), bool))
