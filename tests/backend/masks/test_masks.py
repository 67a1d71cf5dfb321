from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from pycocotools import mask as coco

from clickmask.masks.polygons import clip_ring, group_rings, mask_to_polygons, polygons_to_mask, ring_area
from clickmask.masks.regions import (
    draw_above,
    fill_pinholes,
    keep_parts,
    mask_area,
    mask_box,
    mask_coverage,
    mask_iou,
)
from clickmask.masks.rle import Rle, mask_to_rle, polygons_to_rle, rings_to_rles, rle_overlap, rle_to_mask
from clickmask.types import Mask, Ring, Size
from support import drawn
from support.growth import grows_linearly

masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=14))
drawn_masks = pytest.mark.parametrize("draw", drawn.MASKS.values(), ids=drawn.MASKS)
# pycocotools 2.0.x returns arrays in a way that numpy 2 is going to drop.
pycocotools_decodes = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def coordinates() -> st.SearchStrategy[float]:
    """Pixel corners and centres, where ties are, as well as anything in between."""
    return st.one_of(
        st.integers(-3, 15).map(float),
        st.integers(-6, 30).map(lambda n: n / 2),
        st.floats(-3, 15),
    )


polygons = st.lists(
    st.lists(st.tuples(coordinates(), coordinates()), min_size=1, max_size=7), max_size=3
).map(lambda rings: [np.array(ring) for ring in rings])


def centres_in(rings: list[Ring], size: Size) -> Mask:
    """The definition, in fractions: of all edges a ray from the centre to the left meets an odd number."""
    mask = np.zeros(size, bool)
    for (row, column), _ in np.ndenumerate(mask):
        x, y = column + Fraction(1, 2), row + Fraction(1, 2)
        for ring in rings:
            corners = [(Fraction(float(a)), Fraction(float(b))) for a, b in ring]
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                    mask[row, column] ^= True
    return mask


def pycocotools_fill(rings: list[Ring], size: Size) -> NDArray[Any]:
    """What pycocotools makes of each ring alone, outer rings minus holes."""
    total = np.zeros(size, np.int64)
    for ring in rings:
        filled = coco.decode(coco.frPyObjects([ring.ravel().tolist()], *size))[:, :, 0]
        total += int(np.sign(ring_area(ring))) * filled.astype(np.int64)
    return total


@given(masks)
def test_a_mask_comes_back_from_its_polygons(mask: Mask) -> None:
    assert np.array_equal(polygons_to_mask(mask_to_polygons(mask), mask.shape), mask)


@drawn_masks
def test_a_drawn_mask_comes_back_from_its_polygons(draw: Any) -> None:
    assert np.array_equal(polygons_to_mask(mask_to_polygons(draw()), draw().shape), draw())


@pycocotools_decodes
@given(masks)
def test_pycocotools_fills_the_rings_to_the_same_mask(mask: Mask) -> None:
    assert np.array_equal(pycocotools_fill(mask_to_polygons(mask), mask.shape), mask)


@given(masks)
def test_areas_of_outer_rings_and_holes_sum_to_the_area_of_the_mask(mask: Mask) -> None:
    assert sum(map(ring_area, mask_to_polygons(mask))) == mask.sum() == mask_area(mask)


@given(masks)
def test_each_part_has_one_outer_ring_and_each_hole_one_ring(mask: Mask) -> None:
    areas = [ring_area(ring) for ring in mask_to_polygons(mask)]
    parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)[0] - 1
    holes = (
        cv2.connectedComponents(np.pad(1 - mask.view(np.uint8), 1, constant_values=1), connectivity=8)[0] - 2
    )
    assert (sum(area > 0 for area in areas), sum(area < 0 for area in areas)) == (parts, holes)


@given(masks)
def test_every_vertex_is_a_turn_at_a_pixel_corner(mask: Mask) -> None:
    for ring in mask_to_polygons(mask):
        steps = np.roll(ring, -1, axis=0) - ring
        assert np.array_equal(ring, np.rint(ring))
        level = steps[:, 1] == 0
        assert np.array_equal(level, steps[:, 0] != 0)
        assert np.array_equal(level, ~np.roll(level, 1))


def test_a_pixel_has_four_corners_that_run_clockwise_on_the_screen() -> None:
    (ring,) = mask_to_polygons(drawn.pixel())
    assert ring.dtype == np.float64
    assert ring.tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]]
    assert ring_area(ring) == 1


def test_the_whole_image_has_the_outline_of_the_image() -> None:
    (ring,) = mask_to_polygons(drawn.full())
    assert sorted(ring.tolist()) == [[0, 0], [0, 12], [17, 0], [17, 12]]


def test_an_empty_mask_has_no_rings_no_box_and_no_parts() -> None:
    assert mask_to_polygons(drawn.empty()) == group_rings([]) == []
    assert not keep_parts(drawn.empty()).any()
    assert mask_box(drawn.empty()) is None
    assert not polygons_to_mask([], (3, 4)).any()


