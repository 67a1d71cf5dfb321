"""Sentences on what a dataset loses in a format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from clickmask.datasets.snapshot import Dataset
from clickmask.masks.rle import rle_area, rle_to_mask
from clickmask_adapters.exports import _pictures


def sentences(counted: Iterable[tuple[int, str]]) -> list[str]:
    """`COUNT sentence` for each count that is not 0."""
    return [f"{count} {sentence}" for count, sentence in counted if count]


def empty_labels(dataset: Dataset) -> tuple[int, str]:
    empty = sum(rle_area(label.rle) == 0 for sample in dataset.samples for label in sample.labels)
    return empty, "labels cover no pixel and are left out"


def without_side(dataset: Dataset, therefore: str) -> tuple[int, str]:
    return sum(not sample.usable for sample in dataset.samples), f"images are on no side{therefore}"


def overlaps(dataset: Dataset) -> tuple[int, str]:
    """Images with overlapping labels, for a format with one number per pixel."""
    hidden = sum(
        int(np.sum([rle_to_mask(label.rle) for label in sample.labels], axis=0).max() > 1)
        for sample in dataset.samples
        if len(sample.labels) > 1
    )
    return hidden, "images have labels that overlap: the smaller one covers the larger"


def of_pictures(dataset: Dataset, names: Mapping[str, str]) -> list[str]:
    """Losses of the pictures in an export with these file names."""
    held = [sample for sample in dataset.samples if dataset.pictures.holds(sample.image)]
    return sentences(
        (
            (
                sum(names[sample.image] != sample.name for sample in dataset.samples),
                "images have another file name, for theirs is shared or not one on every system",
            ),
            (len(dataset.samples) - len(held), "images are not kept, and only described"),
            (
                sum(_pictures.picture(dataset, sample)[1] for sample in held),
                "images are copies that were turned upright, for many readers do not look at EXIF",
            ),
        )
    )
