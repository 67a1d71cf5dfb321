"""Points, IoU and time of simplification, beside Douglas and Peucker's at the same IoU.

`python -m benchmarks.bench_simplify` in tests/.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import shapely
from skimage import data, segmentation

from clickmask.masks.polygons import group_rings, mask_to_polygons, polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Ring, Size

MIN_IOU = 0.98
SIZES = (60, 1500)  # px, of the 200 masks, evenly by their logarithm


def many_masks(count: int = 200) -> Iterator[tuple[str, Mask]]:
    """`count` masks of seven kinds with the name of the kind; the n-th is always the same."""
    photos = _photo_masks()
    for index in range(count):
        rng = np.random.default_rng(index)
        side = int(np.exp(rng.uniform(*np.log(SIZES))))
        kind = index % 7
        if kind == 6:
            yield "photograph", photos[index // 7 % len(photos)]
        else:
            draw = (wavy, superellipse, star, holed, several, ragged)[kind]
            yield draw.__name__, draw(rng, side)


def wavy(rng: np.random.Generator, side: int) -> Mask:
    waves = [(rng.normal() * 0.35 / k, rng.uniform(0, 7), k) for k in range(2, int(rng.integers(4, 9)))]
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    radius = np.maximum(0.25, 1 + sum(a * np.cos(k * angle + shift) for a, shift, k in waves))
    return _polygon(side, angle, 0.28 * side * radius)


def superellipse(rng: np.random.Generator, side: int) -> Mask:
    exponent, turn = rng.uniform(0.6, 5), rng.uniform(0, np.pi)
    a, b = rng.uniform(0.2, 0.45, 2) * side
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return np.abs(u / a) ** exponent + np.abs(v / b) ** exponent <= 1


def star(rng: np.random.Generator, side: int) -> Mask:
    tips = int(rng.integers(3, 9))
    angle = np.arange(2 * tips) * np.pi / tips + rng.uniform(0, 3)
    return _polygon(side, angle, 0.45 * side * np.where(np.arange(2 * tips) % 2, rng.uniform(0.35, 0.8), 1))


def holed(rng: np.random.Generator, side: int) -> Mask:
    mask = wavy(rng, side)
    y, x = np.mgrid[:side, :side] + 0.5
    for _ in range(int(rng.integers(1, 4))):
        centre = rng.uniform(0.3, 0.7, 2) * side
        mask &= np.hypot(x - centre[0], y - centre[1]) >= rng.uniform(0.03, 0.12) * side
    return mask


def several(rng: np.random.Generator, side: int) -> Mask:
    mask = np.zeros((side, side), bool)
    for _ in range(int(rng.integers(2, 6))):
        part = (wavy if rng.random() < 0.6 else superellipse)(rng, int(side * rng.uniform(0.25, 0.5)))
        y, x = rng.integers(0, side - len(part) + 1, 2)
        mask[y : y + len(part), x : x + len(part)] |= part
    return mask


def ragged(rng: np.random.Generator, side: int) -> Mask:
    """What a segmenter's noisy logits look like."""
    mask = (wavy if rng.random() < 0.5 else superellipse)(rng, side).astype(np.float32)
    noise = cv2.GaussianBlur(
        rng.standard_normal((side, side)).astype(np.float32), (0, 0), rng.uniform(1, max(1.2, side / 120))
    )
    return cv2.GaussianBlur(mask, (0, 0), side / 60) + 0.18 * noise / noise.std() > 0.5


def fewest_by_approx(mask: Mask, min_iou: float) -> tuple[int, float, float]:
    """Points, IoU and seconds of cv2.approxPolyDP, its epsilon bisected to `min_iou`.

    The better of two: on `cv2.findContours(..., RETR_CCOMP)`, where the mask is read in whatever way
    suits it best (drawn by cv2.fillPoly, or filled through pixel centres or corners), and on rings
    along pixel edges. Outlines with fewer than three points are left out.
    """
    start = time.perf_counter()
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    edges = [ring.astype(np.float32)[:, None] for ring in mask_to_polygons(mask)]
    best = min(
        _bisected(lambda e: _approx(contours, e, mask, (0.0, 0.5)), min_iou),
        _bisected(lambda e: _approx(edges, e, mask, (0.0,)), min_iou),
    )
    return *best, time.perf_counter() - start


def fewest_by_shapely(mask: Mask, min_iou: float) -> tuple[int, float, float]:
    """Points, IoU and seconds of shapely's simplify (topology kept), its tolerance bisected."""
    start = time.perf_counter()
    shape = shapely.MultiPolygon(group_rings(mask_to_polygons(mask)))

    def simplified(tolerance: float) -> tuple[int, float]:
        simple = shapely.simplify(shape, tolerance, preserve_topology=True)
        rings = [
            np.array(ring.coords)[:-1]
            for part in shapely.get_parts(simple)
            for ring in (part.exterior, *part.interiors)
        ]
        return sum(map(len, rings)), mask_iou(polygons_to_mask(rings, _size(mask)), mask)

    return *_bisected(simplified, min_iou), time.perf_counter() - start


