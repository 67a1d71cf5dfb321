from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.labels import geometry
from clickmask.labels.geometry import (
    Brush,
    Ellipse,
    Geometry,
    Polygon,
    Rectangle,
    geometry_from_json,
    geometry_to_json,
    geometry_to_rle,
    rasterise,
    rectangle_corners,
)
from clickmask.masks.rle import mask_to_rle
from clickmask.types import Size
from support.drawn import MASKS, disc, ellipse, rectangle

SIZE = (48, 64)
numbers = st.floats(-200, 200, allow_nan=False).map(lambda value: round(value, 3))
points = st.tuples(numbers, numbers)
lengths = st.floats(0.01, 90).map(lambda value: round(value, 3))
geometries: st.SearchStrategy[Geometry] = st.one_of(
    st.sampled_from(list(MASKS.values())).map(lambda draw: Brush(mask_to_rle(draw()))),
    st.lists(st.lists(points, min_size=3, max_size=6).map(tuple), min_size=1, max_size=3).map(
        lambda rings: Polygon(tuple(rings))
    ),
    st.builds(Rectangle, st.tuples(numbers, numbers, numbers, numbers), numbers),
    st.builds(Ellipse, points, st.tuples(lengths, lengths), numbers),
)


def test_a_polygon_that_goes_to_and_fro_more_often_than_any_outline_is_refused() -> None:
    size = (4000, 4000)
    for often, swapped in ((600, False), (600, True)):
        ring = tuple((float(n % 7), 4000.0 * (n % 2)) for n in range(often))
        turned = Polygon((tuple((y, x) for x, y in ring) if swapped else ring,))
        for draw in (rasterise, geometry_to_rle):
            with pytest.raises(ValueError, match="cross 2400000 rows"):
                draw(turned, size)
    assert rasterise(Polygon((((0, -1e9), (9, 1e9), (9, -1e9)),)), size).any()  # what lies outside is free


def centres(size: Size) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return x, y


@given(geometries)
def test_a_geometry_survives_json(geometry: Geometry) -> None:
    assert geometry_from_json(json.loads(json.dumps(geometry_to_json(geometry)))) == geometry


def test_an_unknown_kind_of_geometry_is_refused() -> None:
    with pytest.raises(ValueError, match="'spline'"):
        geometry_from_json({"kind": "spline"})


@pytest.mark.parametrize("name", MASKS)
def test_a_brush_is_its_own_mask(name: str) -> None:
    mask = MASKS[name]()
    assert np.array_equal(rasterise(Brush(mask_to_rle(mask)), (mask.shape[0], mask.shape[1])), mask)


def test_a_brush_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        rasterise(Brush(mask_to_rle(disc())), (48, 65))


def test_a_hole_is_a_ring_in_a_ring() -> None:
    outer, hole = rectangle(SIZE, (5, 6, 30, 40)), rectangle(SIZE, (10, 11, 20, 22))
    rings = (((5, 6), (30, 6), (30, 40), (5, 40)), ((10, 11), (10, 22), (20, 22), (20, 11)))
    assert np.array_equal(rasterise(Polygon(rings), SIZE), outer & ~hole)


def test_an_upright_rectangle_covers_its_pixels() -> None:
    assert np.array_equal(rasterise(Rectangle((5, 6, 30, 40)), SIZE), rectangle(SIZE, (5, 6, 30, 40)))
    assert rasterise(Rectangle((60, 40, 90, 90)), SIZE).sum() == 4 * 8


@given(st.tuples(numbers, numbers), st.tuples(lengths, lengths), numbers)
def test_a_turned_rectangle_covers_the_centres_inside(
    centre: tuple[float, float], lengths: tuple[float, float], degrees: float
) -> None:
    (x, y), (across, down) = centre, lengths
    turned = Rectangle((x - across / 2, y - down / 2, x + across / 2, y + down / 2), degrees)
    columns, rows = centres(SIZE)
    angle = np.deg2rad(degrees)
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    doubt = (np.abs(np.abs(u) - across / 2) < 1e-6) | (np.abs(np.abs(v) - down / 2) < 1e-6)
    inside = (np.abs(u) < across / 2) & (np.abs(v) < down / 2)
    assert np.array_equal(rasterise(turned, SIZE) | doubt, inside | doubt)


