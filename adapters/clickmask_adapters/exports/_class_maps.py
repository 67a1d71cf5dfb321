"""One class or one object a pixel, as indexed PNG files with the colours of Pascal VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from clickmask.datasets.snapshot import IGNORED, Dataset, Sample, class_map
from clickmask.errors import Failed, InvalidRequest
from clickmask.masks.regions import mask_area
from clickmask.masks.rle import rle_to_mask


def require_room(dataset: Dataset) -> None:
    """Raise InvalidRequest for more than 254 categories."""
    if len(dataset.categories) >= IGNORED:
        raise InvalidRequest(
            f"a PNG of classes has room for {IGNORED - 1} categories, not {len(dataset.categories)}"
        )


def write_classes(dataset: Dataset, sample: Sample, path: Path) -> None:
    """0 is background, i + 1 is `categories[i]`, 255 is unknown; for overlaps see `datasets.snapshot`."""
    _write_indexed(class_map(sample, dataset.categories, dataset.unlabelled), path)


def write_objects(dataset: Dataset, sample: Sample, path: Path) -> None:
    """0 is background, 255 is unknown; other numbers are the objects of the image.

    Raises InvalidRequest for more than 254 objects.
    """
    if len(sample.labels) >= IGNORED:
        raise InvalidRequest(
            f"{sample.name} has {len(sample.labels)} objects; a PNG of objects has room for {IGNORED - 1}"
        )
    numbers = np.full(sample.size, 0 if dataset.unlabelled == "background" else IGNORED, np.uint8)
    masks = [rle_to_mask(label.rle) for label in sample.labels]
    order = sorted(range(len(masks)), key=lambda n: (-mask_area(masks[n]), sample.labels[n].accepted_at, n))
    for index in order:  # as in a class map, the smaller one lies on the larger
        numbers[masks[index]] = index + 1
    _write_indexed(numbers, path)


def _write_indexed(numbers: NDArray[np.uint8], path: Path) -> None:
    """Write and read back. Raises Failed if that gives anything else."""
    image = PIL.Image.fromarray(numbers, "L")
    image.putpalette(palette())
    image.save(path, "PNG", optimize=False)
    with PIL.Image.open(path) as read:
        if read.mode != "P" or not np.array_equal(np.asarray(read), numbers):
            raise Failed(f"{path.name} does not read back as it was meant")


def palette() -> bytes:
    """The 256 colours of the VOC development kit's VOClabelcolormap: the bits of a number, three by
    three, are the high bits of red, green and blue; 255 is (224, 224, 192)."""
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()
