"""The closed contour around a click: Canny's edges with their gaps closed, and what they enclose.

Canny: A Computational Approach to Edge Detection, IEEE TPAMI 1986. Edges have gaps, so they are thickened
until they fence a click in; several edge strengths and gap widths are tried. Good for sharp outlines of any
colour, but texture has edges too, and soft outlines have none.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.inference.catalogue import Host
from clickmask.masks.regions import fill_pinholes, mask_box
from clickmask.plugins import About, Variant
from clickmask.segmenters import _classic as classic
from clickmask.segmenters._classic import SmallImage
from clickmask.types import Image, Mask, Prediction, Prompt

ABOUT = About("Canny's edges", "Canny 1986, IEEE TPAMI", licence="Apache-2.0")
VARIANTS = {"": Variant(about=ABOUT)}
SIDE = 320  # px; longest side of the small image
BLUR = 1.4  # px, standard deviation, as in Canny's own examples
STRENGTHS = (0.98, 0.95, 0.9, 0.8, 0.7)  # quantiles of the gradient at which an edge begins
WEAKER = 0.4  # of that strength: an edge continues while it is at least this strong
GAPS = (1, 2, 4)  # px; half of the widest gap that is closed


class Contours:
    """A segmenter without state. A mask counts as its box, and a box's object is what edges cut off from its
    frame."""

    name = "contours"
    runs_on = classic.RUNS_ON

    def encode(self, image: Image) -> SmallImage:
        return classic.shrink(image, SIDE)

    def decode(self, embedding: SmallImage, prompt: Prompt) -> list[Prediction]:
        """One prediction, the enclosed area with the highest predicted IoU; empty if there is none."""
        own = embedding.to_small(prompt)
        enclosed = (_enclosed(edges, gap, own) for edges in _edges(embedding) for gap in GAPS)
        return classic.best_prediction(enclosed, embedding.pixels, own, embedding.whole, self.name)


def load(variant: str, host: Host) -> Contours:
    return Contours()


def _edges(embedding: SmallImage) -> Iterator[Mask]:
    """Canny's edges, from the strongest alone to weaker ones."""
    blurred = cv2.GaussianBlur(embedding.pixels, (0, 0), BLUR)
    dx, dy = (cv2.Sobel(blurred, cv2.CV_16S, *axis).astype(np.int32) for axis in ((1, 0), (0, 1)))
    strongest = (dx**2 + dy**2).argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(d, strongest, axis=2)[..., 0].astype(np.int16) for d in (dx, dy))
    gradient = np.hypot(dx.astype(np.float32), dy.astype(np.float32))
    for strength in STRENGTHS:
        above = float(np.quantile(gradient, strength))
        yield cv2.Canny(dx, dy, WEAKER * above, above, L2gradient=True) > 0


def _enclosed(edges: Mask, gap: int, prompt: Prompt) -> Mask:
    """The area that `edges` fence in once gaps of 2 * `gap` pixels are closed, with everything inside. Around
    a click it reaches to the fence or the image's edge; in a box, nothing outside reaches it."""
    kernel = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * gap + 1, 2 * gap + 1)), np.uint8)
    free = cv2.dilate(edges.view(np.uint8), kernel) == 0
    box = prompt.box or (mask_box(prompt.mask) if prompt.mask is not None else None)
    if box is not None:
        inside = classic.in_box(classic.size_of(edges), box)
        outside = np.ones_like(inside)  # paths from outside begin at the image's edge too
        outside[1:-1, 1:-1] = ~inside[1:-1, 1:-1]
        reached = classic.parts_touching(free | ~inside, outside)
        shut_off = inside & ~_thickened(reached, kernel)
        return fill_pinholes(shut_off, shut_off.size)
    fenced = _thickened(classic.parts_at(free, prompt.foreground), kernel)
    return fill_pinholes(fenced, fenced.size)


def _thickened(mask: Mask, kernel: NDArray[np.uint8]) -> Mask:
    """`mask` extended to the middle of the fence that was thickened with `kernel`."""
    return cv2.dilate(mask.view(np.uint8), kernel) > 0
