"""Counts the content of a dataset, and finds what looks wrong in it."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.labels.geometry import Brush, Ellipse, Polygon, Rectangle, rectangle_corners
from clickmask.labels.split import SIDES
from clickmask.labels.submissions import AcceptedLabel, LabelKey
from clickmask.masks.rle import rle_area, rle_box, rle_ious, rle_to_mask
from clickmask.types import Point

Kind = Literal["empty", "sliver", "outside", "duplicate", "absent", "quarantined", "unplaced"]

SMALL, LARGE = 32**2, 96**2  # pixels; COCO's bounds of small, medium and large objects
DUPLICATE_IOU = 0.9  # between two labels of one category
MAX_COMPARED = 2**22  # characters of run lengths, that pycocotools compares at once with one label
MAX_OVERHANG_PX = 1.0  # by which a geometry may leave its image


@dataclass(frozen=True)
class Flaw:
    kind: Kind
    sentence: str
    image: str  # digest; empty for a flaw of the dataset
    label: LabelKey | None


@dataclass(frozen=True)
class CategoryStatistics:
    category: str
    labels: int
    images: int
    areas: tuple[int, int, int] | None  # pixels: minimum, median, maximum; None without labels
    small: int  # labels below 32 x 32 pixels
    medium: int
    large: int  # labels above 96 x 96 pixels
    points: float | None  # median number of vertices; None without polygons


@dataclass(frozen=True)
class Statistics:
    images: int
    unlabelled_images: int  # images in which annotators found nothing
    labels: int
    sides: dict[str, int]  # images by side; the unused ones are quarantined or unplaced
    too_few: bool  # for a split, so that models are cross-validated
    categories: tuple[CategoryStatistics, ...]
    left_out: tuple[str, ...]  # see `left_out`
    flaws: tuple[Flaw, ...]


def count(dataset: Dataset) -> Statistics:
    labels = [label for sample in dataset.samples for label in sample.labels]
    categories: list[CategoryStatistics] = []
    for category in dataset.categories:
        own = [label for label in labels if label.category == category]
        areas = [rle_area(label.rle) for label in own]
        polygons = [label.geometry.rings for label in own if isinstance(label.geometry, Polygon)]
        points = [vertices for rings in polygons if (vertices := sum(map(len, rings)))]
        small, large = sum(area < SMALL for area in areas), sum(area > LARGE for area in areas)
        counts = CategoryStatistics(
            category,
            len(own),
            len({label.image for label in own}),
            (min(areas), round(statistics.median(areas)), max(areas)) if areas else None,
            small,
            len(areas) - small - large,
            large,
            float(statistics.median(points)) if points else None,
        )
        categories.append(counts)
    sides = Counter(
        "quarantined" if each.quarantined else each.side or "unplaced" for each in dataset.samples
    )
    return Statistics(
        len(dataset.samples),
        sum(not sample.labels for sample in dataset.samples),
        len(labels),
        {name: sides[name] for name in (*SIDES, "quarantined", "unplaced")},
        dataset.too_few,
        tuple(categories),
        tuple(left_out(dataset)),
        tuple(find_flaws(dataset)),
    )


def left_out(dataset: Dataset) -> Iterator[str]:
    """Sentences on what the tool has but the dataset has not."""
    if dataset.left_out:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(dataset.left_out.items()))
        number = sum(dataset.left_out.values())
        yield f"{number} regions are left out, as no label can be made of them: {kinds}"
    if dataset.unclear:
        yield f"{dataset.unclear} images are left out: they have only such regions"


def find_flaws(dataset: Dataset) -> Iterator[Flaw]:
    """Flaws that somebody should check; nothing is removed. A sliver is nowhere three pixels wide."""
    for sample in dataset.samples:
        if not sample.usable:
            kind: Kind = "quarantined" if sample.quarantined else "unplaced"
            why = "its picture is not kept, so that its near duplicates are not known"
            if sample.quarantined:
                why = "a near duplicate of it is on another side"
            sentence = f"{sample.name} is neither trained on nor measured: {why}"
            yield Flaw(kind, sentence, sample.image, None)
        for label in sample.labels:
            area = rle_area(label.rle)
            _, _, across, down = rle_box(label.rle)
            if not area:
                yield _flaw(sample, label, "empty", "covers no pixel")
            # A strip two pixels wide cannot wind more than that within its box.
            elif area <= 4 * (across + down) or area <= 0.1 * across * down:
                padded = np.pad(rle_to_mask(label.rle), 1).view(np.uint8)
                if not cv2.erode(padded, np.ones((3, 3), np.uint8)).any():
                    yield _flaw(sample, label, "sliver", f"of {area} pixels is nowhere three pixels wide")
            corners: list[Point] = []  # of a drawn shape; a painted one cannot leave its image
            match label.geometry:
                case Brush():
                    pass
                case Ellipse((x, y), radii, rotation):
                    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
                    reach_x, reach_y = np.hypot(*(np.array([(cos, sin), (sin, cos)]) * radii).T)
                    corners = [(x - reach_x, y - reach_y), (x + reach_x, y + reach_y)]
                case Polygon(rings):
                    corners = [point for ring in rings for point in ring]
                case Rectangle():
                    corners = rectangle_corners(label.geometry)
            if corners:
                (height, width), (xs, ys) = label.size, zip(*corners, strict=True)
                beyond = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
                if beyond > MAX_OVERHANG_PX:
                    what = f"goes {beyond:.0f} pixels beyond the {width}x{height} image"
                    yield _flaw(sample, label, "outside", what)
        for one, other in _duplicates([label for label in sample.labels if rle_area(label.rle)]):
            what = f"is there twice, as region {one.key.region} of task {one.key.task} too"
            yield _flaw(sample, other, "duplicate", what)
    if not dataset.too_few:
        labels = {side: [label for each in dataset.split(side) for label in each.labels] for side in SIDES}
        seen = {side: {label.category for label in labels[side]} for side in SIDES}
        for category in dataset.categories:
            if lacking := [side for side in SIDES if category not in seen[side]]:
                yield Flaw("absent", f"{category} has no label on: {', '.join(lacking)}", "", None)


def _duplicates(labels: Sequence[AcceptedLabel]) -> Iterator[tuple[AcceptedLabel, AcceptedLabel]]:
    """Each label that repeats an earlier one, after the first that it repeats."""
    rles, numbers = [label.rle for label in labels], dict[str, int]()
    categories = np.array([numbers.setdefault(label.category, len(numbers)) for label in labels])
    # A few rows at a time: pycocotools stops all threads, for all pairs of 4,000 squares for 27 s.
    step = max(1, MAX_COMPARED // max(1, sum(len(rle["counts"]) for rle in rles)))
    for start in range(0, len(labels), step):
        for place, ious in enumerate(rle_ious(rles[start : start + step], rles[: start + step]), start):
            alike = (ious[:place] >= DUPLICATE_IOU) & (categories[:place] == categories[place])
            if alike.any():
                yield labels[int(alike.argmax())], labels[place]


def _flaw(sample: Sample, label: AcceptedLabel, kind: Kind, what: str) -> Flaw:
    where = f"{sample.name}, task {label.key.task}, region {label.key.region}"
    return Flaw(kind, f"{where}: {label.category} {what}", sample.image, label.key)
