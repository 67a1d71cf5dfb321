"""Segment everything: click a promptable segmenter all over the image and keep the sound masks.

Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix B, like SamAutomaticMaskGenerator of
segment-anything 1.0 without crops, with its parameter names. Two things differ: only masks that pass are
computed at full size, and the grid lies in clickmask's frame, half a pixel of SAM's input from the reference,
which adds that half twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.annotators._catalogue import Host
from clickmask.errors import NotReady
from clickmask.inference import driver
from clickmask.inference.embeddings import BATCH, EmbeddingCache, EmbeddingKey
from clickmask.masks.regions import mask_box
from clickmask.plugins import Variant
from clickmask.types import Embedding, GridPromptable, Image, Mask, Prediction, Size

LABEL = "object"
JUDGED_SIDE = 1024  # px; masks of larger images are judged at this size, since SAM sees no more

Boxes = NDArray[np.float64]  # (N, 4) of left, top, right, bottom; the last column and row are inside


@dataclass(frozen=True)
class Grid:
    """Click positions and filters. Thresholds are the reference's, which chose them for ViT-H."""

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0  # logits
    box_nms_thresh: float = 0.7
    min_mask_region_area: int = 100  # pixels: smaller islands and holes are not part of an object


GRID = Grid()


@dataclass(frozen=True, eq=False)
class Candidate:
    """One answer to one click with a high score and a stable outline."""

    logits: NDArray[np.float16]  # (1, h, w); there may be thousands, and half precision moves no outline
    score: float
    box: NDArray[np.float64]  # (4,) of the mask at the size at which it was judged


class SegmentEverything:
    """An annotator that keeps nothing of an image but its embedding, in the cache that clicks use."""

    labels = (LABEL,)

    def __init__(self, name: str, segmenter: GridPromptable[Any], cache: EmbeddingCache, sweep: Grid) -> None:
        self.name = name
        self._segmenter = segmenter
        self._embeddings = cache
        self._sweep = sweep

    def annotate(self, image: Image) -> list[tuple[str, Prediction]]:
        """Label every object. Raises Busy while too many other images wait to be encoded."""
        segmenter, sweep = self._segmenter, self._sweep
        key = EmbeddingKey(segmenter.name, image.digest)
        embedding, _ = self._embeddings.get(key, lambda: driver.encode(segmenter, image), BATCH)
        candidates = list(self._candidates(embedding, image.size))
        boxes = np.array([candidate.box for candidate in candidates]).reshape(-1, 4)
        scores = np.array([candidate.score for candidate in candidates])
        best = [candidates[index] for index in distinct(boxes, scores, sweep.box_nms_thresh)]
        masks: list[Mask] = []
        untouched: list[bool] = []
        for each in best:
            mask = segmenter.enlarge(embedding, each.logits.astype(np.float32), image.size)
            masks.append(without_small_regions(mask, sweep.min_mask_region_area))
            untouched.append(masks[-1] is mask)
        # Masks may be alike once their small regions are gone; those that had none win.
        boxes = np.array([inclusive_box(mask) for mask in masks]).reshape(-1, 4)
        kept = distinct(boxes, np.array(untouched, np.float64), sweep.box_nms_thresh)
        return [
            (LABEL, Prediction(masks[index], min(max(best[index].score, 0.0), 1.0), self.name))
            for index in sorted(kept)  # `best` is in order
            if masks[index].any()
        ]

    def _candidates(self, embedding: Embedding, size: Size) -> Iterator[Candidate]:
        """Answers to clicks on the grid whose masks, cut at higher and lower logits, are nearly the same."""
        sweep, enlarge = self._sweep, partial(self._segmenter.enlarge, embedding)
        scale = min(1.0, JUDGED_SIDE / max(size))
        judged = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        points = grid(sweep.points_per_side) * (size[1], size[0])
        for start in range(0, len(points), sweep.points_per_batch):
            batch = points[start : start + sweep.points_per_batch]
            logits, scores = self._segmenter.decode_clicks(embedding, batch)
            for point, answer in np.argwhere(scores > sweep.pred_iou_thresh):
                one = logits[point, answer][None]
                larger = np.count_nonzero(enlarge(one, judged, -sweep.stability_score_offset))
                smaller = np.count_nonzero(enlarge(one, judged, sweep.stability_score_offset))
                if larger and smaller / larger >= sweep.stability_score_thresh:
                    box = inclusive_box(enlarge(one, judged))
                    yield Candidate(one.astype(np.float16), float(scores[point, answer]), box)


def variants(host: Host) -> Mapping[str, Variant]:
    """One variant for each segmenter that says `sweeps`."""
    return {name: Variant() for name, variant in host.segmenters.variants().items() if variant.sweeps}


def missing(variant: str, host: Host) -> str:
    try:
        host.segmenters.require_ready(variant)
    except NotReady as error:
        return str(error)
    return ""


def labels(variant: str, host: Host) -> tuple[str, ...]:
    return (LABEL,)


def load(variant: str, host: Host) -> SegmentEverything:
    """Load the segmenter. Raises NotFound and NotReady."""
    segmenter = host.segmenters.get(variant)
    if not isinstance(segmenter, GridPromptable):
        raise NotReady(f"{variant} cannot be clicked all over an image")
    return SegmentEverything(f"everything:{variant}", segmenter, host.embeddings, GRID)


def grid(points_per_side: int) -> NDArray[np.float64]:
    """(N, 2) points (x, y) in the unit square, row by row, half a step from its sides."""
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def distinct(boxes: Boxes, scores: NDArray[np.float64], iou: float) -> list[int]:
    """Indices of the boxes to keep, best first: those whose IoU with every better one is at most `iou`. As in
    torchvision's non-maximum suppression, a box one pixel wide has no area."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while waiting.size:
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        top_left = np.maximum(boxes[best, :2], boxes[waiting, :2])
        sides = (np.minimum(boxes[best, 2:], boxes[waiting, 2:]) - top_left).clip(min=0)
        shared = sides.prod(axis=1)
        waiting = waiting[shared <= iou * (areas[best] + areas[waiting] - shared)]
    return kept


def inclusive_box(mask: Mask) -> NDArray[np.float64]:
    """Left, top, right and bottom of the mask; all 0 if it is empty."""
    x0, y0, x1, y1 = mask_box(mask) or (0, 0, 1, 1)
    return np.array([x0, y0, x1 - 1, y1 - 1], np.float64)


def without_small_regions(mask: Mask, area: int) -> Mask:
    """`mask` without holes, then islands, of fewer than `area` pixels; the same object if it has none.
    Diagonal neighbours are one region. The largest island stays, however small."""
    regions, sizes = _regions(~mask)
    if (small := sizes < area).any():
        mask = mask | np.isin(regions, np.flatnonzero(small) + 1)
    regions, sizes = _regions(mask)
    if (large := sizes >= area).all():
        return mask
    kept = np.flatnonzero(large) if large.any() else np.argmax(sizes, keepdims=True)
    return np.isin(regions, kept + 1)


def _regions(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(H, W) numbers of connected regions, 0 outside them, and the areas of regions 1, 2, ..."""
    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return regions.astype(np.int32, copy=False), stats[1:, cv2.CC_STAT_AREA].astype(np.int32)
