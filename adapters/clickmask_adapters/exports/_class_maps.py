"""Indexed PNG files with one class or object per pixel, in the colours of Pascal VOC."""

from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from clickmask.datasets.snapshot import IGNORED, Dataset, Sample, class_map, paint
from clickmask.errors import Failed, InvalidRequest
from clickmask.masks.rle import rle_area, unite


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
    """Number the objects; 0 is background, 255 unknown. More than 254 objects have no file."""
    if has_room(sample):
        ground = 0 if dataset.unlabelled == "background" else IGNORED
        _write_indexed(paint(sample, range(1, len(sample.labels) + 1), ground), path)


def has_room(sample: Sample) -> bool:
    """Whether each object can have a number of its own in an indexed PNG file."""
    return len(sample.labels) < IGNORED


def overlaps(dataset: Dataset) -> tuple[int, str]:
    """Images with overlapping labels, of which such a file keeps one for each pixel."""
    hidden = sum(
        rle_area(unite([label.rle for label in sample.labels]))
        < sum(rle_area(each.rle) for each in sample.labels)
        for sample in dataset.samples
        if len(sample.labels) > 1
    )
    return hidden, "images have labels that overlap: the higher layer covers, on one layer the smaller label"


def _write_indexed(numbers: NDArray[np.uint8], path: Path) -> None:
    """Write `numbers` and read them back. Raises Failed if they differ."""
    image = PIL.Image.fromarray(numbers, "L")
    image.putpalette(palette())
    image.save(path, "PNG", compress_level=1)  # a third of the time of 6, for some kB more
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
