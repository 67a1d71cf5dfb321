"""Shapes that annotators draw, in image coordinates, and the pixels they cover."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clickmask.masks.polygons import clip_ring, polygons_to_mask
from clickmask.masks.regions import PIXELS_AT_ONCE
from clickmask.masks.rle import (
    Indices,
    Rle,
    box_to_rle,
    mask_to_rle,
    polygons_to_rle,
    rle_to_mask,
    toggles_to_rle,
)
from clickmask.masks.single_rings import join_parts
from clickmask.types import Box, Mask, Point, Ring, Size

# Each takes 70 bytes and, at worst, 10 microseconds. The longest outlines that people draw have 100,000.
MAX_CROSSINGS = 2**21
MAX_COORDINATE = 1e9  # beyond it, products of coordinates are no longer exact
MIN_RADIUS = 1e-9  # of an ellipse that may cover a pixel


@dataclass(frozen=True)
class Brush:
    """A mask that was painted, or accepted as a mask; also a bit mask."""

    rle: Rle


@dataclass(frozen=True)
class Polygon:
    """Closed rings without a repeated first point. Even-odd rule: a hole is a ring inside a ring."""

    rings: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Rectangle:
    """`box` turned clockwise about its centre by `rotation` degrees."""

    box: Box
    rotation: float = 0.0


@dataclass(frozen=True)
class Ellipse:
    """Semi-axes `radii` along x and y, turned clockwise about `centre` by `rotation` degrees."""

    centre: Point
    radii: tuple[float, float]
    rotation: float = 0.0


Geometry = Brush | Polygon | Rectangle | Ellipse
ELLIPSE_POINTS = 48  # of a polygon instead: an IoU of .998 with a large ellipse


def drawn_ring(geometry: Geometry, size: Size) -> Ring | None:
    """The ring of a rectangle or of a polygon with one ring, clipped to an image of `size`, else None."""
    match geometry:
        case Polygon((ring,)) if len(ring) >= 3:
            return clip_ring(np.array(ring, np.float64), size)
        case Rectangle():
            return clip_ring(np.array(rectangle_corners(geometry)), size)
        case _:
            return None


def near_ring(geometry: Geometry, size: Size) -> Ring | None:
    """One ring that covers about what an ellipse or a polygon of several rings does, clipped to an image of
    `size`; None for other geometries, and outside the image. A polygon's rings are joined by bridges of no
    width; an ellipse has ELLIPSE_POINTS points and keeps its area."""
    match geometry:
        case Polygon(rings) if len(rings) > 1:
            clipped = [clip_ring(np.array(ring, np.float64).reshape(-1, 2), size) for ring in rings]
            inside = [ring for ring in clipped if len(ring) >= 3]
            return join_parts(inside) if inside else None
        case Ellipse(centre, radii, rotation):
            angles = np.arange(ELLIPSE_POINTS) * (2 * np.pi / ELLIPSE_POINTS)
            wider = (angles[1] / np.sin(angles[1])) ** 0.5
            points = wider * np.array(radii) * np.stack((np.cos(angles), np.sin(angles)), axis=1)
            ring = clip_ring(points @ _clockwise(rotation).T + np.array(centre), size)
            return ring if len(ring) >= 3 else None
        case _:
            return None


def geometry_to_rle(geometry: Geometry, size: Size) -> Rle:
    """The RLE of `rasterise(geometry, size)`, drawn only if it must be. Raises what that raises."""
    match geometry:
        case Brush(rle) if tuple(rle["size"]) == size:
            return rle
        case Polygon(rings):
            return polygons_to_rle(_drawable(rings, size), size)
        case Rectangle(box, rotation):
            _require_near((*box, rotation))
            if not rotation:
                return box_to_rle(box, size)
            return polygons_to_rle(_drawable([rectangle_corners(geometry)], size), size)
        case Ellipse():
            return _ellipse_to_rle(geometry, size)
        case _:
            return mask_to_rle(rasterise(geometry, size))


def rasterise(geometry: Geometry, size: Size) -> Mask:
    """A new mask of the pixels whose centre is in `geometry`. Raises ValueError for an unfit brush, a polygon
    that goes to and fro more often than any outline, and for coordinates beyond any image."""
    match geometry:
        case Brush(rle):
            if tuple(rle["size"]) != size:
                raise ValueError(f"a brush of size {rle['size']} does not fit an image of {list(size)}")
            return rle_to_mask(rle)
        case Polygon(rings):
            return polygons_to_mask(_drawable(rings, size), size)
        case Rectangle(box, rotation):
            _require_near((*box, rotation))
            return polygons_to_mask(_drawable([rectangle_corners(geometry)], size), size)
        case Ellipse((centre_x, centre_y), (across, down), rotation):
            _require_near((centre_x, centre_y, across, down, rotation))
            mask = np.zeros(size, np.bool_)
            if min(across, down) < MIN_RADIUS:
                return mask
            reach_x, reach_y = _reach(geometry)
            rows, columns = (
                slice(max(0, int(np.floor(at - reach))), max(0, min(length, int(np.ceil(at + reach)))))
                for at, reach, length in ((centre_y, reach_y, size[0]), (centre_x, reach_x, size[1]))
            )
            x = np.arange(columns.start, columns.stop)
            step = max(1, PIXELS_AT_ONCE // max(1, len(x)))
            for top in range(rows.start, rows.stop, step):  # its numbers take 40 times as much memory
                strip = slice(top, min(top + step, rows.stop))
                mask[strip, columns] = _inside(geometry, x, np.arange(strip.start, strip.stop)[:, None])
            return mask


def rectangle_corners(rectangle: Rectangle) -> list[Point]:
    """The four corners, clockwise, starting at the one that is top left before the rotation."""
    x0, y0, x1, y1 = rectangle.box
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if rectangle.rotation:
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        corners = centre + (corners - centre) @ _clockwise(rectangle.rotation).T
    return [(float(x), float(y)) for x, y in corners]


def geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    """Lists, numbers and text, keyed by `kind` and the field names."""
    match geometry:
        case Brush(rle):
            return {"kind": "brush", "rle": {"size": list(rle["size"]), "counts": rle["counts"]}}
        case Polygon(rings):
            return {"kind": "polygon", "rings": [[list(point) for point in ring] for ring in rings]}
        case Rectangle(box, rotation):
            return {"kind": "rectangle", "box": list(box), "rotation": rotation}
        case Ellipse(centre, radii, rotation):
            return {"kind": "ellipse", "centre": list(centre), "radii": list(radii), "rotation": rotation}


def geometry_from_json(written: Mapping[str, Any]) -> Geometry:
    """The inverse of `geometry_to_json`. Raises ValueError for an unknown kind."""
    match written["kind"]:
        case "brush":
            return Brush(cast("Rle", written["rle"]))
        case "polygon":
            return Polygon(tuple(tuple((x, y) for x, y in ring) for ring in written["rings"]))
        case "rectangle":
            x0, y0, x1, y1 = written["box"]
            return Rectangle((x0, y0, x1, y1), written["rotation"])
        case "ellipse":
            (x, y), (across, down) = written["centre"], written["radii"]
            return Ellipse((x, y), (across, down), written["rotation"])
        case kind:
            raise ValueError(f"{kind!r} is no kind of geometry")


def _reach(ellipse: Ellipse) -> NDArray[np.float64]:
    """Half of its upright bounding box, along x and y."""
    return np.hypot(*(_clockwise(ellipse.rotation) * ellipse.radii).T)


def _inside(ellipse: Ellipse, columns: Indices, rows: Indices) -> NDArray[np.bool_]:
    """Which of these pixels have their centre in the ellipse."""
    turn, (across, down) = _clockwise(ellipse.rotation), ellipse.radii
    x, y = columns + 0.5 - ellipse.centre[0], rows + 0.5 - ellipse.centre[1]
    u, v = turn[0, 0] * x + turn[1, 0] * y, turn[0, 1] * x + turn[1, 1] * y
    return (u / across) ** 2 + (v / down) ** 2 <= 1


def _ellipse_to_rle(ellipse: Ellipse, size: Size) -> Rle:
    """The RLE of `rasterise`, from the ends of each column's run, which are searched for."""
    _require_near((*ellipse.centre, *ellipse.radii, ellipse.rotation))
    (centre_x, centre_y), (across, down) = ellipse.centre, ellipse.radii
    if min(across, down) < MIN_RADIUS:
        return box_to_rle((0, 0, 0, 0), size)
    reach_x, reach_y = _reach(ellipse)
    left, right = max(0, int(centre_x - reach_x) - 1), min(size[1], int(centre_x + reach_x) + 2)
    columns: Indices = np.arange(left, max(left, right))
    # In each column, the ellipse is deepest at `middle`: a pixel beside it is inside, or none is.
    turn = _clockwise(ellipse.rotation) / (across, down)
    slope = -(turn[0] @ turn[1]) / (turn[1] @ turn[1])
    middle: Indices = np.floor(slope * (columns + 0.5 - centre_x) + centre_y - 0.5).astype(np.int64)
    middle += ~_inside(ellipse, columns, middle)
    crossed = _inside(ellipse, columns, middle)
    columns, middle = columns[crossed], middle[crossed]
    ends: list[Indices] = []
    for outside in (int(centre_y - reach_y) - 3, int(centre_y + reach_y) + 3):
        inner: Indices = middle
        outer: Indices = np.full(len(middle), outside, np.int64)
        while (np.abs(outer - inner) > 1).any():
            half: Indices = (inner + outer) // 2
            is_in = _inside(ellipse, columns, half)
            inner, outer = np.where(is_in, half, inner), np.where(is_in, outer, half)
        ends.append(inner)
    starts = columns * size[0]
    first, last = (each.clip(0, size[0]) for each in (ends[0], ends[1] + 1))
    return toggles_to_rle(np.concatenate((starts + first, starts + last)), size)