def test_diagonal_neighbours_are_separate_outlines() -> None:
    assert [len(ring) for ring in mask_to_polygons(drawn.diagonal())] == [4, 4]
    assert [len(ring) for ring in mask_to_polygons(drawn.diagonal()[:, ::-1])] == [4, 4]


def test_masks_that_are_views_are_read_as_they_look() -> None:
    mask = drawn.two_parts()[::-1, ::2]
    assert np.array_equal(polygons_to_mask(mask_to_polygons(mask), mask.shape), mask)
    assert np.array_equal(rle_to_mask(mask_to_rle(mask.T)), mask.T)


@given(polygons, st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_a_pixel_is_in_a_polygon_if_its_centre_is(rings: list[Ring], size: Size) -> None:
    assert np.array_equal(polygons_to_mask(rings, size), centres_in(rings, size))
    assert polygons_to_rle(rings, size) == mask_to_rle(centres_in(rings, size))
    assert rings_to_rles(rings, size) == [polygons_to_rle([ring], size) for ring in rings]


def test_a_centre_next_to_an_edge_is_told_apart_beyond_the_precision_of_floats() -> None:
    # The edges cross centres at 1/3 of their way, up to the rounding of 1/3 and 2/3.
    for shift in (-(2.0**-52), 0.0, 2.0**-52):
        rings = [np.array([(-1 / 3 + shift, 0.0), (2 / 3 + shift, 1.5), (9.0, 1.5), (9.0, 0.0)])]
        assert np.array_equal(polygons_to_mask(rings, (2, 3)), centres_in(rings, (2, 3)))


def test_neighbours_that_share_an_edge_cover_each_pixel_once() -> None:
    a, b, c, d = (0.3, 0.1), (31.7, 2.9), (27.1, 22.8), (2.2, 19.4)
    left, right, both = (np.array(ring) for ring in ([a, b, d], [d, b, c], [a, b, c, d]))
    masks = [polygons_to_mask([ring], (24, 32)) for ring in (left, right)]
    assert not (masks[0] & masks[1]).any()
    assert np.array_equal(masks[0] | masks[1], polygons_to_mask([both], (24, 32)))


def test_polygons_are_cut_at_the_edges_of_the_image() -> None:
    assert polygons_to_mask([np.array([(-5, -5), (40, -5), (40, 40), (-5, 40)])], (6, 7)).all()
    assert not polygons_to_mask([np.array([(8, 0), (40, 0), (40, 40), (8, 40)])], (6, 7)).any()


def test_a_vertex_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        polygons_to_mask([np.array([(0, 0), (np.nan, 1), (2, 2)])], (3, 3))


@given(masks)
def test_a_mask_comes_back_from_its_rle(mask: Mask) -> None:
    rle = mask_to_rle(mask)
    assert np.array_equal(rle_to_mask(rle), mask)
    assert rle_to_mask(rle).flags.c_contiguous


@given(masks)
def test_the_rle_is_that_of_pycocotools(mask: Mask) -> None:
    rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    assert mask_to_rle(mask) == {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pycocotools_decodes
def test_long_runs_are_read_as_pycocotools_reads_them() -> None:
    mask = np.zeros((700, 900), bool)
    mask[:, 100:850] = mask[3:5, :7] = True
    mask[600:, 400:403] = False
    rle = mask_to_rle(mask)
    assert np.array_equal(rle_to_mask(rle), mask)
    assert np.array_equal(coco.decode(rle), mask)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 2], "counts": mask_to_rle(drawn.disc())["counts"]},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "P"},  # says that more follows
        {"size": [2, 2], "counts": " !"},
        {"size": [2, 2], "counts": "o" * 40 + "1"},
        {"size": [2, 2], "counts": "5O"},  # 5 pixels, then -1
    ],
)
def test_run_lengths_that_do_not_fit_their_size_are_refused(rle: Rle) -> None:
    with pytest.raises(ValueError, match="RLE"):
        rle_to_mask(rle)


def test_the_box_is_that_of_the_outer_edges() -> None:
    assert mask_box(drawn.line()) == (4.0, 9.0, 25.0, 10.0)


def test_iou_is_the_ratio_of_the_areas() -> None:
    a, b = drawn.rectangle((9, 9), (0, 0, 6, 4)), drawn.rectangle((9, 9), (2, 0, 8, 4))
    assert mask_iou(a, b) == 16 / 32
    assert mask_iou(a, ~a) == 0
    assert mask_iou(drawn.empty(), drawn.empty()) == 1
    with pytest.raises(ValueError, match="shapes"):
        mask_iou(a, drawn.disc())


