"""An immutable snapshot of a project's accepted labels, named by a digest of its content.

These rules hold for training, measuring and every export:

*Whose labels.* If a task has several annotators, the ground truth's labels count, else the newest ones. If an
image is in several tasks, the labels of the task labelled last count.
*Overlaps.* Labels may overlap; each keeps its whole mask. In a map of one class per pixel, a smaller label
lies on top of a larger one; of equally large ones, the one accepted later.
*Unlabelled area* is background, or unknown and ignored, as the project says.
*Class changes.* A label has the category of its last submission. The tool's categories come first, in its
order, then those that only labels have, sorted. So a renamed category keeps its old name beside the new one
until its labels are submitted again. Names last; their numbers do not.
*Sides* are explained in `clickmask.labels.split`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clickmask.datasets.assign import assign_images
from clickmask.errors import Gone, InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits, decode_image
from clickmask.labels.geometry import geometry_to_json
from clickmask.labels.split import (
    MIN_HELD_OUT,
    MIN_SPLIT_IMAGES,
    SIDES,
    Assigned,
    Side,
    neighbouring_pairs,
    quarantined,
)
from clickmask.labels.submissions import AcceptedLabel, LabelledImage, Unlabelled
from clickmask.masks.regions import mask_area
from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store
from clickmask.types import Size

IGNORED = 255  # class of unknown pixels in a class map
FOLDS = 5


class Pictures(Protocol):
    """Images by digest, like `clickmask.images.archive`."""

    def holds(self, digest: str) -> bool: ...

    def size_of(self, digest: str) -> int:
        """The file's size in bytes; 0 if it is not kept."""
        ...

    def read(self, digest: str) -> bytes:
        """The original file. Raises Gone if it is not kept."""
        ...


class NoPictures:
    def holds(self, digest: str) -> bool:
        return False

    def size_of(self, digest: str) -> int:
        return 0

    def read(self, digest: str) -> bytes:
        raise Gone(f"image {digest[:8]} is not kept")


@dataclass(frozen=True)
class Sample:
    """An image and the labels that count, sorted by key; there are none if its annotator found nothing."""

    image: str  # digest
    name: str  # original basename
    size: Size
    side: Side | None  # None if its pixels were not available, so its near duplicates are unknown
    quarantined: bool  # whether it has a near duplicate on another side
    group: str  # shared by near duplicates, direct or through others
    labels: tuple[AcceptedLabel, ...]

    @property
    def usable(self) -> bool:
        """Whether training and measuring may use it. It is exported either way."""
        return self.side is not None and not self.quarantined


@dataclass(frozen=True)
class Dataset:
    """A snapshot. `samples` are sorted by name, then digest. Equal datasets have equal digests."""

    tool: str
    project: str
    categories: tuple[str, ...]
    unlabelled: Unlabelled
    samples: tuple[Sample, ...]
    digest: str
    pictures: Pictures = field(compare=False, repr=False)

    def split(self, side: Side) -> list[Sample]:
        """The usable images on a side."""
        return [sample for sample in self.samples if sample.side == side and sample.usable]

    @property
    def too_few(self) -> bool:
        """Whether a split would say too little, so that models are cross-validated with `folds`."""
        sides = [len(self.split(side)) for side in SIDES]
        return sum(sides) < MIN_SPLIT_IMAGES or min(sides[1:]) < MIN_HELD_OUT


