"""The fewest points whose polygon keeps a given IoU with the mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clickmask.masks.outlines import Chain, collapse, contacts, fit, meeting_edges, mid_edges, subset
from clickmask.masks.polygons import group_rings, mask_to_polygons, ring_crossings
from clickmask.types import Mask, Ring, Size

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

GRID = 16  # vertices lie on multiples of 1/16 px, which makes every test on them exact
SPECK_SHARE = 1e-3  # of the mask's area; smaller rings may be left out
SPECK_LOSS_SHARES = (0.25, 0.5)  # of the allowed IoU loss, for all rings left out; both are tried
FIT_ROUNDS = 5
MAX_TRIES = 40  # limits the search for the last few points of many ragged parts
# Noise must not hold a thread for minutes: beyond these limits the exact rings stay.
MAX_EDGES = 500_000  # pixel edges of all rings together
MAX_VERTICES = 60_000  # at the start
MAX_TRIED_VERTICES = 80_000  # of all tries together


@dataclass(frozen=True, eq=False)
class Simplified:
    """Rings like those of `mask_to_polygons` with few points, and their quality."""

    rings: list[Ring]
    iou: float  # of polygons_to_mask(rings) with the mask
    points: int
    bound_met: bool  # False if `max_points` is too low for the IoU bounds


def simplify_mask(
    mask: Mask, min_iou: float = 0.98, min_ring_iou: float = 0.9, max_points: int | None = None
) -> Simplified:
    """Outlines of `mask` with the fewest points that keep the IoU at `min_iou` or above.

    Each kept ring, filled by itself, has an IoU of at least `min_ring_iou` with the ring it replaces.
    Rings are left out only if they are specks or pinholes below a thousandth of the mask, or for
    `max_points`, which overrides both bounds. Vertices are multiples of 1/16 px, anywhere in the image.
    No ring crosses itself or another. Raises ValueError for bounds outside [0, 1] or `max_points` below 3.
    """
    if not (0 <= min_iou <= 1 and 0 <= min_ring_iou <= 1):
        raise ValueError(f"IoU bounds {min_iou} and {min_ring_iou} are not within [0, 1]")
    if max_points is not None and max_points < 3:
        raise ValueError(f"max_points {max_points} is less than a triangle")
    exact = mask_to_polygons(mask)
    if not exact:
        return Simplified([], 1.0, 0, True)
    if max_points is None and _length(exact) > MAX_EDGES:
        return Simplified(exact, 1.0, _count(exact), True)
    truth = _Truth(exact, (mask.shape[0], mask.shape[1]), min_iou, min_ring_iou)
    searches = [_Search(truth, kept) for kept in truth.without_specks()]
    best = min((search.fewest() for search in searches), key=_count)
    if max_points is not None and _count(best) > max_points:
        best = searches[-1].at_most(max_points)
    iou = truth.iou(best)
    met = iou >= min_iou and bool((truth.ring_ious(best) >= min_ring_iou).all())
    return Simplified([ring for ring in best if len(ring)], iou, _count(best), met)


class _Truth:
    """The exact rings, and pixel-exact measures of simplifications against them, without drawing."""

    def __init__(self, exact: list[Ring], size: Size, min_iou: float, min_ring_iou: float) -> None:
        self.exact, self.size = exact, size
        self.min_iou, self.min_ring_iou = min_iou, min_ring_iou
        self._owner, self._flat = ring_crossings(exact, size)
        self.area = _covered(np.sort(self._flat))
        self.ring_areas = self._by_ring(self._owner, self._flat)

    def iou(self, rings: Sequence[Ring]) -> float:
        flat = ring_crossings(rings, self.size)[1]
        both = self.area + _covered(np.sort(flat))
        apart = _covered(np.sort(np.concatenate((flat, self._flat))))
        return (both - apart) / (both + apart)

    def ring_ious(self, rings: Sequence[Ring]) -> Floats:
        """IoU of each ring, filled by itself; 1 for empty rings, which are left out."""
        owner, flat = ring_crossings(rings, self.size)
        both = self.ring_areas + self._by_ring(owner, flat)
        apart = self._by_ring(np.concatenate((owner, self._owner)), np.concatenate((flat, self._flat)))
        left_out = np.array([len(ring) == 0 for ring in rings])
        return np.where(left_out, 1.0, (both - apart) / (both + apart))

    def without_specks(self) -> list[Indices]:
        """The rings to keep, in up to two ways, most rings first. The smallest go first, so a ring never goes
        before the rings inside it."""
        order = np.argsort(self.ring_areas, kind="stable")
        areas = self.ring_areas[order]
        small = np.count_nonzero(areas < SPECK_SHARE * self.area)
        spared = (1 - self.min_iou) * self.area * np.array(SPECK_LOSS_SHARES)
        gone = {min(small, int(place)) for place in np.searchsorted(np.cumsum(areas), spared, side="right")}
        return [np.sort(order[count:]) for count in sorted(gone)]

    def _by_ring(self, owner: Indices, flat: Indices) -> Indices:
        stride = self.size[0] * self.size[1] + 1
        ends = np.sort(owner * stride + flat).reshape(-1, 2)
        areas = np.zeros(len(self.exact), np.int64)
        np.add.at(areas, ends[:, 0] // stride, ends[:, 1] - ends[:, 0])
        return areas


class _Search:
    """Search for the fewest vertices of the kept rings."""

    def __init__(self, truth: _Truth, kept: Indices) -> None:
        self._truth, self._kept = truth, kept
        exact = [truth.exact[int(index)] for index in kept]
        tolerance = (1 - truth.min_iou) * truth.area / _length(exact)  # px, if the loss is spread evenly
        self._boundary = mid_edges(exact, max(1, int(2 * tolerance)))
        self._all = subset(self._boundary, None)
        self._start = subset(self._boundary, max(0.3 * tolerance, 0.3))
        self._unlocked = np.zeros(len(self._boundary.ring), np.bool_)
        self._areas = truth.ring_areas[kept].astype(np.float64)

    def fewest(self) -> list[Ring]:
        """The fewest vertices the bounds allow, found by starting with enough and removing some."""
        best = self._enough() if len(self._start.points) <= MAX_VERTICES else None
        if best is None:
            return [ring if index in self._kept else ring[:0] for index, ring in enumerate(self._truth.exact)]
        plain, locked = [best], self._unlocked
        step, work = len(best.points) // 2, 0
        for _ in range(MAX_TRIES):
            if not step or work > MAX_TRIED_VERTICES:
                break
            work += len(best.points)
            found = self._with_fewer(best, plain, len(best.points) - step, locked)
            if isinstance(found, Chain):
                best, step = found, min(step, max(1, len(found.points) // 2))
            elif step <= len(best.points) // 8 and (found & ~locked).any() and not found.all():
                locked = locked | found  # these rings cannot do with fewer vertices
            else:
                step //= 2
        return self._aligned(best)

    def at_most(self, limit: int) -> list[Ring]:
        """At most `limit` vertices, ignoring the bounds: as many of the largest rings as stay apart."""
        order = np.argsort(-self._areas, kind="stable")
        for count in _descending(min(len(order), limit // 3), 1):
            search = _Search(self._truth, self._kept[np.sort(order[:count])])
            unlocked = search._unlocked
            for target in _descending(limit, 3) if count == 1 else (limit,):
                chain = search._collapse(search._start, target, unlocked)
                for rounds in (FIT_ROUNDS, 0):
                    rings = search._aligned(fit(chain, search._boundary, rounds))
                    if _count(rings) <= limit and not contacts(rings) and _nested(rings):
                        return rings
        # The grid left nothing of a sliver: use half of its box.
        largest = int(self._kept[order[0]])
        (x0, y0), (x1, y1) = self._truth.exact[largest].min(axis=0), self._truth.exact[largest].max(axis=0)
        triangle = np.array([(x0, y0), (x1, y0), (x1, y1)])
        return [triangle if i == largest else ring[:0] for i, ring in enumerate(self._truth.exact)]

    def _aligned(self, chain: Chain) -> list[Ring]:
        """The rings in the order of the exact ones, empty if left out."""
        rings = [np.zeros((0, 2)) for _ in self._truth.exact]
        for index, ring in zip(self._kept, chain.snapped(GRID, self._truth.size).rings(), strict=True):
            rings[index] = ring
        return rings

    def _enough(self) -> Chain | None:
        """A chain that meets all bounds, or None if only the exact rings do."""
        spared = (1 - self._truth.min_iou) * self._truth.area * 0.7
        ring_budget = (1 - self._truth.min_ring_iou) * self._areas
        for _ in range(6):
            plain = collapse(self._start, 3, spared, ring_budget, self._unlocked, self._boundary)
            for chain in (fit(plain, self._boundary, FIT_ROUNDS), plain):
                mended = self._mended(chain, self._all, len(self._all.points) + 1)
                if isinstance(mended, Chain):
                    return mended
            spared /= 2
        return None

    def _collapse(self, chain: Chain, target: int, locked: NDArray[np.bool_]) -> Chain:
        return collapse(chain, target, np.inf, np.full(len(self._areas), np.inf), locked, self._boundary)

    def _with_fewer(
        self, best: Chain, plain: list[Chain], target: int, locked: NDArray[np.bool_]
    ) -> Chain | NDArray[np.bool_]:
        """About `target` vertices, fewer than `best`, within the bounds; or else a mask of the samples of
        the rings that need more. `plain`, the chains collapsed but never fitted, gets one more."""
        far = self._unlocked
        if target < 3:
            return far
        finer = min((chain for chain in plain if len(chain.points) >= target), key=lambda c: len(c.points))
        plain.append(self._collapse(finer, target, locked))
        fewer = self._collapse(best, target, locked)
        # If much had to be mended, smaller steps find a better place for the same points.
        step = len(best.points) - target
        limit = len(best.points) if step <= len(best.points) // 16 else target + (step + 1) // 2
        ways = ((fewer, FIT_ROUNDS), (plain[-1], FIT_ROUNDS), (plain[-1], 0))
        for chain, rounds in ways if step <= len(best.points) // 8 + 2 else ways[:1]:
            mended = self._mended(fit(chain, self._boundary, rounds), best, limit)
            if isinstance(mended, Chain):
                return mended
            far = far | mended
        return far

    def _mended(self, chain: Chain, finer: Chain, limit: int) -> Chain | NDArray[np.bool_]:
        """`chain` with its failing stretches taken from `finer`, in fewer than `limit` vertices; or else a
        mask of the samples of the rings that miss their bound, empty if all rings together miss theirs."""
        taken, apart = self._unlocked, self._unlocked
        for attempt in range(6):
            mended = chain.spliced(finer, taken, self._boundary).snapped(GRID, self._truth.size)
            rings = self._aligned(mended)
            if self._truth.iou(rings) < self._truth.min_iou:
                return self._unlocked
            if len(mended.points) >= limit:
                break
            meeting = np.concatenate(meeting_edges(mended.points, mended.ring))
            # A mask of the kept rings that miss their own bound. A single ring's is that of the mask.
            if len(rings) == 1 and self._truth.min_ring_iou <= self._truth.min_iou:
                far = np.zeros(1, np.bool_)
            else:
                far = self._truth.ring_ious(rings)[self._kept] < self._truth.min_ring_iou
            if not len(meeting) and not far.any():
                return mended
            apart = apart | far[self._boundary.ring]
            taken = apart | taken | mended.stretches(meeting, attempt, self._boundary)
        return apart


def _nested(rings: Sequence[Ring]) -> bool:
    """Whether every hole lies in an outer ring."""
    try:
        group_rings([ring for ring in rings if len(ring)])
    except ValueError:
        return False
    return True


def _descending(first: int, last: int) -> Iterator[int]:
    """Numbers from `first` down to `last`, in steps of a quarter and finally of one."""
    while first >= last:
        yield first
        first -= max(1, first // 4)


def _length(rings: Sequence[Ring]) -> float:
    """Length in px of all rings, each without its closing edge."""
    return sum(float(np.abs(np.diff(ring, axis=0)).sum()) for ring in rings)


def _count(rings: Sequence[Ring]) -> int:
    return sum(map(len, rings))


def _covered(toggles: Indices) -> int:
    return int((toggles[1::2] - toggles[::2]).sum())
