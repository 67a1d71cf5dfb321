"""Segmenters that need no prompt: a network gives the probability that each pixel is part of what it was
trained to find, and a prompt only picks the connected parts of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.masks.regions import box_slices, draw_above, mask_coverage
from clickmask.types import Box, Image, Mask, Pixels, Point, Prediction, Prompt, Size

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]  # (h, w): 0 outside, otherwise the part's number

THRESHOLDS = (0.5, 0.6, 0.7)  # of the candidates; the first one's mask is the answer without a prompt
MIN_PART_SHARE = 0.002  # of the image's area; without a prompt a smaller part is a speck
MOSTLY = 0.5  # of a part's area: with less of it in a box, the part is somebody else's


class Network(Protocol):
    """A network, for any thread."""

    @property
    def runtime(self) -> str: ...

    def probabilities(self, pixels: Pixels) -> Floats:
        """(h, w) of the whole image, stretched to the network's size. In an array that the caller owns."""
        ...


@dataclass(frozen=True, eq=False)
class ForegroundMap:
    """Probabilities of an image of `size`."""

    probabilities: Floats  # (h, w), read-only
    size: Size

    @property
    def nbytes(self) -> int:
        return self.probabilities.nbytes

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """Everything, to be stored; `ForegroundSegmenter.restore` reverses it."""
        return {"probabilities": self.probabilities, "size": np.asarray(self.size, np.int64)}


class ForegroundSegmenter:
    """A network, which never changes, and nothing of any image. `is_one`: all that it finds is one object;
    otherwise each connected part is one."""

    def __init__(self, name: str, label: str, network: Network, is_one: bool) -> None:
        self.name = name
        self._label = label
        self._network = network
        self._is_one = is_one

    @property
    def runs_on(self) -> str:
        return f"{self._network.runtime} on the CPU, f32"

    def encode(self, image: Image) -> ForegroundMap:
        return _map(self._network.probabilities(image.pixels), image.size)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> ForegroundMap:
        """The map that `arrays` were stored from; they may be rounded to half precision. Raises ValueError if
        they are not one."""
        probabilities, (height, width) = arrays["probabilities"], arrays["size"]
        if probabilities.ndim != 2:
            raise ValueError(f"probabilities of shape {probabilities.shape} are not of {self.name}")
        return _map(probabilities.astype(np.float32), (int(height), int(width)))

    def find(self, embedding: ForegroundMap) -> list[tuple[str, Prediction]]:
        """The objects, best first; maybe none."""
        threshold = THRESHOLDS[0]
        labels = _parts(embedding.probabilities > threshold)
        areas = np.bincount(labels.ravel())
        kept = [part for part in range(1, areas.size) if areas[part] >= MIN_PART_SHARE * labels.size]
        objects = [kept] if self._is_one and kept else [[part] for part in kept]
        found = [self._prediction(embedding, labels, np.isin(labels, parts), threshold) for parts in objects]
        return [(self._label, each) for each in sorted(found, key=lambda each: -each.score)]

    def decode(self, embedding: ForegroundMap, prompt: Prompt) -> list[Prediction]:
        """One candidate for each of THRESHOLDS, best first; only those that contradict the fewest points."""
        candidates: list[tuple[int, Prediction]] = []
        for threshold in THRESHOLDS:
            labels = _parts(embedding.probabilities > threshold)
            meant, contradicted = _meant(labels, prompt, embedding.size)
            found = self._prediction(embedding, labels, meant, threshold, prompt.box)
            candidates.append((contradicted, found))
        fewest = min(contradicted for contradicted, _ in candidates)
        kept = [found for contradicted, found in candidates if contradicted == fewest]
        kept.sort(key=lambda each: -each.score)
        return [each for each in kept if each.score > 0] or kept[:1]

    def _prediction(
        self, embedding: ForegroundMap, labels: Labels, meant: Mask, threshold: float, box: Box | None = None
    ) -> Prediction:
        """The `meant` parts, scored by the IoU that the probabilities expect in the parts' box."""
        around = box_slices(meant)
        inside = embedding.probabilities[meant].sum()
        beside = embedding.probabilities[around][labels[around] == 0].sum()
        score = min(float(inside / (np.count_nonzero(meant) + beside)), 1.0) if meant.any() else 0.0
        # Other parts lie at least a pixel away, so without them no outline moves.
        alone = np.where(meant | (labels == 0), embedding.probabilities, np.float32(0))
        draw = partial(_enlarge, alone, threshold, embedding.size, box)
        return Prediction(
            draw if meant.any() else partial(np.zeros, embedding.size, np.bool_), score, self.name
        )


