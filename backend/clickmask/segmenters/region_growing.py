"""Seeded region growing: pixels connected with a click and of about its colour.

Adams, Bischof: Seeded Region Growing, IEEE TPAMI 1994. A region is grown at each tolerance of colour, and the
one that differs most from its surroundings is taken (Hojjatoleslami, Kittler: Region Growing: A New Approach,
IEEE TIP 1998). Good for objects of one colour; GrabCut finds more in photographs.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.inference.catalogue import Host
from clickmask.plugins import About, Variant
from clickmask.segmenters import _classic as classic
from clickmask.segmenters._classic import SmallImage
from clickmask.types import Image, Mask, Prediction, Prompt

ABOUT = About(
    "seeded region growing", "Adams 1994, IEEE TPAMI", prompts=("points", "box", "mask"), licence="Apache-2.0"
)
VARIANTS = {"": Variant(about=ABOUT)}
SIDE = 256  # px; longest side of the small image
SMOOTHING = 5  # px; median filter before colours are compared, against noise
SEED_RADIUS = 2.0  # px; a click's colour is the median of such a disc
TOLERANCES = (5.0, 7.0, 10.0, 14.0, 19.0, 25.0, 33.0, 43.0)  # distances in L*a*b*
COLOURS = 4  # of the frame of a box, and of a mask

Distances = NDArray[np.float32]  # (h, w) from each pixel's colour to the nearest of some colours


class RegionGrowing:
    """A segmenter without state. From a click the object grows. In a box the background grows inwards from
    the frame, and the object is the rest. From a mask the pixels with its colours grow."""

    name = "region_growing"
    runs_on = classic.RUNS_ON

    def encode(self, image: Image) -> SmallImage:
        return classic.shrink(image, SIDE)

    def decode(self, embedding: SmallImage, prompt: Prompt) -> list[Prediction]:
        """One prediction, from the tolerance whose region has the highest predicted IoU."""
        own = embedding.to_small(prompt)
        smooth = np.asarray(cv2.medianBlur(embedding.pixels, SMOOTHING), np.uint8)
        regions = _regions(classic.lab(smooth), own)
        return classic.best_prediction(regions, smooth, own, embedding.whole, self.name)


def load(variant: str, host: Host) -> RegionGrowing:
    return RegionGrowing()


def _regions(colours: NDArray[np.float32], prompt: Prompt) -> Iterator[Mask]:
    """A region for each tolerance, smallest first."""
    size = classic.size_of(colours)
    accepting = [classic.disc(size, point, SEED_RADIUS) for point in prompt.foreground]
    rejecting = [classic.disc(size, point, SEED_RADIUS) for point in prompt.background]
    accepted = np.min([_distance(colours, seed, 1) for seed in accepting], axis=0, initial=np.inf)
    rejected = np.min([_distance(colours, seed, 1) for seed in rejecting], axis=0, initial=np.inf)
    seeds = np.any(accepting, axis=0)
    if prompt.mask is not None:
        accepted = np.minimum(accepted, _distance(colours, prompt.mask, COLOURS))
    inside = np.ones(size, np.bool_) if prompt.box is None else classic.in_box(size, prompt.box)
    kernel = np.ones((3, 3), np.uint8)
    if prompt.box is not None and prompt.mask is None:
        # the pixels just outside the box, or the box's own frame if the image ends there
        frame = (cv2.dilate(inside.view(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~inside
        if not frame.any():
            frame = inside & (cv2.erode(np.pad(inside, 1).view(np.uint8), kernel)[1:-1, 1:-1] == 0)
        rejected = np.minimum(rejected, _distance(colours, frame, COLOURS))
        for tolerance in reversed(TOLERANCES):
            reached = classic.parts_touching((rejected <= tolerance) & (rejected <= accepted) | frame, frame)
            grown = (inside & ~reached).view(np.uint8)
            # without one-pixel threads, which edges of neither colour leave
            yield (cv2.morphologyEx(grown, cv2.MORPH_OPEN, kernel) > 0) | seeds & inside
    else:
        start = seeds if prompt.mask is None else seeds | prompt.mask
        for tolerance in TOLERANCES:
            similar = (accepted <= tolerance) & (accepted <= rejected) & inside
            grown = (similar | seeds).view(np.uint8)
            # with one-pixel gaps closed, which noise leaves
            yield classic.parts_touching(cv2.morphologyEx(grown, cv2.MORPH_CLOSE, kernel) > 0, start)


def _distance(colours: NDArray[np.float32], of: Mask, count: int) -> Distances:
    """Distances to the nearest of `count` colours that represent the pixels `of`."""
    found = colours[of]
    if not len(found):
        return np.full(colours.shape[:2], np.inf, np.float32)
    if count == 1 or len(found) <= count:
        centres = np.median(found, axis=0, keepdims=True)
    else:
        cv2.setRNGSeed(0)  # k-means++ draws; this seed gives the same answer at every call
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
        _, _, centres = cv2.kmeans(found, count, np.empty(0, np.int32), stop, 1, cv2.KMEANS_PP_CENTERS)
    differences = colours[:, :, None] - np.asarray(centres, np.float32)[None, None]  # (h, w, count, 3)
    return np.sqrt(np.square(differences).sum(axis=3)).min(axis=2)
