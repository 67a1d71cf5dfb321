"""Exact conversions between masks and polygons. Rings run along pixel edges, so integer vertices are pixel
corners. Foreground is 4-connected and background 8-connected: pixels that meet only in a corner are separate
objects."""

import math
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.masks.regions import as_bytes, box_slices
from clickmask.types import Mask, Point, Ring, Size

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Part = tuple[Ring, list[Ring]]  # an outer ring and its holes


def mask_to_polygons(mask: Mask) -> list[Ring]:
    """Outlines of `mask` along pixel edges, one closed ring each, with vertices only at the turns.

    The first point is not repeated. Outer rings have positive signed area (`ring_area`), holes negative,
    so the areas sum to `mask.sum()` and `polygons_to_mask` gives back `mask` exactly. Diagonal neighbours
    are separate objects. An empty mask has no rings.
    """
    inside = box_slices(mask)
    y, x, diagonal, below_right, below_left = _corners(as_bytes(mask[inside]))
    # Two pixels that meet diagonally share a corner, so that vertex is listed twice. In sorted order
    # corners 2i and 2i + 1 of a row (column) are the ends of one horizontal (vertical) run of edges.
    listed = np.repeat(np.arange(len(y)), 1 + diagonal)
    y, x, diagonal, below_right, below_left = (a[listed] for a in (y, x, diagonal, below_right, below_left))
    second = np.zeros(len(y), np.bool_)
    second[1:] = listed[1:] == listed[:-1]
    # The copies are (left, right) along the row. The upper run meets the left copy if the pixels lie on
    # the falling diagonal, the right copy if they lie on the rising one.
    down_order = np.lexsort((second ^ (diagonal & below_left), y, x))
    across = np.arange(len(y)) ^ 1
    down = np.empty_like(across)
    down[down_order] = down_order[np.arange(len(y)) ^ 1]
    # Rings keep the foreground on their right: along its top edge they run to the right (x grows).
    first = np.arange(0, len(y), 2)
    starts = np.where(below_right[first], first, first + 1)
    order, lengths = _cycles(starts, across, down)
    points = np.stack((x[order] + inside[1].start, y[order] + inside[0].start), axis=1).astype(np.float64)
    return np.split(points, np.cumsum(lengths)[:-1]) if lengths else []


def polygons_to_mask(rings: Sequence[Ring], size: Size) -> Mask:
    """The pixels of an image of `size` whose centre is in the polygon, by the even-odd rule.

    `rings` may have any direction, order and finite vertices, even outside the image; a hole is a ring in
    a ring. A centre exactly on an edge is inside if the polygon lies to its right (below it, if the edge
    is level). Exact: no rounding decides.
    """
    return toggles_to_mask(np.sort(ring_crossings(rings, size)[1]), size)


