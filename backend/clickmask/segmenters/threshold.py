"""Otsu's threshold, in a box or around a click.

Otsu: A Threshold Selection Method from Gray-Level Histograms, IEEE Trans. SMC 1979. The grey is the one of
L*, a*, b* whose two classes lie furthest apart for their spread, Otsu's own measure of goodness. Meant for
bright on dark or dark on bright: nuclei, parts on a table, print. In photographs of scenes others find more.
"""

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.inference.catalogue import Host
from clickmask.masks.regions import mask_box
from clickmask.plugins import About, Variant
from clickmask.segmenters import _classic as classic
from clickmask.segmenters._classic import SmallImage
from clickmask.types import Box, Image, Mask, Prediction, Prompt, Size

ABOUT = About("Otsu's threshold", "Otsu 1979, IEEE SMC", licence="Apache-2.0")
VARIANTS = {"": Variant(about=ABOUT)}
SIDE = 512  # px; longest side of the small image
SMOOTHING = 5  # px; median filter, against noise
SEED_RADIUS = 2.0  # px; the majority of such a disc gives the class of a click
RADII = (0.08, 0.16, 0.32)  # of sqrt(height * width): radii of the windows around clicks
MARGIN = 0.15  # of a box's sides, on each side: the background that its inside is compared with
SPANS = ((0.0, 100.0), (-100.0, 100.0), (-100.0, 100.0))  # of L*, a* and b*, mapped to 0 .. 255

Grey = NDArray[np.uint8]  # (h, w)
Window = tuple[slice, slice]  # rows, columns


class Threshold:
    """A segmenter without state. A mask prompt counts as its box."""

    name = "threshold"
    runs_on = classic.RUNS_ON

    def encode(self, image: Image) -> SmallImage:
        return classic.shrink(image, SIDE)

    def decode(self, embedding: SmallImage, prompt: Prompt) -> list[Prediction]:
        """One prediction: the mask with the highest predicted IoU over several windows around the clicks."""
        own = embedding.to_small(prompt)
        smooth = np.asarray(cv2.medianBlur(embedding.pixels, SMOOTHING), np.uint8)
        colours = classic.lab(smooth)
        greys = [
            np.rint((colours[..., channel] - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
            for channel, (low, high) in enumerate(SPANS)
        ]
        parts = (_part(greys, window, own) for window in _windows(own, embedding.size))
        return classic.best_prediction(parts, smooth, own, embedding.whole, self.name)


def load(variant: str, host: Host) -> Threshold:
    return Threshold()


def _windows(prompt: Prompt, size: Size) -> Iterator[Window]:
    """Windows around the box, or the mask's box, or the clicks."""
    box = prompt.box or (mask_box(prompt.mask) if prompt.mask is not None else None)
    if box is not None:
        across, down = MARGIN * (box[2] - box[0]), MARGIN * (box[3] - box[1])
        yield _window((box[0] - across, box[1] - down, box[2] + across, box[3] + down), size)
        return
    xs, ys = zip(*prompt.foreground, strict=True) if prompt.foreground else ((), ())
    for radius in (share * math.sqrt(size[0] * size[1]) for share in RADII if xs):
        yield _window((min(xs) - radius, min(ys) - radius, max(xs) + radius, max(ys) + radius), size)


def _window(box: Box, size: Size) -> Window:
    """The pixels that `box` touches, at least one."""
    left, top = (min(max(int(low), 0), length - 1) for low, length in zip(box[:2], size[::-1], strict=True))
    right, bottom = (math.ceil(high) for high in box[2:])
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def _part(greys: list[Grey], window: Window, prompt: Prompt) -> Mask:
    """The meant class, in the grey whose classes are furthest apart in `window`. The window's threshold holds
    for the whole image, so an object may reach beyond the window."""
    splits = [_otsu(grey[window]) for grey in greys]
    best = max(range(len(greys)), key=lambda index: splits[index][0])
    bright = greys[best] > splits[best][1]
    size = classic.size_of(bright)
    if prompt.foreground:  # the class that most clicks are on
        clicked = np.any([classic.disc(size, point, SEED_RADIUS) for point in prompt.foreground], axis=0)
        meant = bright[clicked].mean() > 0.5
    else:  # the class that avoids the window's frame
        meant = classic.framed(bright[window]) < bright[window].mean()
    found = bright if meant else ~bright
    return found if prompt.box is None else found & classic.in_box(size, prompt.box)


def _otsu(grey: Grey) -> tuple[float, float]:
    """Otsu's goodness of the best threshold, in [0, 1], and that threshold: bright is above it."""
    level, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    bright, values = grey > level, grey.astype(np.float64)
    if bright.all() or not bright.any():
        return 0.0, level
    above, below, share = values[bright].mean(), values[~bright].mean(), bright.mean()
    return float(share * (1 - share) * (above - below) ** 2 / values.var()), level
