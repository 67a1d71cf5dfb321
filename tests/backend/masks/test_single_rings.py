from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clickmask.masks.polygons import group_rings, mask_to_polygons, polygons_to_mask
from clickmask.masks.single_rings import join_holes, join_parts
from support import drawn


@given(st.integers(0, 10**6))
def test_holes_are_joined_without_changing_a_pixel(seed: int) -> None:
    noise = np.random.default_rng(seed).random((20, 28))
    mask = cv2.GaussianBlur(noise, (0, 0), 1.2) > 0.49
    for outer, holes in group_rings(mask_to_polygons(mask)):
        joined = join_holes(outer, holes)
        assert np.array_equal(
            polygons_to_mask([joined], mask.shape), polygons_to_mask([outer, *holes], mask.shape)
        )


def test_a_joined_hole_runs_the_other_way_round_so_that_it_stays_open() -> None:
    """Label Studio's canvas fills by the non-zero rule."""
    ((outer, holes),) = group_rings(mask_to_polygons(drawn.ring()))
    joined = join_holes(outer, holes)
    after = np.roll(joined, -1, axis=0)
    x, y = 30.25, 24.25  # in the hole
    crosses = (joined[:, 1] <= y) != (after[:, 1] <= y)
    (x0, y0), (x1, y1) = joined[crosses].T, after[crosses].T
    to_the_right = x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x
    assert np.sign(y1 - y0)[to_the_right].sum() == 0


@given(st.integers(0, 10**6))
def test_parts_are_joined_without_changing_a_pixel(seed: int) -> None:
    noise = np.random.default_rng(seed).random((20, 28))
    mask = cv2.GaussianBlur(noise, (0, 0), 1.2) > 0.52
    rings = [outer for outer, _ in group_rings(mask_to_polygons(mask))]
    if rings:
        joined = join_parts(rings)
        assert np.array_equal(polygons_to_mask([joined], mask.shape), polygons_to_mask(rings, mask.shape))
        assert len(joined) == sum(map(len, rings)) + 2 * (len(rings) - 1)


def test_one_part_needs_no_bridge() -> None:
    (ring,) = mask_to_polygons(drawn.disc())
    assert np.array_equal(join_parts([ring]), ring)
