"""The served version of the model trained on a project's accepted labels, `trained:TOOL-PROJECT`.

Each pixel has one class, so an object is a connected part of a category. Its score is the network's mean
probability over its pixels.

A refiner, a promptable segmenter, outlines each object again from a mask and box prompt, and the better
outline stays. Without the truth the image decides, since neither of the two made it: if both agree on the
object, the outline with the greater change of colour along it wins. If they agree less, the segmenter
answered about something else: a part, or the surroundings. Its own score cannot decide, since the model's
object has none to compare.

Measured on 30 images of nuclei, new to the model but not to the built-in network, so this is an upper bound.
559 regions of a model with a foreground IoU of .71 had a mean IoU with the nearest nucleus of .52, refined
.60; 3 % of them lost more than .05. Three models with a foreground IoU of .854, .846 and .836 had .855, .856
and .851 refined. A segmenter that does not know such objects does harm: GrabCut turned .854 into .835. Off by
default.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.annotators._catalogue import Host
from clickmask.errors import Failed, NotReady
from clickmask.inference import driver
from clickmask.inference.embeddings import BATCH, EmbeddingCache, EmbeddingKey
from clickmask.masks.regions import (
    PIXELS_AT_ONCE,
    CroppedMask,
    as_bytes,
    box_slices,
    crop_mask,
    mask_area,
    mask_box,
)
from clickmask.models.labeller import Labelling
from clickmask.models.versions import ProjectModels
from clickmask.plugins import Variant
from clickmask.types import Image, Mask, Pixels, Prediction, Prompt, Segmenter

MIN_AREA_SHARE = 1e-4  # of the image's area; a smaller part is a speck
MIN_MEAN_PROBABILITY = 0.5  # over its pixels; below it a part is a fringe between surer classes
EDGE_REACH = 4  # px: how far away a pixel changes an edge's strength
SAME_OBJECT = 0.5  # minimum IoU of two masks of one object; .75 gave a third of the gain

Objects = list[tuple[str, Prediction]]  # with their labels, best first
Refiner = Callable[[Image, Objects], Objects]
Strengths = NDArray[np.float32]  # see edge_strengths


class Trained:
    """An annotator that labels each image with the version of the project's model served at that moment."""

    def __init__(self, name: str, folder: str, models: ProjectModels, refiner: Refiner | None = None) -> None:
        self.name = name
        self._folder = folder
        self._models = models
        self._refiner = refiner

    @property
    def labels(self) -> tuple[str, ...]:
        """Categories of the served version. Raises Failed."""
        version = self._models.named(self._folder).served()
        return version.provenance.categories if version else ()

    def annotate(self, image: Image) -> Objects:
        """Label the objects. Raises Failed, NotReady and, with a refiner, Busy."""
        version, labeller = self._models.served(self._folder)
        found = _objects(labeller.predict(image.pixels), version.provenance.categories, self.name)
        return self._refiner(image, found) if self._refiner else found


def variants(host: Host) -> Mapping[str, Variant]:
    return {name: Variant() for name in host.models.names()} if host.models else {}


def labels(variant: str, host: Host) -> tuple[str, ...]:
    return Trained("", variant, _models(host)).labels


def missing(variant: str, host: Host) -> str:
    try:
        _models(host).named(variant).served()
        if host.refiner:
            host.segmenters.require_ready(host.refiner)
    except (Failed, NotReady) as error:
        return str(error)
    return ""


def load(variant: str, host: Host) -> Trained:
    """Load the annotator. Raises NotFound or NotReady if the refiner is unknown or cannot run."""
    refiner = None
    if host.refiner:
        segmenter = host.segmenters.get(host.refiner)
        refiner = partial(refine, segmenter=segmenter, embeddings=host.embeddings)
    return Trained(f"trained:{variant}", variant, _models(host), refiner)


def _models(host: Host) -> ProjectModels:
    if host.models is None:
        raise NotReady("this process knows no trained models")
    return host.models