def _map(probabilities: Floats, size: Size) -> ForegroundMap:
    probabilities.flags.writeable = False
    return ForegroundMap(probabilities, size)


def _parts(mask: Mask) -> Labels:
    """The connected parts; diagonal neighbours are one, since enlarging joins them."""
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(labels, np.int32)


def _meant(labels: Labels, prompt: Prompt, size: Size) -> tuple[Mask, int]:
    """The cells that the prompt means, and the number of its points that the parts contradict.

    A box or a mask means the parts that lie mostly in it, or else all that reach into it. Of those,
    foreground points mean the parts they lie on. A part with background points alone is not meant; of one
    with both kinds, each cell belongs to the nearest point.
    """
    areas = np.bincount(labels.ravel())
    meant = np.arange(areas.size) > 0
    regions: list[NDArray[np.floating]] = []
    if prompt.box is not None:
        regions.append(_box_coverage(prompt.box, size, labels.shape))
    if prompt.mask is not None:
        regions.append(mask_coverage(prompt.mask, labels.shape))
    for region in regions:
        shared = np.bincount(labels.ravel(), region.ravel())
        mostly = meant & (shared >= MOSTLY * areas)
        meant &= mostly if mostly.any() else shared > 0
    on, off = (
        [_part_at(labels, point, size) for point in each] for each in (prompt.foreground, prompt.background)
    )
    if on:
        meant &= np.isin(np.arange(areas.size), on)
    meant[list(set(off) - set(on))] = False
    contradicted = sum(not meant[part] for part in on) + sum(bool(meant[part]) for part in off)
    cells = meant[labels]
    if any(meant[part] for part in off):
        rows, columns = labels.shape
        x = (np.arange(columns, dtype=np.float64) + 0.5) * size[1] / columns
        y = (np.arange(rows, dtype=np.float64) + 0.5) * size[0] / rows
        near, far = (
            np.min([np.hypot(x - across, y[:, None] - down) for across, down in points], axis=0)
            for points in (prompt.foreground, prompt.background)
        )
        cells &= near <= far
    return cells, contradicted


def _box_coverage(box: Box, size: Size, grid: tuple[int, ...]) -> NDArray[np.float64]:
    """The share of each cell of a `grid` over the image of `size` that the box covers."""
    (down, across), (x0, y0, x1, y1) = (grid[0] / size[0], grid[1] / size[1]), box
    rows, columns = (
        (np.minimum(np.arange(cells) + 1, high) - np.maximum(np.arange(cells), low)).clip(0.0)
        for cells, low, high in ((grid[0], y0 * down, y1 * down), (grid[1], x0 * across, x1 * across))
    )
    return np.outer(rows, columns)


def _part_at(labels: Labels, point: Point, size: Size) -> int:
    """The part that the point lies on, or misses by less than a cell; 0 if there is none. Of the four cells
    around a point, all that are inside are of one part."""
    place = [point[1] * labels.shape[0] / size[0] - 0.5, point[0] * labels.shape[1] / size[1] - 0.5]
    low = [
        min(max(int(np.floor(each)), 0), length - 1) for each, length in zip(place, labels.shape, strict=True)
    ]
    return int(labels[low[0] : low[0] + 2, low[1] : low[1] + 2].max())


def _enlarge(probabilities: Floats, threshold: float, size: Size, box: Box | None) -> Mask:
    mask = np.empty(size, np.bool_)
    draw_above(probabilities, threshold, mask)
    if box is not None:
        (left, top), (right, bottom) = (
            (int(np.ceil(x - 0.5)), int(np.ceil(y - 0.5))) for x, y in (box[:2], box[2:])
        )
        for outside in (mask[:top], mask[bottom:], mask[:, :left], mask[:, right:]):
            outside[:] = False
    return mask
