"""Simplification of rings in one array: area-preserving collapse, fitting to a boundary, contacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Ring, Size

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Points = NDArray[np.float64]  # (N, 2) of (x, y)
Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Chain:
    """The vertices of several rings, one ring after another."""

    points: Points
    ring: Indices  # (N,) the ring of each vertex, non-decreasing
    at: Floats  # (N,) each vertex's place on the boundary, in samples from its ring's first one
    spent: Floats  # (R,) the area that collapses displaced in each ring

    def snapped(self, grid: int, size: Size) -> Chain:
        """The chain on multiples of 1/grid px, inside the image, without repeated neighbours."""
        points = np.clip(np.rint(self.points * grid) / grid, 0, size[::-1])
        moved = (points != points[_after(self.ring)]).any(axis=1)
        return Chain(points[moved], self.ring[moved], self.at[moved], self.spent)

    def rings(self) -> list[Ring]:
        """One array per ring."""
        return np.split(self.points, np.searchsorted(self.ring, np.arange(1, len(self.spent))))

    def spliced(self, other: Chain, taken: NDArray[np.bool_], boundary: Boundary) -> Chain:
        """This chain, with `other`'s vertices on the samples of `boundary` that are `taken`."""
        own, others = ~taken[self.samples(boundary)], taken[other.samples(boundary)]
        ring = np.concatenate((self.ring[own], other.ring[others]))
        points = np.concatenate((self.points[own], other.points[others]))
        at = np.concatenate((self.at[own], other.at[others]))
        order = np.lexsort((at, ring))
        return Chain(points[order], ring[order], at[order], self.spent)

    def samples(self, boundary: Boundary) -> Indices:
        """The sample of `boundary` at each vertex."""
        last = boundary.first[self.ring + 1] - 1
        return np.minimum(boundary.first[self.ring] + self.at.astype(np.int64), last)

    def stretches(self, vertices: Indices, wider: int, boundary: Boundary) -> NDArray[np.bool_]:
        """The samples along the edges that start at `vertices`, and along `wider` edges on either side."""
        taken = np.zeros(len(boundary.ring), np.bool_)
        samples, (before, after) = self.samples(boundary), _neighbours(self.ring)
        starts, ends = vertices, after[vertices]
        for _ in range(wider):
            starts, ends = before[starts], after[ends]
        for ring, start, end in zip(self.ring[vertices], samples[starts], samples[ends], strict=True):
            if start <= end:
                taken[start : end + 1] = True
            else:
                taken[start : boundary.first[ring + 1]] = taken[boundary.first[ring] : end + 1] = True
        return taken


@dataclass(frozen=True, eq=False)
class Boundary:
    """The points that outlines are fitted to: middles of the original pixel edges."""

    points: Points
    ring: Indices  # (N,) non-decreasing
    first: Indices  # (R + 1,) the first sample of each ring, then the end


def mid_edges(rings: Sequence[Ring], stride: int = 1) -> Boundary:
    """Middles of every `stride`-th pixel edge along `rings` (of `mask_to_polygons`), all if a ring is short.
    Joined up, they enclose the same pixel centres, never touch, and make a digitised line nearly straight."""
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


def subset(boundary: Boundary, epsilon: float | None) -> Chain:
    """The samples of `boundary` that Douglas-Peucker keeps at `epsilon` px. Short rings keep all samples, and
    so do all rings if `epsilon` is None."""
    places: list[Indices] = []
    every = np.arange(len(boundary.ring))
    for start, end in pairwise(boundary.first):
        if epsilon is None or end - start <= 60:
            places.append(every[start:end])
            continue
        own = boundary.points[start:end]
        few = cv2.approxPolyDP(own.astype(np.float32), epsilon, True)[:, 0].astype(np.float64)
        keys = own[:, 1] * 2**20 + own[:, 0]  # no sample occurs twice
        order = np.argsort(keys)
        found = cast("Indices", np.searchsorted(keys[order], few[:, 1] * 2**20 + few[:, 0]))
        places.append(start + np.sort(order[found]))
    chosen = np.concatenate(places)
    ring = boundary.ring[chosen]
    at = (chosen - boundary.first[ring]).astype(np.float64)
    return Chain(boundary.points[chosen], ring, at, np.zeros(len(boundary.first) - 1))


