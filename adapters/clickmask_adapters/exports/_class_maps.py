"""Indexed PNG files with one class or object per pixel, in the colours of Pascal VOC."""

from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from clickmask.datasets.snapshot import IGNORED, Dataset, Sample, bottom_to_top, class_map
from clickmask.errors import Failed, InvalidRequest
from clickmask.masks.rle import rle_to_mask


def require_room(dataset: Dataset) -> None:
    """Raise InvalidRequest for more than 254 categories."""
    if len(dataset.categories) >= IGNORED:
        raise InvalidRequest(
            f"a PNG of classes has room for {IGNORED - 1} categories, not {len(dataset.categories)}"
        )


def write_classes(dataset: Dataset, sample: Sample, path: Path) -> None:
    """Write 0 for background, i + 1 for `categories[i]`, 255 for unknown. `class_map` settles overlaps."""
    _write_indexed(class_map(sample, dataset.categories, dataset.unlabelled), path)


def write_objects(dataset: Dataset, sample: Sample, path: Path) -> None:
    """Number the objects; 0 is background, 255 unknown. Raises InvalidRequest above 254 objects."""
    if len(sample.labels) >= IGNORED:
        raise InvalidRequest(
            f"{sample.name} has {len(sample.labels)} objects; a PNG of objects has room for {IGNORED - 1}"
        )
    numbers = np.full(sample.size, 0 if dataset.unlabelled == "background" else IGNORED, np.uint8)
    for label in bottom_to_top(sample.labels):
        numbers[rle_to_mask(label.rle)] = sample.labels.index(label) + 1
    _write_indexed(numbers, path)


def overlaps(dataset: Dataset) -> tuple[int, str]:
    """Images with overlapping labels, of which such a file keeps one for each pixel."""
    hidden = sum(
        int(np.sum([rle_to_mask(label.rle) for label in sample.labels], axis=0).max() > 1)
        for sample in dataset.samples
        if len(sample.labels) > 1
    )
    return hidden, "images have labels that overlap: the higher layer covers, on one layer the smaller label"


def _write_indexed(numbers: NDArray[np.uint8], path: Path) -> None:
    """Write `numbers` and read them back. Raises Failed if they differ."""
    image = PIL.Image.fromarray(numbers, "L")
    image.putpalette(palette())
    image.save(path, "PNG", optimize=False)
    with PIL.Image.open(path) as read:
        if read.mode != "P" or not np.array_equal(np.asarray(read), numbers):
            raise Failed(f"{path.name} does not read back as it was meant")


def palette() -> bytes:
    """The 256 colours of VOClabelcolormap in the VOC development kit: each three bits of a number give
    one bit of red, green and blue, from the high end; 255 is (224, 224, 192)."""
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()
