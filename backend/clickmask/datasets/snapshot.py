"""An immutable snapshot of a project's accepted labels, named by a digest of all that is in it.

What is decided here, once, for training, measuring and every export:

*Whose labels.* Of several annotators of a task the store gives the ground truth's, else the newest.
A picture that is in several tasks has the labels of the task that was labelled last.
*Overlaps.* Labels may overlap, and each keeps its whole mask. Where one class a pixel is wanted, the
smaller label lies on the larger one; of equal ones the one accepted later.
*Unlabelled area* is background, or unknown and ignored: each project says which.
*Class changes.* A label has the category of its last submission. Categories are the tool's, in its
order, then those that only labels have, by name; so a category that the tool renamed stands beside
its new name until its labels are submitted again. Names last, their numbers do not.
*Sides* are explained in `clickmask.labels.split`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clickmask.datasets.assign import place_images
from clickmask.errors import ImageUnknown, InvalidRequest
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

IGNORED = 255  # in a class map
FOLDS = 5
Pixel = NDArray[np.uint8]


class Pictures(Protocol):
    """Images by digest, as `clickmask.images.archive` has them."""

    def holds(self, digest: str) -> bool: ...

    def size_of(self, digest: str) -> int:
        """Bytes of the file; 0 where it is not kept."""
        ...

    def read(self, digest: str) -> bytes:
        """The original file. Raises ImageUnknown where it is not kept."""
        ...


class NoPictures:
    def holds(self, digest: str) -> bool:
        return False

    def size_of(self, digest: str) -> int:
        return 0

    def read(self, digest: str) -> bytes:
        raise ImageUnknown(f"image {digest[:8]} is not kept")


@dataclass(frozen=True)
class Sample:
    """An image with the labels that count, by their keys; none where its annotator found nothing."""

    image: str  # digest
    name: str  # original basename
    size: Size
    side: Side | None  # None: its picture was not at hand, so that its neighbours are not known
    quarantined: bool  # it has a neighbour on another side
    group: str  # the same for images that are neighbours, directly or by others
    labels: tuple[AcceptedLabel, ...]

    @property
    def usable(self) -> bool:
        """Whether it may be trained on or measured on; it is exported either way."""
        return self.side is not None and not self.quarantined


@dataclass(frozen=True)
class Dataset:
    """`samples` by name, then digest. Equal ones have equal digests, whatever way they came about."""

    tool: str
    project: str
    categories: tuple[str, ...]
    unlabelled: Unlabelled
    samples: tuple[Sample, ...]
    digest: str
    pictures: Pictures = field(compare=False, repr=False)

    def split(self, side: Side) -> list[Sample]:
        """The images of that side that may be used."""
        return [sample for sample in self.samples if sample.side == side and sample.usable]

    @property
    def too_few(self) -> bool:
        """Whether a split would say too little: models are cross-validated then, see `folds`."""
        sides = [len(self.split(side)) for side in SIDES]
        return sum(sides) < MIN_SPLIT_IMAGES or min(sides[1:]) < MIN_HELD_OUT


def snapshot(
    store: Store,
    tool: str,
    project: str,
    pictures: Pictures | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Dataset:
    """What counts now. Images that could get no side when they were accepted get theirs if they can now.

    Raises InvalidRequest for a project without an accepted annotation.
    """
    files = pictures or NoPictures()
    place_images(store, tool, project, lambda digest: decode_image(files.read(digest), limits).pixels)
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
    placed: Sequence[Assigned] = (),
    *,
    tool: str,
    project: str,
    declared: Sequence[str] = (),
    unlabelled: Unlabelled = "background",
    pictures: Pictures | None = None,
) -> Dataset:
    """The dataset of these, in whatever order they are given. `declared` are the tool's categories."""
    apart = quarantined(placed)
    groups = _groups(placed)
    sides: dict[str, Side] = {image.digest: image.side for image in placed}
    chosen = _of_last_task(labels)
    samples = [
        Sample(
            digest,
            min(image.name for image in same),
            same[0].size,
            sides.get(digest),
            digest in apart,
            groups.get(digest, digest),
            tuple(sorted(chosen.get(digest, ()), key=_order)),
        )
        for digest, same in _by_digest(images).items()
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
    return replace(unnamed, digest=_digest(unnamed))


def class_map(sample: Sample, categories: Sequence[str], unlabelled: Unlabelled) -> Pixel:
    """One class a pixel, (H, W) uint8: 0 is background, i + 1 is `categories[i]`, IGNORED is unknown.

    Labels of other categories are unknown as well. Raises ValueError for more than 254 categories.
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
    """What to train on and what to measure on, `count` times: each usable image is measured once.

    For datasets that are `too_few`. Neighbours are in one fold; with fewer groups of them than
    `count`, each is a fold. Images of all sides are trained on, so no model from here may become
    the parent of one that is measured on the test side.
    """
    usable = [sample for sample in dataset.samples if sample.usable]
    groups: dict[str, list[Sample]] = {}
    for sample in usable:
        groups.setdefault(sample.group, []).append(sample)
    # The largest first, each to the fold that has least, so that folds are of a size.
    order = sorted(groups, key=lambda group: (-len(groups[group]), group))
    held_out: list[list[Sample]] = [[] for _ in range(min(count, len(order)))]
    for group in order:
        min(held_out, key=len).extend(groups[group])
    if len(held_out) < 2:
        return []
    named = [(fold, {sample.image for sample in fold}) for fold in held_out]
    return [([sample for sample in usable if sample.image not in out], fold) for fold, out in named]


def _by_digest(images: Iterable[LabelledImage]) -> dict[str, list[LabelledImage]]:
    found: dict[str, list[LabelledImage]] = {}
    for image in images:
        found.setdefault(image.digest, []).append(image)
    return found


def _of_last_task(labels: Iterable[AcceptedLabel]) -> dict[str, list[AcceptedLabel]]:
    """By image, the labels of the task in which it was labelled last."""
    by_task: dict[str, dict[str, list[AcceptedLabel]]] = {}
    for label in labels:
        by_task.setdefault(label.image, {}).setdefault(label.key.task, []).append(label)
    return {
        image: max(
            tasks.values(), key=lambda each: (max(label.accepted_at for label in each), each[0].key.task)
        )
        for image, tasks in by_task.items()
    }


def _groups(placed: Sequence[Assigned]) -> dict[str, str]:
    """Of each image the smallest digest among those that it is joined with."""
    root = list(range(len(placed)))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = index = root[root[index]]
        return index

    for a, b in neighbouring_pairs([image.fingerprint for image in placed]):
        one, other = sorted((find(a), find(b)), key=lambda index: placed[index].digest)
        root[other] = one
    return {image.digest: placed[find(index)].digest for index, image in enumerate(placed)}


def _order(label: AcceptedLabel) -> tuple[str, ...]:
    key = label.key
    return (key.tool, key.project, key.task, key.annotation, key.region)


def _digest(dataset: Dataset) -> str:
    """Of all but when labels were accepted, which changes nothing by itself, and of where pictures are."""
    samples = [
        {
            **{
                name: getattr(sample, name)
                for name in ("image", "name", "size", "side", "quarantined", "group")
            },
            "labels": [
                [
                    asdict(label.key),
                    label.category,
                    geometry_to_json(label.geometry),
                    label.rle,
                    label.proposal,
                ]
                for label in sample.labels
            ],
        }
        for sample in dataset.samples
    ]
    content = [dataset.tool, dataset.project, dataset.categories, dataset.unlabelled, samples]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
