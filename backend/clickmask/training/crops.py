"""Training crops: the same picture never comes twice in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.datasets.snapshot import Dataset, Sample, class_map
from clickmask.images.decode import ImageLimits, decode_image
from clickmask.masks.rle import rle_to_mask
from clickmask.models.labeller import MULTIPLE, prepared, working_size
from clickmask.types import Pixels

IGNORED = 255  # in labels: of unknown class
Labels = NDArray[np.uint8]  # (H, W): 0 background, k the k-th category, IGNORED
SCALES = (0.6, 2.0)  # of the picture's own size: of microscopy one camera has several magnifications
POWER = 0.3  # brightness is raised to powers between exp(-POWER) and exp(POWER),
GAIN = 0.15  # multiplied by up to 1 + GAIN,
TINT = 0.06  # each channel by up to 1 + TINT,
SATURATION = 0.25  # and what is coloured is more or less so, by this share
ON_AN_OBJECT = 0.7  # of the crops are centred on a pixel of a category, each category as often


class LabelledPixels(Protocol):
    """A picture and the class of each of its pixels; both may be read anew at each access."""

    @property
    def pixels(self) -> Pixels: ...

    @property
    def labels(self) -> Labels: ...


def draw_crop(sample: LabelledPixels, side: int, chance: np.random.Generator) -> tuple[Pixels, Labels]:
    """A square of `side`, scaled, flipped, turned by quarters and recoloured; new arrays.

    Where the picture is smaller than the crop, what lies beyond it is black, and IGNORED.
    """
    pixels, labels = sample.pixels, sample.labels
    scale = math.exp(chance.uniform(math.log(SCALES[0]), math.log(SCALES[1])))
    row, column = (
        _inside(at, length, side / scale)
        for at, length in zip(_centre(labels, chance), labels.shape, strict=True)
    )
    # One warp does scaling, cropping and padding. cv2 has pixel centres at whole numbers.
    warp = np.array([[scale, 0, side / 2 - scale * column], [0, scale, side / 2 - scale * row]])
    colours = np.asarray(cv2.warpAffine(pixels, warp, (side, side), flags=cv2.INTER_LINEAR), np.uint8)
    classes = cv2.warpAffine(labels, warp, (side, side), flags=cv2.INTER_NEAREST, borderValue=IGNORED)
    turns, mirrored = int(chance.integers(4)), bool(chance.integers(2))
    colours, classes = np.rot90(colours, turns), np.rot90(classes, turns)
    if mirrored:
        colours, classes = colours[:, ::-1], classes[:, ::-1]
    return _recoloured(colours, chance), np.array(classes, np.uint8)


def _centre(labels: Labels, chance: np.random.Generator) -> tuple[float, float]:
    """Row and column: of a pixel of a random category, or anywhere."""
    categories = np.setdiff1d(labels, (0, IGNORED))
    if len(categories) and chance.random() < ON_AN_OBJECT:
        rows, columns = np.nonzero(labels == chance.choice(categories))
        index = int(chance.integers(len(rows)))
        return float(rows[index]), float(columns[index])
    height, width = labels.shape
    return chance.uniform(0, height), chance.uniform(0, width)


def _inside(centre: float, length: int, across: float) -> float:
    """Moved so that the crop shows as much of the picture as it can: there is nothing to learn beyond."""
    return min(max(centre, across / 2), length - across / 2) if length > across else length / 2


def _recoloured(pixels: NDArray[np.uint8], chance: np.random.Generator) -> Pixels:
    """By a power, factors and saturation: to add a shade would cut off what is dark already."""
    power = math.exp(chance.uniform(-POWER, POWER))
    gain, saturation = 1 + chance.uniform(-GAIN, GAIN), 1 + chance.uniform(-SATURATION, SATURATION)
    values = (pixels.astype(np.float32) / 255) ** np.float32(power)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + (values - grey) * saturation
    values *= 255 * gain * (1 + chance.uniform(-TINT, TINT, 3))
    return np.rint(values).clip(0, 255).astype(np.uint8)


IN_MEMORY = 2**30  # bytes of decoded pictures; where there are more, they are read at each use
OBJECTS_ACROSS = 4  # a crop is so many times as wide as a typical object,
MIN_CROP_PX = 128  # px, and at least as wide as this, for the network looks as far


class TrainingPicture:
    """A sample's picture and classes, as networks are given them."""

    def __init__(self, dataset: Dataset, sample: Sample, limits: ImageLimits, keep: bool) -> None:
        self._dataset, self._sample, self._limits, self._keep = dataset, sample, limits, keep

    @property
    def pixels(self) -> Pixels:
        return self._pixels if self._keep else self._read()

    @property
    def labels(self) -> Labels:
        return self._labels if self._keep else self._draw()

    @cached_property
    def _pixels(self) -> Pixels:
        return self._read()

    @cached_property
    def _labels(self) -> Labels:
        return self._draw()

    def _read(self) -> Pixels:
        return prepared(decode_image(self._dataset.pictures.read(self._sample.image), self._limits).pixels)

    def _draw(self) -> Labels:
        classes = class_map(self._sample, self._dataset.categories, self._dataset.unlabelled)
        height, width = working_size(self._sample.size)
        if classes.shape == (height, width):
            return classes
        return np.asarray(cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def training_pictures(
    dataset: Dataset, samples: Sequence[Sample], limits: ImageLimits
) -> list[TrainingPicture]:
    keep = 4 * sum(math.prod(working_size(sample.size)) for sample in samples) <= IN_MEMORY
    return [TrainingPicture(dataset, sample, limits, keep) for sample in samples]


def crop_side(samples: Sequence[Sample], most: int) -> int:
    """In pixels: small where objects are, so that one step sees many pictures; at most `most`."""
    across = [
        math.sqrt(rle_to_mask(label.rle).sum()) * max(working_size(sample.size)) / max(sample.size)
        for sample in samples
        for label in sample.labels
    ]
    wanted = max(MIN_CROP_PX, OBJECTS_ACROSS * float(np.median(across)) if across else most)
    return _multiple(min(wanted, _largest(samples), most))


def wide_side(samples: Sequence[Sample], side: int, crops: int) -> int:
    """Of one crop with as many pixels as `crops` of `side`; at most that of the largest picture."""
    return _multiple(min(side * math.sqrt(crops), _largest(samples)))


def _largest(samples: Sequence[Sample]) -> int:
    return max(max(working_size(sample.size)) for sample in samples)


def _multiple(side: float) -> int:
    return math.ceil(side / MULTIPLE) * MULTIPLE