def fewest_by_us(mask: Mask, min_iou: float) -> tuple[int, float, float]:
    start = time.perf_counter()
    simplified = simplify_mask(mask, min_iou)
    seconds = time.perf_counter() - start
    return simplified.points, mask_iou(polygons_to_mask(simplified.rings, _size(mask)), mask), seconds


def main() -> str:
    cv2.setNumThreads(1)
    rows = [
        "| masks | number | points: ours | approxPolyDP | shapely | IoU: ours | approxPolyDP | shapely "
        "| ms: ours | approxPolyDP | shapely | times faster than approxPolyDP |",
        "|---|" + "---:|" * 11,
    ]
    ways = (fewest_by_us, fewest_by_approx, fewest_by_shapely)
    masks = list(many_masks(70))
    for low, high in ((60, 150), (150, 400), (400, 800), (800, 1500)):
        chosen = [mask for _, mask in masks if low <= max(mask.shape) < high]
        rows.append(
            _row(f"{low} to {high} px", np.array([[way(m, MIN_IOU) for way in ways] for m in chosen]))
        )
    for name, draw in (("wavy", wavy), ("with holes", holed)):
        large = [_in_12_megapixels(draw(np.random.default_rng(seed), 2900)) for seed in (3, 5)]
        rows.append(_row(f"12 Mpx, {name}", np.array([[way(m, MIN_IOU) for way in ways] for m in large])))
    return "\n".join(rows)


def _row(name: str, measured: np.ndarray) -> str:
    means = measured.mean(axis=0)  # (ways, (points, IoU, seconds))
    cells = [f"{points:.1f}" for points in means[:, 0]] + [f"{iou:.4f}" for iou in means[:, 1]]
    cells += [f"{1e3 * seconds:.0f}" for seconds in means[:, 2]] + [f"{means[1, 2] / means[0, 2]:.1f}"]
    return f"| {name} | {len(measured)} | " + " | ".join(cells) + " |"


def _bisected(simplify: Callable[[float], tuple[int, float]], min_iou: float) -> tuple[int, float]:
    """The fewest points seen, and their IoU, while the tolerance is bisected to `min_iou`."""
    low, high = 0.0, 64.0
    best = simplify(low)
    for _ in range(14):
        tolerance = (low + high) / 2
        points, iou = simplify(tolerance)
        if iou >= min_iou:
            low, best = tolerance, min(best, (points, iou)) if best[1] >= min_iou else (points, iou)
        else:
            high = tolerance
    return best if best[1] >= min_iou else (sys.maxsize, best[1])


def _approx(contours: Any, epsilon: float, mask: Mask, offsets: tuple[float, ...]) -> tuple[int, float]:
    few = [approx for contour in contours if len(approx := cv2.approxPolyDP(contour, epsilon, True)) >= 3]
    ious = [
        mask_iou(polygons_to_mask([ring[:, 0] + np.float64(offset) for ring in few], _size(mask)), mask)
        for offset in offsets
    ]
    if few and few[0].dtype == np.int32:
        drawn = cv2.fillPoly(np.zeros(mask.shape, np.uint8), few, 1)
        ious.append(mask_iou(drawn.view(np.bool_), mask))
    return sum(map(len, few)), max(ious)


def _polygon(side: int, angle: np.ndarray, radius: np.ndarray) -> Mask:
    ring: Ring = side / 2 + np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return polygons_to_mask([ring], (side, side))


def _in_12_megapixels(mask: Mask) -> Mask:
    image = np.zeros((3000, 4000), bool)
    image[50 : 50 + len(mask), 500 : 500 + len(mask)] = mask
    return image


def _photo_masks() -> list[Mask]:
    """Thresholds and superpixels of photographs."""
    masks: list[Mask] = []
    for photo in (data.camera(), data.coins(), data.astronaut()[..., 1]):
        blurred = cv2.GaussianBlur(photo, (0, 0), 3)
        _, binary = cv2.threshold(blurred, 0, 1, cv2.THRESH_OTSU)
        masks += [binary.astype(bool), binary == 0]
        superpixels = segmentation.slic(blurred, 30, compactness=0.05, channel_axis=None, start_label=0)
        masks += [superpixels == label for label in range(0, superpixels.max(), 4)]
    return [mask for mask in masks if mask.sum() > 300]


def _size(mask: Mask) -> Size:
    return mask.shape[0], mask.shape[1]


if __name__ == "__main__":
    print(main())
