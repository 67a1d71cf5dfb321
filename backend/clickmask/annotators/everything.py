"""Segment everything: click a promptable segmenter all over the image and keep the sound masks.

Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix B, like SamAutomaticMaskGenerator of
segment-anything 1.0, with its parameter names. Four things differ: only masks that pass are computed at full
size; the grid lies in clickmask's frame, half a pixel of SAM's input from the reference, which adds that half
twice; crops have a fixed size, and only large images have some; and what fits into a crop is left to the
crops, since a coarse second outline of a small object is not always near enough to be recognised as one.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.annotators._catalogue import Host
from clickmask.errors import NotReady
from clickmask.inference import driver
from clickmask.inference.embeddings import BATCH, EmbeddingCache, EmbeddingKey
from clickmask.masks.regions import as_bytes, mask_box
from clickmask.masks.rle import Rle, mask_to_rle, rle_to_mask
from clickmask.plugins import Variant
from clickmask.types import Embedding, GridPromptable, Image, Mask, Prediction, Size

LABEL = "object"
JUDGED_SIDE = 1024  # px; masks of larger images are judged at this size, since SAM sees no more
EDGE_PX = 20  # a box as near to a crop's edge is taken to be cut by it, as in the reference

Boxes = NDArray[np.float64]  # (N, 4) of left, top, right, bottom; the last column and row are inside


class Crop(NamedTuple):
    """A part of the image, in its pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        return self.bottom - self.top, self.right - self.left

    @property
    def origin(self) -> NDArray[np.int64]:
        """What is added to a box in the crop, to have it in the image."""
        return np.tile(self[:2], 2)

    def pixels(self, image: NDArray[Any]) -> NDArray[Any]:
        """A view."""
        return image[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Grid:
    """Click positions and filters. Thresholds are the reference's, which chose them for ViT-H."""

    points_per_side: int = 32  # of the image, and of each crop
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0  # logits
    box_nms_thresh: float = 0.7
    crop_nms_thresh: float = 0.7
    min_mask_region_area: int = 100  # pixels: smaller islands and holes are not part of an object
    whole_side: int = 4096  # px; an image with a longer side is clicked in crops, too
    crop_side: int = 2048  # px
    crop_overlap: int = 512  # px, at least: smaller objects lie whole in some crop


GRID = Grid()


@dataclass(frozen=True, eq=False)
class Candidate:
    """One answer to one click with a high score and a stable outline."""

    logits: NDArray[np.float16]  # (1, h, w); there may be thousands, and half precision moves no outline
    score: float
    box: NDArray[np.float64]  # (4,) in the image, to the pixel of the size at which it was judged


@dataclass(frozen=True, eq=False)
class Found:
    """An object of a crop. Of a large image there may be thousands, so its mask is kept as run lengths."""

    crop: Crop
    rle: Rle  # of the crop
    score: float
    box: NDArray[np.float64]  # (4,) in the image, with small regions
    clean_box: NDArray[np.float64]  # and without
    clean: bool  # it had none

    def mask(self, size: Size) -> Mask:
        """The mask in the whole image of `size`."""
        whole = np.zeros(size, np.bool_)
        self.crop.pixels(whole)[:] = rle_to_mask(self.rle)
        return whole


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
        sweep, size = self._sweep, image.size
        whole, *parts = crops(size, sweep)
        found = self._objects(image, whole, parts)
        for part in parts:
            found += self._objects(image, part)
        # Of masks in several crops, that of the smaller crop wins, which shows more of it. Masks may be alike
        # once their small regions are gone; those that had none win.
        if parts:
            detail = np.array([1 / math.prod(each.crop.size) for each in found])
            boxes = np.array([each.box for each in found]).reshape(-1, 4)
            found = [found[index] for index in distinct(boxes, detail, sweep.crop_nms_thresh)]
        boxes = np.array([each.clean_box for each in found]).reshape(-1, 4)
        clean = np.array([each.clean for each in found], np.float64)
        kept = sorted(distinct(boxes, clean, max(sweep.box_nms_thresh, sweep.crop_nms_thresh)))
        best = sorted((found[index] for index in kept), key=lambda each: -each.score)
        return [(LABEL, self._prediction(each, size)) for each in best]

    def _prediction(self, found: Found, size: Size) -> Prediction:
        score = min(max(found.score, 0.0), 1.0)
        return Prediction(partial(found.mask, size), score, self.name, keep=False)

    def _objects(self, image: Image, crop: Crop, parts: Sequence[Crop] = ()) -> list[Found]:
        """The sound masks in `crop` that repeat no better one, best first; none that its edge cuts, and none
        that fits into one of its `parts`."""
        embedding = self._embedding(image, crop)
        candidates = [
            each for each in self._candidates(embedding, crop) if not is_cut(each.box, crop, image.size)
        ]
        boxes = np.array([each.box for each in candidates]).reshape(-1, 4)
        scores = np.array([each.score for each in candidates])
        found: list[Found] = []
        for index in distinct(boxes, scores, self._sweep.box_nms_thresh):
            each = candidates[index]
            if any(fits(each.box, part, image.size) for part in parts):
                continue
            raw = self._segmenter.enlarge(embedding, each.logits.astype(np.float32), crop.size)
            mask = without_small_regions(raw, self._sweep.min_mask_region_area)
            if mask.any():
                box = inclusive_box(mask) + crop.origin
                found.append(Found(crop, mask_to_rle(mask), each.score, each.box, box, mask is raw))
        return found

    def _embedding(self, image: Image, crop: Crop) -> Embedding:
        """Of the whole image, the embedding that clicks use; that of a part is kept nowhere."""
        segmenter = self._segmenter
        if crop.size == image.size:
            key = EmbeddingKey(segmenter.name, image.digest)
            return self._embeddings.get(key, lambda: driver.encode(segmenter, image), BATCH)[0]
        part = Image(crop.pixels(image.pixels).copy(), f"{image.digest} {tuple(crop)}")
        part.pixels.flags.writeable = False
        key = EmbeddingKey(segmenter.name, part.digest)
        return self._embeddings.compute(key, lambda: driver.encode(segmenter, part), BATCH)

    def _candidates(self, embedding: Embedding, crop: Crop) -> Iterator[Candidate]:
        """Answers to clicks on the grid whose masks, cut at higher and lower logits, are nearly the same."""
        sweep, enlarge = self._sweep, partial(self._segmenter.enlarge, embedding)
        size = crop.size
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
                    box = _scaled(inclusive_box(enlarge(one, judged)), judged, size) + crop.origin
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


def crops(size: Size, sweep: Grid) -> list[Crop]:
    """The whole image, and, if it is large, crops that cover it, spread evenly, row by row."""
    height, width = size
    whole = Crop(0, 0, width, height)
    if max(size) <= sweep.whole_side:
        return [whole]
    side = sweep.crop_side
    tops, lefts = (_starts(length, side, sweep.crop_overlap) for length in size)
    return [whole] + [
        Crop(left, top, min(left + side, width), min(top + side, height))
        for top, left in itertools.product(tops, lefts)
    ]


def is_cut(box: NDArray[np.float64], crop: Crop, size: Size) -> bool:
    """Whether `box` comes near an edge of `crop` that is no edge of the image of `size`."""
    at_crop, at_image = (np.abs(box - edges) <= EDGE_PX for edges in (crop, (0, 0, size[1], size[0])))
    return bool((at_crop & ~at_image).any())


def fits(box: NDArray[np.float64], crop: Crop, size: Size) -> bool:
    """Whether `crop` shows all of `box`."""
    inside = (box[:2] >= crop[:2]).all() and (box[2:] < crop[2:]).all()
    return bool(inside) and not is_cut(box, crop, size)


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


def _scaled(box: NDArray[np.float64], seen: Size, size: Size) -> NDArray[np.float64]:
    """The inclusive `box` in an image of the size `seen`, in one of `size`."""
    last = np.array([0, 0, 1, 1])
    return (box + last) * np.tile(np.array(size[::-1]) / seen[::-1], 2) - last


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Beginnings of the fewest pieces of `side` that cover `length` and share `overlap` with the next."""
    count = max(1, -(-(length - overlap) // (side - overlap)))
    return [round(start) for start in np.linspace(0, max(0, length - side), count)]


def without_small_regions(mask: Mask, area: int) -> Mask:
    """`mask` without holes, then islands, of fewer than `area` pixels; the same object if it has none.
    Diagonal neighbours are one region. The largest island stays, however small."""
    # A region that reaches further than `area` pixels from the mask's box is not small.
    x0, y0, x1, y1 = (round(edge) for edge in mask_box(mask) or (0, 0, *mask.shape[::-1]))
    around = np.s_[max(0, y0 - area) : y1 + area, max(0, x0 - area) : x1 + area]
    before = part = mask[around]
    regions, sizes = _regions(~part)
    if (small := sizes < area).any():
        part = part | np.isin(regions, np.flatnonzero(small) + 1)
    regions, sizes = _regions(part)
    if not (large := sizes >= area).all():
        kept = np.flatnonzero(large) if large.any() else np.argmax(sizes, keepdims=True)
        part = np.isin(regions, kept + 1)
    if part is before:
        return mask
    cleaned = mask.copy()
    cleaned[around] = part
    return cleaned


def _regions(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(H, W) numbers of connected regions, 0 outside them, and the areas of regions 1, 2, ..."""
    _, regions, stats, _ = cv2.connectedComponentsWithStats(as_bytes(mask), connectivity=8)
    return regions.astype(np.int32, copy=False), stats[1:, cv2.CC_STAT_AREA].astype(np.int32)