def _objects(labelling: Labelling, categories: tuple[str, ...], name: str) -> Objects:
    """Each part in its own box: thousands of whole masks would not fit into memory."""
    height, width = labelling.classes.shape
    min_area = MIN_AREA_SHARE * height * width
    found: Objects = []
    for number, category in enumerate(categories, 1):
        of_category = np.asarray(labelling.classes == number).view(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(of_category, connectivity=8)
        for part in range(1, count):
            left, top, across, down, area = (int(each) for each in stats[part])
            if area < min_area:
                continue
            inside: Mask = parts[top : top + down, left : left + across] == part
            mask = CroppedMask(inside, top, left, (height, width))
            score = min(_mean_inside(mask, labelling.confidence), 1.0)
            if score >= MIN_MEAN_PROBABILITY:
                found.append((category, Prediction(mask.whole, score, name, keep=False)))
        del parts  # before the next one's
    return sorted(found, key=lambda each: -each[1].score)


def _mean_inside(mask: CroppedMask, confidence: NDArray[np.float32]) -> float:
    """The mean of `confidence` (h, w) over the mask, which may be of a larger image: each of its pixels takes
    the value that its centre lies in."""
    (height, width), down, across = mask.size, len(confidence), len(confidence[0])
    rows = ((np.arange(len(mask.part)) + mask.top + 0.5) * down / height).astype(np.int64)
    columns = ((np.arange(len(mask.part[0])) + mask.left + 0.5) * across / width).astype(np.int64)
    step = max(1, PIXELS_AT_ONCE // len(columns))
    strips = (slice(top, top + step) for top in range(0, len(rows), step))
    sums = [confidence[rows[strip, None], columns].sum(where=mask.part[strip]) for strip in strips]
    return float(np.sum(sums) / np.count_nonzero(mask.part))


def refine(image: Image, found: Objects, segmenter: Segmenter[Any], embeddings: EmbeddingCache) -> Objects:
    """`found` with the segmenter's masks if better; labels, scores and order stay. Raises Busy, and what
    `encode` and `decode` raise."""
    if not found:
        return []
    key = EmbeddingKey(segmenter.name, image.digest)
    embedding, _ = embeddings.get(key, lambda: driver.encode(segmenter, image), BATCH)
    refined: Objects = []
    for label, region in found:
        whole = region.mask
        prompt = Prompt(box=mask_box(whole), mask=whole)
        answer = driver.decode(segmenter, embedding, prompt, image.size)[0]
        mask = better(whole, answer.mask, image.pixels)
        kept = crop_mask(mask).whole
        refined.append((label, Prediction(kept, region.score, region.segmenter, keep=False)))
    return refined


def better(region: Mask, answer: Mask, pixels: Pixels) -> Mask:
    """The better mask (see the module docstring); `region` if they are equal."""
    shared = np.count_nonzero(region & answer)
    if shared < SAME_OBJECT * (mask_area(region) + mask_area(answer) - shared):
        return region
    return answer if along(answer, pixels) > along(region, pixels) else region


def edge_strengths(pixels: Pixels) -> Strengths:
    """(H, W) change of colour around each pixel in levels, the maximum over the channels."""
    smooth = cv2.GaussianBlur(pixels, (0, 0), 1.0).astype(np.float32)
    across, down = (cv2.Scharr(smooth, cv2.CV_32F, *axis) / 32 for axis in ((1, 0), (0, 1)))
    return np.hypot(across, down).max(axis=2)


def along(mask: Mask, pixels: Pixels) -> float:
    """The mean of `edge_strengths` on the outline of `mask`, without the image's edges; 0 without an outline.
    A few rows at a time: strengths take forty times as much memory as the mask."""
    height, width = mask.shape
    rows, columns = box_slices(mask)
    columns = slice(max(0, columns.start - EDGE_REACH), columns.stop + EDGE_REACH)
    step = max(1, PIXELS_AT_ONCE // 8 // width)
    total, count = 0.0, 0
    for top in range(rows.start, rows.stop, step):
        bottom = min(top + step, rows.stop)
        seen = slice(max(0, top - EDGE_REACH), min(bottom + EDGE_REACH, height))
        part = mask[seen, columns]
        eroded = cv2.erode(as_bytes(part), np.ones((3, 3), np.uint8), borderValue=1)
        outline = (part & ~eroded.view(np.bool_))[top - seen.start : bottom - seen.start]
        if outline.any():
            strengths = edge_strengths(pixels[seen, columns])[top - seen.start : bottom - seen.start]
            total += float(strengths.sum(where=outline))
            count += np.count_nonzero(outline)
    return total / count if count else 0.0
