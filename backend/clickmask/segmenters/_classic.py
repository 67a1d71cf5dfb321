"""Parts that the segmenters without a network share: the image at a small size, so that a click costs
milliseconds, regions of it, and the visible quality of an outline."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.masks.regions import draw_above
from clickmask.types import Box, Image, Mask, Pixels, Point, Prediction, Prompt, Size

RUNS_ON = "OpenCV on the CPU"
SMOOTHING = 0.7  # px of the small image, for enlarging a mask
WEIGHTS = (-0.11, 0.60, 0.35, -0.49, -0.48)  # see predicted_iou


@dataclass(frozen=True, eq=False)
class SmallImage:
    """An embedding: the small pixels and the original size."""

    pixels: Pixels  # (h, w, 3), read-only
    whole: Size

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    @property
    def size(self) -> Size:
        return size_of(self.pixels)

    def to_small(self, prompt: Prompt) -> Prompt:
        """`prompt` in the frame of the small pixels; a box keeps an area, a thin mask its pixels."""
        (height, width), (rows, columns) = self.whole, self.size
        sx, sy = columns / width, rows / height

        def scaled(points: Sequence[Point]) -> tuple[Point, ...]:
            return tuple((x * sx, y * sy) for x, y in points)

        box, mask = prompt.box, prompt.mask
        if box is not None:
            box = (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
        if mask is not None:
            mask = resized(mask.view(np.uint8) * np.uint8(255), self.size) > 0
        return Prompt(scaled(prompt.foreground), scaled(prompt.background), box, mask)


def shrink(image: Image, side: int) -> SmallImage:
    """`image` with a long side of at most `side` pixels."""
    scale = min(1.0, side / max(image.size))
    height, width = (max(1, round(length * scale)) for length in image.size)
    pixels = resized(image.pixels, (height, width))
    pixels.flags.writeable = False
    return SmallImage(pixels, image.size)


def lab(pixels: Pixels) -> NDArray[np.float32]:
    """(h, w, 3) CIE L*a*b* (D65), in which distances roughly match what an eye sees."""
    return np.asarray(cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def size_of(array: NDArray[Any]) -> Size:
    """(height, width) of an array, its first two axes."""
    height, width = array.shape[:2]
    return height, width


def pixel_at(point: Point, size: Size) -> tuple[int, int]:
    """Row and column of the pixel that contains `point`; on the far edges, the last one."""
    return min(int(point[1]), size[0] - 1), min(int(point[0]), size[1] - 1)


def disc(size: Size, centre: Point, radius: float) -> Mask:
    """Pixels whose centre is at most `radius` away, and always the one that contains `centre`, if any."""
    x, y = pixel_centres(size)
    found = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    if 0 <= centre[0] <= size[1] and 0 <= centre[1] <= size[0]:
        found[pixel_at(centre, size)] = True
    return found


def in_box(size: Size, box: Box) -> Mask:
    """The pixels whose centre is in `box`, at least the one in its middle."""
    x, y = pixel_centres(size)
    found = (box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])
    found[pixel_at(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), size)] = True
    return found


def pixel_centres(size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x (1, w) and y (h, 1) of the pixel centres."""
    height, width = size
    return np.arange(width, dtype=np.float64)[None] + 0.5, np.arange(height, dtype=np.float64)[:, None] + 0.5


def parts_at(mask: Mask, points: Sequence[Point]) -> Mask:
    """The 4-connected parts of `mask` that contain one of `points`."""
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    here = {int(labels[pixel_at(point, size_of(mask))]) for point in points}
    return mask & np.isin(labels, list(here))


def parts_touching(mask: Mask, start: Mask) -> Mask:
    """The 4-connected parts of `mask` that contain a pixel of `start`."""
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    return mask & np.isin(labels, np.unique(labels[start & mask]))