def parts_of(mask: Mask) -> list[Mask]:
    """The connected parts, largest first."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    return sorted((labels == label for label in range(1, count)), key=lambda part: -part.sum())


@given(masks, st.floats(0, 1), st.none() | st.integers(1, 5))
def test_the_larger_parts_stay_and_all_others_go(mask: Mask, min_share: float, most: int | None) -> None:
    before = mask.copy()
    kept = keep_parts(mask, min_share, most)
    assert np.array_equal(mask, before)
    parts = parts_of(mask)
    large = [part for part in parts if part.sum() >= min_share * mask.sum()] or parts[:1]
    stayed, went = parts_of(kept), parts_of(mask & ~kept)
    assert [part.sum() for part in stayed] == [part.sum() for part in large[:most]]
    assert {part.tobytes() for part in stayed + went} == {part.tobytes() for part in parts}


@given(masks, st.integers(0, 8))
def test_pinholes_are_filled_and_all_else_stays(mask: Mask, max_area: int) -> None:
    before = mask.copy()
    count, labels = cv2.connectedComponents(
        np.pad(~mask, 1, constant_values=True).view(np.uint8), connectivity=8
    )
    holes = [labels[1:-1, 1:-1] == label for label in range(1, count) if label != labels[0, 0]]
    small = [hole for hole in holes if hole.sum() <= max_area]
    assert np.array_equal(fill_pinholes(mask, max_area), np.any([mask, *small], axis=0))
    assert np.array_equal(mask, before)


def test_a_bay_cut_off_by_the_edge_of_the_image_is_no_pinhole() -> None:
    mask = drawn.full()
    mask[0, 3] = mask[5, 5] = False
    filled = fill_pinholes(mask, 100)
    assert filled[5, 5]
    assert not filled[0, 3]


def test_rings_are_grouped_with_the_holes_of_their_own_part() -> None:
    parts = group_rings(mask_to_polygons(drawn.ring_in_ring()))
    assert [len(holes) for _, holes in parts] == [1, 1, 0]
    assert (
        sum(ring_area(outer) + sum(map(ring_area, holes)) for outer, holes in parts)
        == drawn.ring_in_ring().sum()
    )


@given(masks)
def test_grouped_rings_are_the_parts_of_the_mask(mask: Mask) -> None:
    grouped = [
        polygons_to_mask([outer, *holes], mask.shape) for outer, holes in group_rings(mask_to_polygons(mask))
    ]
    assert sorted(part.tobytes() for part in grouped) == sorted(part.tobytes() for part in parts_of(mask))


def test_a_hole_outside_of_every_outer_ring_is_refused() -> None:
    outer, hole = mask_to_polygons(drawn.ring())
    with pytest.raises(ValueError, match="no outer ring"):
        group_rings([outer, hole + 100])


@given(st.integers(0, 10**6), st.integers(3, 9))
def test_a_clipped_ring_covers_the_same_pixels_and_stays_in_the_image(seed: int, count: int) -> None:
    ring, size = np.random.default_rng(seed).uniform(-20, 40, (count, 2)), (12, 17)
    clipped = clip_ring(ring, size)
    assert np.array_equal(polygons_to_mask([clipped], size), polygons_to_mask([ring], size))
    assert (clipped >= 0).all()
    assert (clipped <= (17, 12)).all()


def test_many_spikes_are_no_more_work_each_than_few() -> None:
    def clip(count: int) -> None:
        spikes = [(5.0, 5.0)] + [(20.0 + number % 3, number % 9) for number in range(count)]
        assert len(clip_ring(np.array(spikes), (12, 17))) == 3

    assert grows_linearly(clip, 500)


def test_clipping_leaves_no_spike_along_the_edge() -> None:
    prong = [
        (10.0, 4.0),
        (20.0, 4.0),
        (20.0, -9.0),
        (30.0, -9.0),
        (30.0, 30.0),
        (20.0, 30.0),
        (20.0, 6.0),
        (10.0, 6.0),
    ]
    assert clip_ring(np.array(prong), (12, 17)).tolist() == [[10, 4], [17, 4], [17, 6], [10, 6]]


@given(st.sampled_from(sorted(drawn.MASKS)), st.sampled_from(sorted(drawn.MASKS)))
def test_what_two_run_lengths_share_is_counted_without_drawing(one: str, other: str) -> None:
    a, b = drawn.MASKS[one](), drawn.MASKS[other]()
    if a.shape == b.shape:
        assert rle_overlap(mask_to_rle(a), mask_to_rle(b)) == (a & b).sum()


def test_a_large_mask_is_drawn_and_shrunk_in_parts_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((17, 23)).astype(np.float32)
    whole, parts = np.zeros((2, 150, 200), np.bool_)
    draw_above(values, 0.0, whole)
    coverage = mask_coverage(whole, (31, 22))
    monkeypatch.setattr("clickmask.masks.regions.PIXELS_AT_ONCE", 1000)
    draw_above(values, 0.0, parts)
    assert (whole == parts).all() and whole.any()
    np.testing.assert_allclose(mask_coverage(whole, (31, 22)), coverage, atol=1e-5)
