"""What networks are trained on: a dataset's pictures and the classes of their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import cv2
import numpy as np

from clickmask.datasets import Dataset, Sample, class_map
from clickmask.images import ImageLimits, decode_image
from clickmask.masks import rle_to_mask
from clickmask.training.augmentation import Labels
from clickmask.training.serving import MULTIPLE, prepared, working_size
from clickmask.types import Pixels

IN_MEMORY = 2**30  # bytes of decoded pictures; where there are more, they are read at each use
OBJECTS_ACROSS = 4  # a crop is so many times as wide as a typical object,
SMALLEST_CROP = 128  # px, and at least as wide as this, for the network looks as far


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
    wanted = max(SMALLEST_CROP, OBJECTS_ACROSS * float(np.median(across)) if across else most)
    return _multiple(min(wanted, _largest(samples), most))


def wide_side(samples: Sequence[Sample], side: int, crops: int) -> int:
    """Of one crop with as many pixels as `crops` of `side`; at most that of the largest picture."""
    return _multiple(min(side * math.sqrt(crops), _largest(samples)))


def _largest(samples: Sequence[Sample]) -> int:
    return max(max(working_size(sample.size)) for sample in samples)


def _multiple(side: float) -> int:
    return math.ceil(side / MULTIPLE) * MULTIPLE
