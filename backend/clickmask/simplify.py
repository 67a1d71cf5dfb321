"""The fewest points whose polygon keeps a given IoU with the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clickmask.masks import group_rings, mask_to_polygons, ring_crossings
from clickmask.outlines import Chain, collapse, contacts, fit, mid_edges, subset
from clickmask.types import Mask, Ring, Size

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

GRID = 16  # vertices lie on multiples of 1/16 px, which makes every test on them exact
SPECK = 1e-3  # a ring of less than this share of the mask's area may be left out
SPECKS = (0.25, 0.5)  # and all those left out cost at most this share of what the IoU may lose: either
ROUNDS = 6  # of fitting


@dataclass(frozen=True, eq=False)
class Simplified:
    """Rings as `mask_to_polygons` gives them, but with few points; and how good they are."""

    rings: list[Ring]
    iou: float  # of polygons_to_mask(rings) with the mask
    points: int
    bound_met: bool  # False where `max_points` left too few points for the IoUs asked for


def simplify_mask(
    mask: Mask, min_iou: float = 0.98, min_ring_iou: float = 0.9, max_points: int | None = None
) -> Simplified:
    """Outlines of `mask` with as few points as keep its IoU at `min_iou` or above.

    Each ring that is kept has, filled by itself, an IoU of at least `min_ring_iou` with the ring it
    stands for. Rings are left out only if they are specks or pinholes below a thousandth of the mask,
    or for `max_points`, which goes before both bounds. Vertices are multiples of 1/16 px, anywhere
    in the image. No ring crosses itself or another. Raises ValueError for bounds outside [0, 1] or
    `max_points` below 3.
    """
    if not (0 <= min_iou <= 1 and 0 <= min_ring_iou <= 1):
        raise ValueError(f"IoU bounds {min_iou} and {min_ring_iou} are not within [0, 1]")
    if max_points is not None and max_points < 3:
        raise ValueError(f"max_points {max_points} is less than a triangle")
    exact = mask_to_polygons(mask)
    if not exact:
        return Simplified([], 1.0, 0, True)
    truth = _Truth(exact, (mask.shape[0], mask.shape[1]), min_iou, min_ring_iou)
    searches = [_Search(truth, kept) for kept in truth.without_specks()]
    best = min((search.fewest() for search in searches), key=_count)
    if max_points is not None and _count(best) > max_points:
        best = searches[-1].at_most(max_points)
    iou = truth.iou(best)
    met = iou >= min_iou and bool((truth.ring_ious(best) >= min_ring_iou).all())
    return Simplified([ring for ring in best if len(ring)], iou, _count(best), met)


class _Truth:
    """What a simplification is measured against, pixel by pixel but without drawing."""

    def __init__(self, exact: list[Ring], size: Size, min_iou: float, min_ring_iou: float) -> None:
        self.exact, self.size = exact, size
        self.min_iou, self.min_ring_iou = min_iou, min_ring_iou
        owner, flat = ring_crossings(exact, size)
        self._owner, self._flat = owner, flat
        self.area = _covered(np.sort(flat))
        self.ring_areas = self._by_ring(owner, flat)

    def iou(self, rings: Sequence[Ring]) -> float:
        flat = ring_crossings(rings, self.size)[1]
        both = self.area + _covered(np.sort(flat))
        apart = _covered(np.sort(np.concatenate((flat, self._flat))))
        return (both - apart) / (both + apart)

    def ring_ious(self, rings: Sequence[Ring]) -> Floats:
        """Of each ring, filled by itself; 1 for those left out, which are empty."""
        owner, flat = ring_crossings(rings, self.size)
        both = self.ring_areas + self._by_ring(owner, flat)
        apart = self._by_ring(np.concatenate((owner, self._owner)), np.concatenate((flat, self._flat)))
        left_out = np.array([len(ring) == 0 for ring in rings])
        return np.where(left_out, 1.0, (both - apart) / (both + apart))

    def without_specks(self) -> list[Indices]:
        """The rings to keep, in up to two ways, most rings first.

        The smallest go first, so no ring goes before what lies in it.
        """
        order = np.argsort(self.ring_areas, kind="stable")
        areas = self.ring_areas[order]
        small = np.count_nonzero(areas < SPECK * self.area)
        spared = (1 - self.min_iou) * self.area * np.array(SPECKS)
        gone = {min(small, int(place)) for place in np.searchsorted(np.cumsum(areas), spared, side="right")}
        return [np.sort(order[count:]) for count in sorted(gone)]

    def _by_ring(self, owner: Indices, flat: Indices) -> Indices:
        stride = self.size[0] * self.size[1] + 1
        ends = np.sort(owner * stride + flat).reshape(-1, 2)
        areas = np.zeros(len(self.exact), np.int64)
        np.add.at(areas, ends[:, 0] // stride, ends[:, 1] - ends[:, 0])
        return areas


class _Search:
    """The search for the fewest vertices, over those rings of the truth that are kept."""

    def __init__(self, truth: _Truth, kept: Indices) -> None:
        self._truth, self._kept = truth, kept
        exact = [truth.exact[int(index)] for index in kept]
        perimeter = sum(float(np.abs(np.diff(ring, axis=0)).sum()) for ring in exact)
        tolerance = (1 - truth.min_iou) * truth.area / perimeter  # px, if spread evenly
        self._boundary = mid_edges(exact, max(1, int(tolerance / 2)))
        self._start = subset(self._boundary, max(0.3 * tolerance, 0.3))
        self._areas = truth.ring_areas[kept].astype(np.float64)
        self._fixed: set[int] = set()

    def fewest(self) -> list[Ring]:
        """As many vertices as the bounds ask for, found by taking away from enough of them."""
        best = self._enough()
        budget = np.full(len(self._kept), np.inf)
        budget[np.searchsorted(self._kept, sorted(self._fixed))] = 0
        step, skipped = max(1, len(best.points) // 5), 0
        while step:
            target = len(best.points) - step - skipped
            chain, failing = self._with_fewer(best, target, budget)
            if chain is not None:
                best, skipped = chain, 0
            elif failing is None or not failing:
                step, skipped = step // 2, 0
            elif skipped < 3:
                skipped += 1  # a knot often goes with its last vertices
            else:
                local = np.searchsorted(self._kept, sorted(failing))
                step, skipped = (step if budget[local].max() > 0 and len(budget) > 1 else step // 2), 0
                budget[local] = 0
        return self.rings(best)

    def at_most(self, limit: int) -> list[Ring]:
        """At most `limit` vertices, whatever the bounds: the largest rings, as far as they keep apart."""
        order = np.argsort(-self._areas, kind="stable")
        for count in range(min(len(order), limit // 3), 0, -1):
            kept = np.sort(order[:count])
            search = _Search(self._truth, self._kept[kept])
            unbound = np.full(count, np.inf)
            for target in range(limit, 2, -1) if count == 1 else (limit,):
                chain = collapse(search._start, target, np.inf, unbound)
                for rounds in (ROUNDS, 0):
                    rings = search.rings(fit(chain, search._boundary, rounds))
                    if _count(rings) <= limit and not contacts(rings) and _nested(rings):
                        return rings
        raise AssertionError("a triangle crosses nothing")

    def _with_fewer(self, best: Chain, target: int, budget: Floats) -> tuple[Chain | None, set[int] | None]:
        """At most `target` vertices that keep the bounds; or what fails of the last that were tried."""
        failing: set[int] | None = None
        if target < 3:
            return None, failing
        fewer = collapse(best, target, np.inf, budget)
        plain = collapse(self._plain, target, np.inf, budget)
        for chain, rounds in ((fewer, ROUNDS), (plain, ROUNDS), (plain, 0), (fewer, 0)):
            if len(chain.points) >= len(best.points):
                continue
            chain = fit(chain, self._boundary, rounds)
            failing = self._failing(self.rings(chain))
            if failing == set():
                return chain, failing
        return None, failing

    def rings(self, chain: Chain) -> list[Ring]:
        """On the grid and in the image, aligned with the exact rings; those left out are empty."""
        height, width = self._truth.size
        points = np.clip(np.rint(chain.points * GRID) / GRID, 0, (width, height))
        rings = [np.zeros((0, 2)) for _ in self._truth.exact]
        for index, ring in zip(self._kept, replace(chain, points=points).rings(), strict=True):
            rings[index] = self._truth.exact[index] if int(index) in self._fixed else ring
        return rings

    def _enough(self) -> Chain:
        """Vertices enough for all bounds. Rings that resist are fixed: they stay as they are."""
        spared = (1 - self._truth.min_iou) * self._truth.area * 0.7
        ring_budget = (1 - self._truth.min_ring_iou) * self._areas
        for attempt in range(24):
            plain = collapse(self._start, 3, spared, ring_budget)
            failing: set[int] | None = None
            self._plain = plain
            for chain in (fit(plain, self._boundary, ROUNDS), plain):
                failing = self._failing(self.rings(chain))
                if failing == set():
                    return chain
            if failing and attempt < 3:
                ring_budget[np.searchsorted(self._kept, sorted(failing))] /= 4
            elif failing:
                self._fixed |= failing
            elif attempt < 8:
                spared /= 2
            else:
                break
        self._fixed = set(self._kept.tolist())
        return self._start

    def _failing(self, rings: Sequence[Ring]) -> set[int] | None:
        """The rings that are too far from theirs or in contact; None if all together are too far."""
        truth = self._truth
        if truth.iou(rings) < truth.min_iou:
            return None
        # Exact rings may touch, but they do not cross.
        pairs = [pair for pair in contacts(rings) if not self._fixed.issuperset(pair)]
        failing = {ring for pair in pairs for ring in pair}
        if len(self._kept) > 1 or truth.min_ring_iou > truth.min_iou:
            failing |= set(np.flatnonzero(truth.ring_ious(rings) < truth.min_ring_iou).tolist())
        return failing - self._fixed


def _nested(rings: Sequence[Ring]) -> bool:
    """Whether all areas are there and all holes in something."""
    try:
        group_rings([ring for ring in rings if len(ring)])
    except ValueError:
        return False
    return True


def _count(rings: Sequence[Ring]) -> int:
    return sum(map(len, rings))


def _covered(toggles: Indices) -> int:
    return int((toggles[1::2] - toggles[::2]).sum())