def test_a_rectangle_turns_clockwise_about_its_centre() -> None:
    corners = rectangle_corners(Rectangle((10, 10, 30, 20), 90))
    assert np.allclose(corners, [(25, 5), (25, 25), (15, 25), (15, 5)])


@given(st.tuples(numbers, numbers), st.tuples(lengths, lengths), numbers)
def test_an_ellipse_covers_the_centres_inside(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float
) -> None:
    found = rasterise(Ellipse(centre, radii, degrees), SIZE)
    wider, narrower = (
        ellipse(SIZE, centre, (radii[0] * (1 + step), radii[1] * (1 + step)), degrees)
        for step in (1e-6, -1e-6)
    )
    assert not (narrower & ~found).any()
    assert not (found & ~wider).any()


def test_a_large_ellipse_takes_little_more_memory_than_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    size, shape = (600, 500), Ellipse((250.3, 290.7), (240.0, 280.0), 30.0)
    whole = rasterise(shape, size)
    monkeypatch.setattr(geometry, "PIXELS_AT_ONCE", 5000)
    tracemalloc.start()
    try:
        in_strips = rasterise(shape, size)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(in_strips, whole)
    assert most < 3 * whole.nbytes


@given(st.tuples(numbers, numbers), st.tuples(lengths, lengths), st.sampled_from([0, 90, 45]) | numbers)
def test_an_ellipse_has_the_run_lengths_of_its_pixels(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float
) -> None:
    shape = Ellipse(centre, radii, degrees)
    assert geometry_to_rle(shape, SIZE) == mask_to_rle(rasterise(shape, SIZE))


def test_an_ellipse_without_area_is_empty() -> None:
    assert not rasterise(Ellipse((10, 10), (0, 5)), SIZE).any()


halves = st.integers(-6, 40).map(lambda n: n / 2)


@given(
    st.tuples(halves, halves, halves, halves),
    st.sampled_from([0.0, 30.0]),
    st.tuples(*[st.integers(1, 12)] * 2),
)
def test_the_run_lengths_of_a_rectangle_are_those_of_its_pixels(
    box: tuple[float, float, float, float], rotation: float, size: Size
) -> None:
    drawn = Rectangle(box, rotation)
    assert geometry_to_rle(drawn, size) == mask_to_rle(rasterise(drawn, size))


@pytest.mark.parametrize(
    "geometry",
    [
        Polygon(()),
        Polygon((((2.0, 2.0), (12.0, 2.0), (7.0, 11.0)), ((5.0, 4.0), (9.0, 4.0), (7.0, 7.0)))),
        Ellipse((8, 6), (5, 3), 20.0),
        Brush(mask_to_rle(disc((20, 30), (12.0, 9.0), 5.0))),
    ],
)
def test_run_lengths_of_other_shapes_are_those_of_their_pixels(geometry: Geometry) -> None:
    assert geometry_to_rle(geometry, (20, 30)) == mask_to_rle(rasterise(geometry, (20, 30)))
    if isinstance(geometry, Brush):
        with pytest.raises(ValueError, match="does not fit"):
            geometry_to_rle(geometry, (20, 31))


@pytest.mark.parametrize("far", [1e10, 1e300, np.inf, np.nan])
def test_shapes_far_beyond_any_image_are_refused(far: float) -> None:
    shapes = [
        Polygon((((0.0, 0.0), (far, 5.0), (5.0, 9.0)),)),
        Rectangle((0.0, 0.0, far, 5.0)),
        Rectangle((0.0, 0.0, far, 5.0), 30.0),
        Ellipse((far, 5.0), (3.0, 3.0)),
        Ellipse((5.0, 5.0), (far, 3.0)),
    ]
    for shape in shapes:
        with pytest.raises(ValueError, match="coordinates beyond"):
            geometry_to_rle(shape, (20, 30))
    assert not rasterise(Ellipse((5.0, 5.0), (1e-300, 3.0)), (20, 30)).any()
