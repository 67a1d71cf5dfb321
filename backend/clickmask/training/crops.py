"""Training pictures and augmented crops of them."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.datasets.snapshot import IGNORED, Dataset, Sample, class_map
from clickmask.images.decode import ImageLimits, decode_image
from clickmask.masks.rle import rle_to_mask
from clickmask.models.labeller import MULTIPLE, prepared, working_size
from clickmask.types import Pixels

Labels = NDArray[np.uint8]  # (H, W): 0 background, k the k-th category, IGNORED
SCALES = (0.6, 2.0)  # of the picture's own size: one microscope has several magnifications
POWER = 0.3  # brightness is raised to a power between exp(-POWER) and exp(POWER),
GAIN = 0.15  # then multiplied by up to 1 + GAIN,
TINT = 0.06  # and each channel by up to 1 + TINT
SATURATION = 0.25  # saturation is multiplied by up to 1 + SATURATION
ON_AN_OBJECT = 0.7  # share of crops centred on a pixel of a category, each category equally often
MAX_DECODED_BYTES = 2**30  # of pictures kept in memory; if they exceed it, each use reads them again
OBJECTS_ACROSS = 4  # width of a crop in typical objects,
MIN_CROP_PX = 128  # but at least this many pixels, which is as far as the network looks


class TrainingPicture:
    """A sample's picture and classes in network form, read once if `keep`, else at each use."""

    def __init__(self, dataset: Dataset, sample: Sample, limits: ImageLimits, keep: bool) -> None:
        self._dataset, self._sample, self._limits, self._keep = dataset, sample, limits, keep
        self._kept_pixels: Pixels | None = None
        self._kept_labels: Labels | None = None

    @property
    def pixels(self) -> Pixels:
        if self._kept_pixels is not None:
            return self._kept_pixels
        encoded = self._dataset.pictures.read(self._sample.image)
        pixels = prepared(decode_image(encoded, self._limits).pixels)
        self._kept_pixels = pixels if self._keep else None
        return pixels

    @property
    def labels(self) -> Labels:
        if self._kept_labels is not None:
            return self._kept_labels
        labels = class_map(self._sample, self._dataset.categories, self._dataset.unlabelled)
        size = working_size(self._sample.size)
        if labels.shape != size:
            labels = np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
        self._kept_labels = labels if self._keep else None
        return labels


def training_pictures(
    dataset: Dataset, samples: Sequence[Sample], limits: ImageLimits
) -> list[TrainingPicture]:
    """The pictures of `samples`, kept in memory if all of them fit into MAX_DECODED_BYTES."""
    keep = 4 * sum(math.prod(working_size(sample.size)) for sample in samples) <= MAX_DECODED_BYTES
    return [TrainingPicture(dataset, sample, limits, keep) for sample in samples]


def draw_crop(sample: TrainingPicture, side: int, chance: np.random.Generator) -> tuple[Pixels, Labels]:
    """A random square of `side` px, scaled, flipped, turned by quarters and recoloured; new arrays. If the
    picture is smaller than the crop, the rest is black and IGNORED."""
    pixels, labels = sample.pixels, sample.labels
    scale = math.exp(chance.uniform(math.log(SCALES[0]), math.log(SCALES[1])))
    across = side / scale  # px of the picture
    categories = np.setdiff1d(labels, (0, IGNORED))
    if len(categories) and chance.random() < ON_AN_OBJECT:
        centre = chance.choice(np.argwhere(labels == chance.choice(categories)))
    else:
        centre = chance.random(2) * labels.shape
    row, column = (
        # keep the crop as far inside the picture as its size allows
        min(max(at, across / 2), length - across / 2) if length > across else length / 2
        for at, length in zip(centre, labels.shape, strict=True)
    )
    # One warp scales, crops and pads. In cv2, pixel centres are whole numbers.
    warp = np.array([[scale, 0, side / 2 - scale * column], [0, scale, side / 2 - scale * row]])
    colours = np.asarray(cv2.warpAffine(pixels, warp, (side, side), flags=cv2.INTER_LINEAR), np.uint8)
    classes = cv2.warpAffine(labels, warp, (side, side), flags=cv2.INTER_NEAREST, borderValue=IGNORED)
    turns, step = int(chance.integers(4)), -1 if chance.integers(2) else 1
    colours, classes = (np.rot90(each, turns)[:, ::step] for each in (colours, classes))
    return _recoloured(colours, chance), np.array(classes, np.uint8)


def _recoloured(pixels: NDArray[np.uint8], chance: np.random.Generator) -> Pixels:
    """`pixels` with varied brightness, tint and saturation. No offset is added: it would clip the dark."""
    power = math.exp(chance.uniform(-POWER, POWER))
    gain, saturation = 1 + chance.uniform(-GAIN, GAIN), 1 + chance.uniform(-SATURATION, SATURATION)
    values = (pixels.astype(np.float32) / 255) ** np.float32(power)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + (values - grey) * saturation
    values *= 255 * gain * (1 + chance.uniform(-TINT, TINT, 3))
    return np.rint(values).clip(0, 255).astype(np.uint8)


def crop_side(samples: Sequence[Sample], most: int) -> int:
    """Side of crops in px, at most `most`. Small objects get small crops, so a step sees many pictures."""
    across = [
        math.sqrt(rle_to_mask(label.rle).sum()) * max(working_size(sample.size)) / max(sample.size)
        for sample in samples
        for label in sample.labels
    ]
    wanted = max(MIN_CROP_PX, OBJECTS_ACROSS * float(np.median(across)) if across else most)
    return _multiple(min(wanted, _largest(samples), most))


def wide_side(samples: Sequence[Sample], side: int, crops: int) -> int:
    """Side of one crop with as many pixels as `crops` of `side`, at most the largest picture's."""
    return _multiple(min(side * math.sqrt(crops), _largest(samples)))


def _largest(samples: Sequence[Sample]) -> int:
    return max(max(working_size(sample.size)) for sample in samples)


def _multiple(side: float) -> int:
    return math.ceil(side / MULTIPLE) * MULTIPLE