def without_rejected(mask: Mask, foreground: Sequence[Point], background: Sequence[Point]) -> Mask:
    """`mask` without what background clicks reject, reduced to the parts with a foreground click, if any. A
    part with only background clicks goes. If it has both kinds, each pixel belongs to the nearest click."""
    kept = mask.copy()
    if background:
        x, y = pixel_centres(size_of(mask))
        fore = [np.hypot(x - column, y - row) for column, row in foreground]
        back = [np.hypot(x - column, y - row) for column, row in background]
        kept &= ~parts_at(mask, background) | (np.min(fore, axis=0, initial=np.inf) <= np.min(back, axis=0))
    return parts_at(kept, foreground) if foreground else kept


def resized(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """A copy of `pixels` at `size`."""
    if pixels.shape[:2] == size:
        return pixels.copy()
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def enlarge(mask: Mask, whole: Mask) -> None:
    """Draw the smaller `mask` at the size of `whole`, which may be a view, with a smooth outline."""
    if mask.shape == whole.shape:
        whole[:] = mask
        return
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), SMOOTHING)
    draw_above(np.asarray(soft, np.float32), 0.5, whole)


def best_prediction(
    candidates: Iterable[Mask], pixels: Pixels, own: Prompt, size: Size, segmenter: str
) -> list[Prediction]:
    """The candidate with the highest predicted IoU on the small `pixels`, the first on ties, as a mask of
    `size`, without what `own`, the prompt in their frame, rejects. An empty mask without candidates."""
    kept = (without_rejected(found, own.foreground, own.background) for found in candidates)
    scored = ((found, predicted_iou(pixels, found)) for found in kept)
    nothing = np.zeros(pixels.shape[:2], np.bool_), 0.0
    best, score = max(scored, key=lambda each: each[1], default=nothing)
    mask = np.empty(size, np.bool_)
    enlarge(best, mask)
    return [Prediction(mask, min(max(score, 0.0), 1.0), segmenter)]


def predicted_iou(pixels: Pixels, found: Mask) -> float:
    """The expected IoU of `found` with the meant object, from four visible properties.

    A good mask ends along strong edges, differs in colour from its surroundings, does not lean on the frame
    and is not most of the image. Weights: least squares over 316 GrabCut masks of 79 objects in photographs
    (none of them in the tests), correlation with the true IoU .68. The estimate may lie a little outside
    [0, 1]; -1 is the whole image, -2 nothing.
    """
    if not found.any():
        return -2.0
    if found.all():
        return -1.0
    seen = (1.0, edge_strength(pixels, found), colour_contrast(pixels, found), framed(found), found.mean())
    return float(sum(weight * value for weight, value in zip(WEIGHTS, seen, strict=True)))


def edge_strength(pixels: Pixels, found: Mask) -> float:
    """Mean over the outline of 1 - exp(-d2 / (2 mean d2)), d2 squared colour differences of neighbours."""
    colours = pixels.astype(np.float32)
    across: list[NDArray[np.float32]] = []
    everywhere: list[NDArray[np.float32]] = []
    for axis in (0, 1):
        # (H, W, 3) @ (3,): `sum` over such a short axis takes fifteen times as long
        squares = np.square(np.diff(colours, axis=axis)) @ np.ones(3, np.float32)
        everywhere.append(squares.ravel())
        across.append(squares[np.diff(found, axis=axis)])
    scale = 2 * float(np.concatenate(everywhere).mean()) + 1e-6
    return float(np.mean(1 - np.exp(-np.concatenate(across) / scale)))


def colour_contrast(pixels: Pixels, found: Mask) -> float:
    """1 - Bhattacharyya coefficient of the colours inside and in a ring outside, 8 bins per channel."""
    width = max(2, int(0.35 * math.sqrt(found.sum())))
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    outside = (cv2.dilate(found.view(np.uint8), kernel) > 0) & ~found
    bins = (pixels >> 5).astype(np.intp) @ np.array([64, 8, 1])
    inner = np.bincount(bins[found], minlength=512) / found.sum()
    outer = np.bincount(bins[outside], minlength=512) / max(1, outside.sum())
    return float(1 - np.sqrt(inner * outer).sum())


def framed(found: Mask) -> float:
    """The share of the image's frame that `found` touches."""
    edges = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
    return float(edges.mean())