def ring_crossings(rings: Sequence[Ring], size: Size, *, by_column: bool = False) -> tuple[Indices, Indices]:
    """Toggles, at which even-odd membership in the flattened image of `size` changes: indices of their rings
    and pixels, unsorted. Sorted ones are in pairs, each a run of pixels inside. Those of two sets of rings,
    sorted together, are those of their symmetric difference, which gives IoUs without drawing. The image is
    flattened row by row, or `by_column`, which changes no pixel's membership."""
    height, width = size[::-1] if by_column else size
    lengths = np.array([len(ring) for ring in rings], np.int64)
    owner = np.repeat(np.arange(len(rings)), lengths)
    if not len(owner):
        return owner, owner
    start = np.concatenate(rings).T[:: -1 if by_column else 1]
    lengths = lengths[lengths > 0]
    after = np.arange(1, len(start[0]) + 1)
    after[np.cumsum(lengths) - 1] -= lengths
    (x0, y0), (x1, y1) = start, start[:, after]
    if not all(np.isfinite(a).all() for a in (x0, y0)):
        raise ValueError("a ring has a vertex that is not finite")
    # Upper end first, so that an edge shared by two rings crosses each row at the same float in both.
    upward = y1 < y0
    (x0, y0), (x1, y1) = np.where(upward, (x1, y1), (x0, y0)), np.where(upward, (x0, y0), (x1, y1))
    first = np.clip(np.ceil(y0 - 0.5), 0, height).astype(np.int64)
    count = np.maximum(np.clip(np.ceil(y1 - 0.5), 0, height).astype(np.int64) - first, 0)
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    # The column is the first pixel, in 0 .. width, whose centre is not left of the edge.
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge] - 0.5
    # Of a centre on a slanting edge, the side to its right counts. By column, that may be the side above.
    after_edge = (by_column & (x1 > x0))[edge]
    column = np.ceil(crossing)
    column[after_edge] = np.floor(crossing[after_edge]) + 1
    # For multiples of 1/256 px up to 2**14 px, the above is exact wherever it matters.
    corners = np.stack((x0, y0, x1, y1))
    coarse = ((corners * 256 == np.rint(corners * 256)) & (np.abs(corners) <= 2**14)).all(axis=0)
    scale = 1 + np.abs(corners).max(axis=0)
    doubtful = ~coarse[edge] & (np.abs(crossing - np.rint(crossing)) < 1e-9 * scale[edge])
    for index in np.flatnonzero(doubtful):
        ax, ay, bx, by = (Fraction(float(value)) for value in corners[:, edge[index]])
        exact = ax + (int(row[index]) + Fraction(1, 2) - ay) * (bx - ax) / (by - ay) - Fraction(1, 2)
        whole = math.floor(exact) + 1 if after_edge[index] else math.ceil(exact)
        column[index] = float(np.clip(whole, -1, width))
    return owner[edge], row * width + np.clip(column, 0, width).astype(np.int64)


def clip_ring(ring: Ring, size: Size) -> Ring:
    """The part of `ring` inside an image of `size`; `ring` itself if all of it is inside.

    By Sutherland and Hodgman ("Reentrant polygon clipping", 1974): parts of a ring stay joined along the
    image's edge. The spikes that this leaves on the edge are removed.
    """
    points: list[Point] = [(float(x), float(y)) for x, y in ring]
    for axis, bound, sign in ((0, 0, 1), (1, 0, 1), (0, size[1], -1), (1, size[0], -1)):
        depths = [sign * (point[axis] - bound) for point in points]  # inside the image's edge
        if min(depths, default=0) >= 0:
            continue
        kept: list[Point] = []
        for index, (point, depth) in enumerate(zip(points, depths, strict=True)):
            before, other = points[index - 1], depths[index - 1]
            if (depth < 0) != (other < 0):
                share = other / (other - depth)
                x, y = (a + (b - a) * share for a, b in zip(before, point, strict=True))
                kept.append((bound, y) if axis == 0 else (x, bound))
            if depth >= 0:
                kept.append(point)
        on_edge = [point[axis] == bound for point in kept]
        around = zip(on_edge[-1:] + on_edge[:-1], on_edge, on_edge[1:] + on_edge[:1], strict=True)
        # A vertex between two others on the same edge is the tip of a spike, or changes nothing.
        points = [point for point, near in zip(kept, around, strict=True) if not all(near)]
    return np.clip(np.array(points, np.float64).reshape(-1, 2), 0, size[::-1])


def ring_area(ring: Ring) -> float:
    """Signed area, half the sum of x[i] * y[i+1] - x[i+1] * y[i]; positive if clockwise on the screen."""
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