def snapshot(
    store: Store,
    tool: str,
    project: str,
    pictures: Pictures | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Dataset:
    """The labels that count now, after assigning sides. Raises InvalidRequest if nothing is annotated."""
    files = pictures or NoPictures()
    assign_images(store, tool, project, lambda digest: decode_image(files.read(digest), limits).pixels)
    images, labels = store.images(tool, project), store.labels(tool, project)
    if not images:
        raise InvalidRequest(f"the {tool.replace('_', ' ')} project {project[:80]!r} has no accepted labels")
    return create_dataset(
        images,
        labels,
        store.sides(tool, project),
        tool=tool,
        project=project,
        declared=store.categories(tool, project),
        unlabelled=store.unlabelled(tool, project),
        pictures=pictures,
    )


def create_dataset(
    images: Sequence[LabelledImage],
    labels: Sequence[AcceptedLabel],
    assigned: Sequence[Assigned] = (),
    *,
    tool: str,
    project: str,
    declared: Sequence[str] = (),
    unlabelled: Unlabelled = "background",
    pictures: Pictures | None = None,
) -> Dataset:
    """The dataset of these `images` and `labels`, in any order. `declared` are the tool's categories."""
    apart = quarantined(assigned)
    sides: dict[str, Side] = {image.digest: image.side for image in assigned}
    # The smallest digest in each group of near duplicates, by union-find.
    root = {image.digest: image.digest for image in assigned}

    def group(digest: str) -> str:
        while root.get(digest, digest) != digest:
            root[digest] = digest = root[root[digest]]
        return digest

    for a, b in neighbouring_pairs([image.fingerprint for image in assigned]):
        smallest, other = sorted((group(assigned[a].digest), group(assigned[b].digest)))
        root[other] = smallest
    # The labels of each image, from the task in which it was labelled last.
    by_task: dict[str, dict[str, list[AcceptedLabel]]] = {}
    for label in labels:
        by_task.setdefault(label.image, {}).setdefault(label.key.task, []).append(label)
    chosen = {
        image: max(tasks.items(), key=lambda each: (max(label.accepted_at for label in each[1]), each[0]))[1]
        for image, tasks in by_task.items()
    }
    by_digest: dict[str, list[LabelledImage]] = {}
    for image in images:
        by_digest.setdefault(image.digest, []).append(image)
    samples = [
        Sample(
            digest,
            min(image.name for image in same),
            same[0].size,
            sides.get(digest),
            digest in apart,
            group(digest),
            tuple(sorted(chosen.get(digest, ()), key=_order)),
        )
        for digest, same in by_digest.items()
    ]
    extra = sorted({label.category for sample in samples for label in sample.labels} - set(declared))
    unnamed = Dataset(
        tool,
        project,
        (*dict.fromkeys(declared), *extra),
        unlabelled,
        tuple(sorted(samples, key=lambda sample: (sample.name, sample.image))),
        digest="",
        pictures=pictures or NoPictures(),
    )
    # The digest covers everything except the times of acceptance and the location of the pictures.
    fields = ("image", "name", "size", "side", "quarantined", "group")
    written = [
        {
            **{name: getattr(sample, name) for name in fields},
            "labels": [
                [asdict(each.key), each.category, geometry_to_json(each.geometry), each.rle, each.proposal]
                for each in sample.labels
            ],
        }
        for sample in unnamed.samples
    ]
    content = json.dumps([tool, project, unnamed.categories, unlabelled, written], sort_keys=True)
    return replace(unnamed, digest=hashlib.sha256(content.encode()).hexdigest())


def class_map(sample: Sample, categories: Sequence[str], unlabelled: Unlabelled) -> NDArray[np.uint8]:
    """Map (H, W) of uint8, a class per pixel: 0 is background, i + 1 is `categories[i]`, IGNORED is unknown.

    Labels of other categories are unknown too. Raises ValueError for more than 254 categories.
    """
    if len(categories) >= IGNORED:
        raise ValueError(f"a class map has room for {IGNORED - 1} categories, not {len(categories)}")
    numbers = {category: number for number, category in enumerate(categories, 1)}
    classes = np.full(sample.size, 0 if unlabelled == "background" else IGNORED, np.uint8)
    masks = [(label, rle_to_mask(label.rle)) for label in sample.labels]
    masks.sort(key=lambda each: (-mask_area(each[1]), each[0].accepted_at, _order(each[0])))
    for label, mask in masks:
        classes[mask] = numbers.get(label.category, IGNORED)
    return classes


def folds(dataset: Dataset, count: int = FOLDS) -> list[tuple[list[Sample], list[Sample]]]:
    """`count` pairs of training and measured images, for `too_few` datasets. Measures each usable image once.

    Near duplicates share a fold; with fewer groups of them than `count`, each group is a fold. Training uses
    images of all sides, so a model from here must never be the parent of one measured on the test side.
    """
    usable = [sample for sample in dataset.samples if sample.usable]
    groups: dict[str, list[Sample]] = {}
    for sample in usable:
        groups.setdefault(sample.group, []).append(sample)
    # Assign the largest first, each to the smallest fold, so that folds are of similar size.
    order = sorted(groups, key=lambda group: (-len(groups[group]), group))
    held_out: list[list[Sample]] = [[] for _ in range(min(count, len(order)))]
    for group in order:
        min(held_out, key=len).extend(groups[group])
    if len(held_out) < 2:
        return []
    named = [(fold, {sample.image for sample in fold}) for fold in held_out]
    return [([sample for sample in usable if sample.image not in out], fold) for fold, out in named]


def _order(label: AcceptedLabel) -> tuple[str, ...]:
    key = label.key
    return (key.tool, key.project, key.task, key.annotation, key.region)
