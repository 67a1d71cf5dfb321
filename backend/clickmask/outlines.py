"""Rings with fewer and fewer vertices: area-preserving collapse, fitting to a boundary, contacts.

All rings are worked on at once, as one array of vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Ring

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Points = NDArray[np.float64]  # (N, 2) of (x, y)


@dataclass(frozen=True, eq=False)
class Chain:
    """The vertices of several rings, ring after ring."""

    points: Points
    ring: Indices  # (N,) of each vertex; not decreasing
    at: Floats  # (N,) where on the boundary the vertex stands, in samples from its ring's first
    spent: Floats  # (R,) area that collapses displaced, of each ring

    def rings(self) -> list[Ring]:
        """One array a ring; of rings that have lost all vertices, an empty one."""
        return np.split(self.points, np.searchsorted(self.ring, np.arange(1, len(self.spent))))


@dataclass(frozen=True, eq=False)
class Boundary:
    """The points that outlines are fitted to: the middles of the pixel edges they ran along."""

    points: Points
    ring: Indices  # (N,) not decreasing
    first: Indices  # (R + 1,) of each ring, then the end


def mid_edges(rings: Sequence[Ring], stride: int = 1) -> Boundary:
    """The middles of every `stride`-th pixel edge that `rings` (of `mask_to_polygons`) run along.

    All of them joined up hold the same pixel centres as the rings, never touch each other, and make
    of a digitised straight line nearly a straight line. Short rings are not thinned out.
    """
    corners = np.concatenate(rings)
    ring = np.repeat(np.arange(len(rings)), [len(r) for r in rings])
    step = corners[_after(ring)] - corners
    length = np.abs(step).sum(axis=1).astype(np.int64)
    run = np.repeat(np.arange(len(length)), length)
    along = np.arange(len(run)) - np.repeat(np.cumsum(length) - length, length) + 0.5
    points = corners[run] + (step / length[:, None])[run] * along[:, None]
    ring = ring[run]
    first = np.searchsorted(ring, np.arange(len(rings) + 1))
    kept = ((np.arange(len(ring)) - first[ring]) % stride == 0) | (np.diff(first)[ring] < 40 * stride)
    points, ring = points[kept], ring[kept]
    return Boundary(points, ring, np.searchsorted(ring, np.arange(len(rings) + 1)))


def subset(boundary: Boundary, epsilon: float) -> Chain:
    """The samples of `boundary` that Douglas and Peucker keep at `epsilon` px; of short rings, all."""
    places: list[Indices] = []
    for start, end in pairwise(boundary.first.tolist()):
        own = boundary.points[start:end]
        place: Indices = np.arange(end - start)
        if len(own) > 60:
            few = cv2.approxPolyDP(own.astype(np.float32), epsilon, True)[:, 0].astype(np.float64)
            keys = own[:, 1] * 2**20 + own[:, 0]  # no sample occurs twice
            order = np.argsort(keys)
            found = cast("Indices", np.searchsorted(keys[order], few[:, 1] * 2**20 + few[:, 0]))
            place = np.sort(order[found])
        places.append(place + start)
    chosen = np.concatenate(places)
    ring = boundary.ring[chosen]
    at = (chosen - boundary.first[ring]).astype(np.float64)
    return Chain(boundary.points[chosen], ring, at, np.zeros(len(boundary.first) - 1))


def collapse(chain: Chain, target: int, budget: float, ring_budget: Floats) -> Chain:
    """`chain` with edges collapsed to a vertex, cheapest first, until `target` vertices are left,
    `budget` (area displaced in all) is used up, or nothing may collapse further.

    Each collapse keeps the ring's area (Kronenfeld, Stanislawski, Buttenfield and Brockmeyer,
    "Simplification of polylines by segment collapse: minimizing areal displacement while preserving
    area", 2020); many that do not concern each other happen at once. A ring keeps three vertices
    and never displaces more than its `ring_budget`.
    """
    while len(chain.points) > target:
        after = _after(chain.ring)
        before = np.empty_like(after)
        before[after] = np.arange(len(after))
        merged, cost = _collapsed(chain.points, before, after)
        count = np.bincount(chain.ring, minlength=len(chain.spent))
        open_ = (count[chain.ring] > 3) & (chain.spent[chain.ring] + cost <= ring_budget[chain.ring])
        cost = np.where(open_, cost, np.inf)
        # Those cheaper than all that share a vertex with them; of equals, the first.
        rank = np.empty(len(cost))
        rank[np.argsort(cost, kind="stable")] = np.arange(len(cost))
        least = np.isfinite(cost)
        near, far = after, before
        for _ in range(2):
            least &= (rank <= rank[near]) & (rank <= rank[far])
            near, far = after[near], before[far]
        chosen = np.flatnonzero(least)
        chosen = chosen[np.argsort(rank[chosen])]
        most = min(max(1, len(cost) // (20 if len(cost) < 80 else 6)), len(cost) - target)
        chosen = chosen[:most]
        chosen = chosen[np.cumsum(cost[chosen]) <= budget - chain.spent.sum()]
        # Several at once may not take a ring below three vertices, nor over its budget.
        chosen = chosen[_firsts(chain.ring[chosen], count)]
        if not len(chosen):
            break
        chain = _apply(chain, chosen, after, merged, cost)
    return chain


def fit(chain: Chain, boundary: Boundary, rounds: int) -> Chain:
    """`chain` with its vertices moved so that the edges run along `boundary` as closely as possible
    (least absolute distance, by reweighted least squares, one vertex at a time, all in parallel)."""
    points, at = chain.points.copy(), chain.at.copy()
    after = _after(chain.ring)
    lengths = np.diff(boundary.first).astype(np.float64)[chain.ring]
    for _ in range(rounds):
        edge = _edges_of_samples(chain.ring, at, boundary)
        start, step = points[edge], points[after[edge]] - points[edge]
        square = np.maximum((step**2).sum(axis=1), 1e-9)
        offset = boundary.points - start
        t = (offset * step).sum(axis=1) / square
        distance = (offset[:, 1] * step[:, 0] - offset[:, 0] * step[:, 1]) / np.sqrt(square)
        weight = 1 / (np.abs(distance) + 0.3)
        inner = np.clip(t, 0, 1)
        move = _moves(points, after, edge, inner, distance, weight)
        points += move
        # Samples beyond an edge's end belong to its neighbour.
        early = np.bincount(edge[t < 0], minlength=len(at))
        late = np.bincount(edge[t > 1], minlength=len(at))
        behind = np.zeros(len(at))
        behind[after] = late
        gap = (at[after] - at) % lengths
        gap_before = np.empty_like(gap)
        gap_before[after] = gap
        at = (at + np.clip(early - behind, -0.4 * gap_before, 0.4 * gap)) % lengths
    return Chain(points, chain.ring, at, chain.spent)


def contacts(rings: Sequence[Ring]) -> list[tuple[int, int]]:
    """The pairs (i, j), i <= j, of rings that cross or touch each other, or themselves (i == j).

    Exact for vertices at multiples of 1/16 px up to 2**15 px. Edges that follow each other
    meet in their common vertex and nowhere else, or the ring is in contact with itself.
    """
    if not rings or not sum(map(len, rings)):
        return []
    ring = np.repeat(np.arange(len(rings)), [len(r) for r in rings])
    start = np.concatenate(list(rings))
    after = _after(ring)
    end = start[after]
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.argsort(low[:, 0], kind="stable")
    within = cast("Indices", np.searchsorted(low[order, 0], high[order, 0], side="right"))
    reach = within - np.arange(len(order)) - 1
    i = np.repeat(np.arange(len(order)), reach)
    j = i + 1 + np.arange(len(i)) - np.repeat(np.cumsum(reach) - reach, reach)
    i, j = order[i], order[j]
    near = (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
    i, j = i[near], j[near]
    a, b, c, d = start[i], end[i], start[j], end[j]
    side_c, side_d, side_a, side_b = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    # With overlapping boxes, segments meet unless one lies strictly on one side of the other.
    meet = (side_c * side_d <= 0) & (side_a * side_b <= 0)
    follows, leads = after[i] == j, after[j] == i
    # Two edges in a row share a vertex; they touch elsewhere only if they fold back on each other.
    back = (side_c == 0) & (side_d == 0) & (((b - a) * (d - c)).sum(axis=1) < 0)
    meet &= ~(follows | leads) | back
    found = np.unique(np.sort(np.stack((ring[i[meet]], ring[j[meet]]), axis=1), axis=1), axis=0)
    return [(int(p), int(q)) for p, q in found]


def _after(ring: Indices) -> Indices:
    """The index of the vertex that follows each, round its own ring."""
    after = np.arange(1, len(ring) + 1)
    last = np.flatnonzero(np.append(ring[1:] != ring[:-1], True)) if len(ring) else after
    after[last] = np.concatenate(([0], last[:-1] + 1)) if len(ring) else after
    return after


def _cross(a: Points, b: Points) -> Floats:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _side(a: Points, b: Points, p: Points) -> Floats:
    """1, 0 or -1 where p is on one side of the line from a to b, on it, or on the other."""
    return np.sign(_cross(b - a, p - a))


def _collapsed(points: Points, before: Indices, after: Indices) -> tuple[Points, Floats]:
    """What the edge from each vertex to the next would become, and the area that this displaces."""
    a, b, c, d = points[before], points, points[after], points[after[after]]
    base_b, base_c = _cross(b - a, d - a), _cross(c - a, d - a)
    area = _cross(b - a, c - a) + base_c
    best, least = (b + c) / 2, np.abs(_cross(b - a, c - b)) + np.abs(_cross(c - b, d - c))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for near, far, base, origin in ((b, c, base_b, a), (c, b, base_c, d)):
            vertex = origin + (area / base)[:, None] * (near - origin)
            other = d if origin is a else a
            # The new edge from `vertex` to `other` cuts the old one at a share u of it.
            old, new = far - near, other - vertex
            u = _cross(vertex - near, new) / _cross(old, new)
            cost = np.abs(_cross(vertex - near, old) * u)
            # A vertex far off stands on a sliver, whose area says nothing of how far it reaches.
            close = ((vertex - (b + c) / 2) ** 2).sum(axis=1) <= 9 * (old**2).sum(axis=1)
            better = close & (u >= 0) & (u <= 1) & (area / base > 0) & (cost < least)
            best, least = np.where(better[:, None], vertex, best), np.where(better, cost, least)
    return best, least


def _firsts(ring: Indices, count: Indices) -> NDArray[np.bool_]:
    """Of rings listed in order of preference, those entries that leave each ring three vertices."""
    order = np.argsort(ring, kind="stable")
    ordered = ring[order]
    place = np.empty(len(ring), np.int64)
    place[order] = np.arange(len(ring)) - np.searchsorted(ordered, ordered)
    return place < np.maximum(count[ring] - 3, 0)


def _apply(chain: Chain, chosen: Indices, after: Indices, merged: Points, cost: Floats) -> Chain:
    points, at, spent = chain.points.copy(), chain.at.copy(), chain.spent.copy()
    points[chosen] = merged[chosen]
    np.add.at(spent, chain.ring[chosen], cost[chosen])
    return _without(Chain(points, chain.ring, at, spent), after[chosen])


def _without(chain: Chain, gone: Indices) -> Chain:
    kept = np.ones(len(chain.points), np.bool_)
    kept[gone] = False
    return Chain(chain.points[kept], chain.ring[kept], chain.at[kept], chain.spent)


def _edges_of_samples(ring: Indices, at: Floats, boundary: Boundary) -> Indices:
    """The vertex at which the edge of each sample of the boundary starts."""
    position = boundary.first[ring] + at
    order = np.argsort(position, kind="stable")
    place = np.searchsorted(position[order], np.arange(len(boundary.ring)), side="right") - 1
    last = np.searchsorted(ring, boundary.ring, side="right") - 1
    # Samples before a ring's first vertex are on the edge that closes it.
    own = (place >= 0) & (ring[order[place]] == boundary.ring)
    return np.where(own, order[place], order[last])


def _moves(
    points: Points, after: Indices, edge: Indices, t: Floats, distance: Floats, weight: Floats
) -> Points:
    """How far each vertex moves towards the weighted least squares, the others standing still."""
    count = len(points)
    step = points[after] - points
    normal = np.stack((-step[:, 1], step[:, 0]), axis=1) / np.maximum(np.hypot(*step.T), 1e-9)[:, None]
    products = np.einsum("ni,nj->nij", normal, normal)
    s = 1 - t
    starts = np.bincount(edge, weight * s * s, count)[:, None, None] * products
    ends = np.bincount(edge, weight * t * t, count)[:, None, None] * products
    matrix, vector = starts, np.bincount(edge, weight * s * distance, count)[:, None] * normal
    matrix[after] += ends
    vector[after] += np.bincount(edge, weight * t * distance, count)[:, None] * normal
    trace = matrix[:, 0, 0] + matrix[:, 1, 1]
    matrix[:, 0, 0] += 0.02 * trace + 1e-6
    matrix[:, 1, 1] += 0.02 * trace + 1e-6
    move = 0.6 * cast("Points", np.linalg.solve(matrix, vector[:, :, None])[:, :, 0])
    # Not beyond a neighbour: rings fold over where vertices stand closely.
    reach = np.hypot(*step.T)
    shortest = reach.copy()
    shortest[after] = np.minimum(shortest[after], reach)
    return move * np.minimum(1, 0.3 * shortest / np.maximum(np.hypot(*move.T), 1e-9))[:, None]