def collapse(
    chain: Chain,
    target: int,
    budget: float,
    ring_budget: Floats,
    locked: NDArray[np.bool_],
    boundary: Boundary,
) -> Chain:
    """Collapse edges of `chain` to a vertex, cheapest first, down to `target` vertices.

    Stop once `budget` (the sum of displaced areas) is used up or nothing may collapse. Each collapse keeps
    the ring's area (Kronenfeld, Stanislawski, Buttenfield and Brockmeyer, "Simplification of polylines by
    segment collapse: minimizing areal displacement while preserving area", 2020); independent ones happen at
    once. A ring keeps three vertices and displaces at most its `ring_budget`. Edges on `locked` samples of
    `boundary` stay.
    """
    while len(chain.points) > target:
        before, after = _neighbours(chain.ring)
        merged, cost = _collapsed(chain.points, before, after)
        count = np.bincount(chain.ring, minlength=len(chain.spent))
        open_ = (count[chain.ring] > 3) & (chain.spent[chain.ring] + cost <= ring_budget[chain.ring])
        stays = locked[chain.samples(boundary)]
        cost = np.where(open_ & ~(stays & stays[after]), cost, np.inf)
        # Take edges cheaper than all that share a vertex with them; on ties, the first.
        rank = np.empty(len(cost))
        rank[np.argsort(cost, kind="stable")] = np.arange(len(cost))
        least = np.isfinite(cost)
        near, far = after, before
        for _ in range(2):
            least &= (rank <= rank[near]) & (rank <= rank[far])
            near, far = after[near], before[far]
        chosen = np.flatnonzero(least)
        chosen = chosen[np.argsort(rank[chosen])]
        most = min(max(1, len(cost) // 8), len(cost) - target)
        # Take only edges that would be among the cheapest if taken one at a time.
        chosen = chosen[rank[chosen] < 2 * most][:most]
        chosen = chosen[np.cumsum(cost[chosen]) <= budget - chain.spent.sum()]
        # A ring keeps three vertices: take its first ones only.
        ring = chain.ring[chosen]
        order = np.argsort(ring, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(ring)) - np.searchsorted(ring[order], ring[order])
        chosen = chosen[place < np.maximum(count[ring] - 3, 0)]
        if not len(chosen):
            break
        points, spent, kept = chain.points.copy(), chain.spent.copy(), np.ones(len(cost), np.bool_)
        points[chosen] = merged[chosen]
        np.add.at(spent, chain.ring[chosen], cost[chosen])
        kept[after[chosen]] = False
        chain = Chain(points[kept], chain.ring[kept], chain.at[kept], spent)
    return chain


def fit(chain: Chain, boundary: Boundary, rounds: int) -> Chain:
    """Move the vertices of `chain` so that its edges follow `boundary` as closely as possible (least
    absolute distance, by reweighted least squares for each vertex, all in parallel)."""
    ring, vertices, at = chain.ring, _plane(chain.points).copy(), chain.at
    count, (before, after) = len(at), _neighbours(ring)
    samples = _plane(boundary.points)
    lengths = np.diff(boundary.first).astype(np.float64)[ring]
    last = np.searchsorted(ring, boundary.ring, side="right") - 1
    for _ in range(rounds):
        # The first vertex of the edge that each sample belongs to. Samples before a ring's first vertex
        # belong to its closing edge.
        position = boundary.first[ring] + at
        order = np.argsort(position, kind="stable")
        place = np.searchsorted(position[order], np.arange(len(boundary.ring)), side="right") - 1
        own = (place >= 0) & (ring[order[place]] == boundary.ring)
        edge = np.where(own, order[place], order[last])

        steps = vertices[after] - vertices
        square = np.maximum(steps.real**2 + steps.imag**2, 1e-9)
        across = (samples - vertices[edge]) * (steps.conj() / square)[edge]
        t, distance = across.real, across.imag * np.sqrt(square)[edge]
        weight, inner = 1 / (np.abs(distance) + 0.3), np.clip(t, 0, 1)

        # Each vertex's step towards its weighted least squares, with the other vertices fixed. The sum of
        # w n n^T over a vertex's two edges with normals n is the map v -> (trace * v + twist * conj(v)) / 2
        # with trace = sum of w, twist = sum of w n^2.
        reach = np.abs(steps)
        normal = 1j * steps / np.maximum(reach, 1e-9)
        pull, pull_after = weight * (1 - inner), weight * inner
        trace = np.bincount(edge, pull * (1 - inner), count)
        trace_after = np.bincount(edge, pull_after * inner, count)
        twist = trace * normal**2 + (trace_after * normal**2)[before]
        target = np.bincount(edge, pull * distance, count) * normal
        target += (np.bincount(edge, pull_after * distance, count) * normal)[before]
        trace = 1.04 * (trace + trace_after[before]) + 1e-6
        move = 0.6 * 2 * (trace * target - twist * target.conj()) / (trace**2 - np.abs(twist) ** 2)
        # Stop short of a neighbour: rings would fold over at close vertices.
        shortest = np.minimum(reach, reach[before])
        vertices += move * np.minimum(1, 0.3 * shortest / np.maximum(np.abs(move), 1e-9))

        # Samples beyond an edge's end belong to its neighbour.
        early, late = (np.bincount(edge[beyond], minlength=count) for beyond in (t < 0, t > 1))
        gap = (at[after] - at) % lengths
        at = (at + np.clip(early - late[before], -0.4 * gap[before], 0.4 * gap)) % lengths
    return Chain(_points(vertices), ring, at, chain.spent)


def contacts(rings: Sequence[Ring]) -> list[tuple[int, int]]:
    """Pairs (i, j), i <= j, of rings that cross or touch, or of one that does so itself (i == j). Exact for
    multiples of 1/16 px up to 2**15 px. Consecutive edges may only meet in their common vertex."""
    ring = np.repeat(np.arange(len(rings)), [len(r) for r in rings])
    if not len(ring):
        return []
    i, j = meeting_edges(np.concatenate(list(rings)), ring)
    found = np.unique(np.sort(np.stack((ring[i], ring[j]), axis=1), axis=1), axis=0)
    return [(int(p), int(q)) for p, q in found]


def meeting_edges(points: Points, ring: Indices) -> tuple[Indices, Indices]:
    """The first vertices of both edges, for each pair of edges in contact."""
    after = _after(ring)
    end = points[after]
    low, high = np.minimum(points, end), np.maximum(points, end)
    order = np.argsort(low[:, 0], kind="stable")
    within = cast("Indices", np.searchsorted(low[order, 0], high[order, 0], side="right"))
    reach = within - np.arange(len(order)) - 1
    i = np.repeat(np.arange(len(order)), reach)
    j = i + 1 + np.arange(len(i)) - np.repeat(np.cumsum(reach) - reach, reach)
    i, j = order[i], order[j]
    near = (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
    i, j = i[near], j[near]
    a, b, c, d = (_plane(p) for p in (points[i], end[i], points[j], end[j]))
    # With overlapping boxes, segments meet unless one lies strictly on one side of the other.
    side_c, side_d, side_a, side_b = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    meet = (side_c * side_d <= 0) & (side_a * side_b <= 0)
    # Consecutive edges share a vertex; they touch elsewhere only if they fold back on each other.
    in_a_row = (after[i] == j) | (after[j] == i)
    back = (side_c == 0) & (side_d == 0) & (((b - a).conj() * (d - c)).real < 0)
    meet &= ~in_a_row | back
    return i[meet], j[meet]


def _after(ring: Indices) -> Indices:
    """The index of the next vertex in the ring, for each vertex."""
    after = np.arange(1, len(ring) + 1)
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    after[first - 1] = np.roll(first, 1)  # the vertex before a ring's first one ends the ring before
    return after


def _neighbours(ring: Indices) -> tuple[Indices, Indices]:
    """The indices of the previous and of the next vertex in the ring, for each vertex."""
    after = _after(ring)
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    return before, after


def _plane(points: Points) -> Complexes:
    """The points as complex numbers x + iy, which need fewer and faster operations."""
    return np.ascontiguousarray(points).view(np.complex128)[:, 0]


def _points(plane: Complexes) -> Points:
    return plane.view(np.float64).reshape(-1, 2)


def _cross(a: Complexes, b: Complexes) -> Floats:
    return (a.conj() * b).imag


def _side(a: Complexes, b: Complexes, p: Complexes) -> Floats:
    """1 or -1 for the side of the line from a to b on which p lies, 0 if p is on the line."""
    return np.sign(_cross(b - a, p - a))


def _collapsed(points: Points, before: Indices, after: Indices) -> tuple[Points, Floats]:
    """The vertex that each vertex's edge to the next would collapse to, and the displaced area."""
    b = _plane(points)
    a, c = b[before], b[after]
    d = c[after]
    ab, ac, ad, bc = b - a, c - a, d - a, c - b
    base_b, base_c = _cross(ab, ad), _cross(ac, ad)
    area = _cross(ab, ac) + base_c
    best, least = (b + c) / 2, np.abs(_cross(ab, bc)) + np.abs(_cross(bc, d - c))
    near_enough = 9 * (bc.real**2 + bc.imag**2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for near, old, share, origin, other in ((b, bc, area / base_b, a, d), (c, -bc, area / base_c, d, a)):
            # The vertex lies where the line from `origin` through `near` keeps the area. Its new edge
            # to `other` cuts the old edge at the share u of its length.
            vertex = origin + share * (near - origin)
            beyond, new = vertex - near, other - vertex
            u = _cross(beyond, new) / _cross(old, new)
            cost = np.abs(_cross(beyond, old) * u)
            # A distant vertex makes a sliver, whose area does not show how far it reaches.
            reach = vertex - (b + c) / 2
            close = reach.real**2 + reach.imag**2 <= near_enough
            better = close & (u >= 0) & (u <= 1) & (share > 0) & (cost < least)
            best, least = np.where(better, vertex, best), np.where(better, cost, least)
    return _points(best), least