def group_rings(rings: Sequence[Ring]) -> list[Part]:
    """The outer rings (positive area), in order, each with the holes (negative area) it is the smallest ring
    around. Rings may touch but not cross. Raises ValueError for a hole outside every outer ring."""
    areas = np.array([ring_area(ring) for ring in rings])
    parts: dict[int, Part] = {index: (rings[index], []) for index in np.flatnonzero(areas > 0).tolist()}
    holes = [int(index) for index in np.flatnonzero(areas < 0)]
    owner = np.full(len(holes), -1)
    inner: list[Point] = []  # a point strictly inside each hole
    for index in holes:
        row = float(np.unique(rings[index][:, 1])[:2].mean())
        _, crossings = row_crossings(rings[index], np.roll(rings[index], -1, axis=0), row)
        inner.append((float(np.sort(crossings)[:2].mean()), row))
    x, y = np.array(inner).reshape(-1, 2).T
    for index in sorted(parts, key=areas.__getitem__):
        outer = rings[index]
        (x0, y0), (x1, y1) = outer.min(axis=0), outer.max(axis=0)
        free = (owner < 0) & (-areas[holes] <= areas[index]) & (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
        after = np.roll(outer, -1, axis=0)
        for hole in np.flatnonzero(free):
            _, crossings = row_crossings(outer, after, float(y[hole]))
            if np.count_nonzero(crossings <= x[hole]) % 2:
                owner[hole] = index
    if (owner < 0).any():
        raise ValueError(f"{np.count_nonzero(owner < 0)} of {len(holes)} holes lie in no outer ring")
    for hole, index in zip(holes, owner, strict=True):
        parts[int(index)][1].append(rings[hole])
    return list(parts.values())


def toggles_to_mask(toggles: Indices, size: Size) -> Mask:
    """The mask with the flat pixels from each even toggle to the next one set."""
    mask = np.zeros(size, np.bool_)
    flat = mask.reshape(-1)
    for start, end in toggles.reshape(-1, 2).tolist():
        flat[start:end] = True
    return mask


def _corners(mask: Bytes) -> tuple[Indices, Indices, Mask, Mask, Mask]:
    """The vertices where outlines turn, row by row: y, x, whether two pixels meet there diagonally, and
    whether the mask has the pixel below right and below left of it."""
    width = mask.shape[1]
    stride = (width + 2 + 7) // 8 * 8
    padded = as_bytes(cv2.copyMakeBorder(mask, 1, 1, 1, stride - width - 1, cv2.BORDER_CONSTANT, value=0))
    level = padded[1:] ^ padded[:-1]  # the horizontal edges
    # Edges are few, so eight pixels (a word) are tested at once. A run of horizontal edges that begins
    # in one word may end in the first pixel of the next.
    words = np.zeros(level.size // 8 + 1, np.bool_)
    np.not_equal(level.reshape(-1).view(np.uint64), 0, out=words[:-1])
    words[1:] |= words[:-1]
    vertex = (np.flatnonzero(words[:-1])[:, None] * 8 + np.arange(8)).reshape(-1)
    edges, below = level.reshape(-1), padded[1:].reshape(-1)
    here, before = edges[vertex] != 0, edges[vertex - 1] != 0
    right, left = below[vertex] != 0, below[vertex - 1] != 0
    diagonal = here & before & (right ^ left)
    turns = (here ^ before) | diagonal
    vertex = vertex[turns]
    return vertex // stride, vertex % stride - 1, diagonal[turns], right[turns], left[turns]


def _cycles(starts: Indices, across: Indices, down: Indices) -> tuple[Indices, list[int]]:
    """The corners, ring by ring, in alternating steps across (from `starts`) and down; and the number of
    corners of each ring."""
    after = np.full(len(across), -1)
    after[starts] = down[across[starts]]
    following: list[int] = after.tolist()
    order: list[int] = []
    lengths: list[int] = []
    corners: list[int] = starts.tolist()
    for corner in corners:
        before = len(order)
        while following[corner] >= 0:
            order.append(corner)
            following[corner], corner = -1, following[corner]
        if len(order) > before:
            lengths.append(2 * (len(order) - before))
    visited = np.array(order, np.int64)
    return np.stack((visited, across[visited]), axis=1).reshape(-1), lengths


def row_crossings(ring: Ring, after: Ring, y: float) -> tuple[Indices, Floats]:
    """The edges of the ring that cross the horizontal line at `y`, and where. `after`: each next vertex."""
    edges = np.flatnonzero((ring[:, 1] <= y) != (after[:, 1] <= y))
    (x0, y0), (x1, y1) = ring[edges].T, after[edges].T
    return edges, x0 + (y - y0) * (x1 - x0) / (y1 - y0)