def _drawable(rings: Sequence[Sequence[Point]], size: Size) -> list[Ring]:
    """The rings as arrays. Raises ValueError if their edges cross more than MAX_CROSSINGS rows or columns of
    pixels of an image of `size`, each counted as often as it is crossed, and for `_require_near`."""
    found = [np.array(ring, np.float64).reshape(-1, 2) for ring in rings]
    for ring in found:
        _require_near(ring)
    inside = (np.clip(ring, 0, size[::-1]) for ring in found)
    crossed = sum(np.abs(ring - np.roll(ring, 1, axis=0)).sum(axis=0) for ring in inside)
    if np.max(crossed) > MAX_CROSSINGS:
        raise ValueError(f"a polygon whose edges cross {np.max(crossed):.0f} rows or columns of pixels")
    return found


def _require_near(numbers: ArrayLike) -> None:
    """Raise ValueError for coordinates that are not finite, or too far outside of any image."""
    if not np.abs(numbers).max(initial=0) <= MAX_COORDINATE:
        raise ValueError(f"a shape with coordinates beyond {MAX_COORDINATE:.0e} pixels")


def _clockwise(degrees: float) -> NDArray[np.float64]:
    """Rotation matrix for (x, y) with y down, clockwise on the screen."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin], [sin, cos]])
