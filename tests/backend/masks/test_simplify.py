from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from benchmarks.bench_simplify import fewest_by_approx, many_masks
from clickmask.masks.outlines import contacts
from clickmask.masks.polygons import group_rings, mask_to_polygons, polygons_to_mask, ring_area
from clickmask.masks.regions import mask_iou
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask
from support import drawn

masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=14))
drawn_masks = pytest.mark.parametrize("draw", drawn.MASKS.values(), ids=drawn.MASKS)


def assert_kept(mask: Mask, min_iou: float) -> None:
    simplified = simplify_mask(mask, min_iou)
    assert simplified.iou == mask_iou(polygons_to_mask(simplified.rings, mask.shape), mask)
    assert simplified.iou >= min_iou
    assert simplified.bound_met
    assert simplified.points == sum(map(len, simplified.rings)) <= sum(map(len, mask_to_polygons(mask)))


@drawn_masks
@pytest.mark.parametrize("min_iou", [0.6, 0.98, 1.0])
def test_the_iou_asked_for_is_kept_and_that_reported_is_that_of_the_rings(draw: Any, min_iou: float) -> None:
    assert_kept(draw(), min_iou)


@settings(max_examples=40)
@given(masks, st.sampled_from([0.5, 0.9, 0.98, 1.0]))
def test_any_mask_keeps_the_iou_asked_for(mask: Mask, min_iou: float) -> None:
    assert_kept(mask, min_iou)


@drawn_masks
def test_a_limit_on_points_goes_before_the_bound_and_says_so(draw: Any) -> None:
    mask = draw()
    for limit in (3, 5, 9, 40):
        simplified = simplify_mask(mask, max_points=limit)
        assert simplified.points <= limit
        assert simplified.iou == mask_iou(polygons_to_mask(simplified.rings, mask.shape), mask)
        assert simplified.bound_met or simplified.points < simplify_mask(mask).points
        assert contacts(simplified.rings) == []


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    free, limited = simplify_mask(drawn.disc()), simplify_mask(drawn.disc(), max_points=500)
    assert limited.bound_met
    assert np.array_equal(free.rings[0], limited.rings[0])


def test_holes_and_parts_are_kept() -> None:
    parts = group_rings(simplify_mask(drawn.ring_in_ring()).rings)
    assert [len(holes) for _, holes in parts] == [1, 1, 0]
    for ring, exact in zip(
        simplify_mask(drawn.ring_in_ring()).rings, mask_to_polygons(drawn.ring_in_ring()), strict=True
    ):
        assert ring_area(ring) * ring_area(exact) > 0
        assert mask_iou(polygons_to_mask([ring], (64, 64)), polygons_to_mask([exact], (64, 64))) >= 0.9


def test_few_points_are_enough_for_simple_shapes() -> None:
    assert simplify_mask(drawn.full()).points == 4
    assert simplify_mask(drawn.disc((600, 600), (300, 300), 250)).points <= 12
    assert simplify_mask(drawn.disc()).points <= 12


def test_an_empty_mask_is_simple() -> None:
    simplified = simplify_mask(drawn.empty())
    assert (simplified.rings, simplified.iou, simplified.points, simplified.bound_met) == ([], 1.0, 0, True)


def test_bounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.2"):
        simplify_mask(drawn.disc(), 1.2)
    with pytest.raises(ValueError, match="triangle"):
        simplify_mask(drawn.disc(), max_points=2)


@pytest.mark.parametrize(
    ("rings", "expected"),
    [
        ([[(0, 0), (4, 0), (4, 4), (0, 4)]], []),
        ([[(0, 0), (4, 4), (4, 0), (0, 4)]], [(0, 0)]),  # a bow tie
        ([[(0, 0), (8, 0), (8, 4), (4, 0), (0, 4)]], [(0, 0)]),  # a vertex on an edge
        ([[(0, 0), (8, 0), (5, 0), (5, 4)]], [(0, 0)]),  # an edge that folds back on another
        ([[(0, 0), (9, 0), (9, 9), (0, 9)], [(2, 2), (2, 5), (5, 5), (5, 2)]], []),  # one in another
        ([[(0, 0), (9, 0), (9, 9), (0, 9)], [(5, 5), (12, 5), (12, 12)]], [(0, 1)]),
        ([[(0, 0), (2, 0), (2, 2), (0, 2)], [(2, 2), (4, 2), (4, 4), (2, 4)]], [(0, 1)]),  # corner to corner
        ([[(0, 0), (2, 0), (2, 2)], [(3, 0), (5, 0), (5, 2)]], []),
    ],
)
def test_contacts_are_found(rings: list[list[tuple[int, int]]], expected: list[tuple[int, int]]) -> None:
    assert contacts([np.array(ring, float) for ring in rings]) == expected


def assert_fewer_points_than_approx(count: int) -> None:
    """On masks of all sizes and kinds never more points at the same IoU, and 10 % fewer on average."""
    shares: list[float] = []
    for kind, mask in many_masks(count):
        simplified = simplify_mask(mask)
        points, iou, _ = fewest_by_approx(mask, 0.98)
        assert simplified.bound_met
        assert mask_iou(polygons_to_mask(simplified.rings, mask.shape), mask) >= 0.98
        assert simplified.points <= points, f"{kind} {mask.shape}: approxPolyDP reaches {iou:.4f}"
        assert contacts(simplified.rings) == []
        shares.append(simplified.points / points)
    assert np.mean(shares) <= 0.9


def test_fewer_points_than_approx_on_40_masks() -> None:
    assert_fewer_points_than_approx(40)


@pytest.mark.slow
def test_fewer_points_than_approx_on_200_masks() -> None:
    assert_fewer_points_than_approx(200)


def test_noise_and_an_endless_row_keep_their_exact_rings_instead_of_a_thread_for_minutes() -> None:
    noise = np.random.default_rng(0).random((330, 330)) < 0.5
    row = np.ones((1, 300_000), np.bool_)
    for mask in (noise, row):
        simplified = simplify_mask(mask)
        assert simplified.bound_met and simplified.iou >= 0.98
        assert (polygons_to_mask(simplified.rings, mask.shape) != mask).mean() <= 0.02
    assert simplified.rings[0].shape == (4, 2)


def test_a_limit_is_kept_on_a_mask_of_hundreds_of_parts() -> None:
    specks = np.zeros((120, 120), np.bool_)
    specks[::4, ::4] = specks[1::4, ::4] = True
    assert 3 <= simplify_mask(specks, max_points=60).points <= 60
