"""An immutable snapshot of a project's accepted labels, named by a digest of its content.

These rules hold for training, measuring and every export:
*Whose labels.* An image has the labels of one annotation: of all that cover it, in whatever tasks, pages and
frames, the newest ground truth, else the tool's newest, else the newest that was imported; of pages and
frames that were saved at one time, the last on which something is. If that one has nothing but regions that
are no labels, such as points, the image is left out: it is no example of an image with nothing on it.
*Overlaps.* Labels may overlap; each keeps its whole mask. In a map of one class per pixel, a label of a
higher layer lies on top; on one layer the smaller label, and of equally large ones that with the later key.
*Unlabelled area* is background, or unknown and ignored, as the project says.
*Class changes.* A label has the category of its last submission. The tool's categories come first, in its
order, then those that only labels have, sorted. So a renamed category keeps its old name beside the new one
until its labels are submitted again. Names last; their numbers do not.
*Sides* are explained in `clickmask.labels.split`, and assigned once, when an image is first accepted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clickmask.errors import ClickmaskError, Gone, InvalidRequest, StoreUnavailable
from clickmask.images.decode import (
    DEFAULT_LIMITS,
    ImageLimits,
    decode_image,
    has_picture_ending,
    picture_ending,
)
from clickmask.labels.geometry import geometry_to_json
from clickmask.labels.split import (
    MIN_HELD_OUT,
    MIN_SPLIT_IMAGES,
    SIDES,
    Assigned,
    Side,
    choose_side,
    close,
    fingerprint,
    neighbouring_pairs,
    neighbouring_side,
    quarantined,
)
from clickmask.labels.submissions import AcceptedLabel, LabelledImage, Unlabelled
from clickmask.masks.rle import rle_area, rle_toggles
from clickmask.store import Store
from clickmask.types import Pixels, Size

IGNORED = 255  # class of unknown pixels in a class map
_MAX_QUERY_DIGESTS = 500
NumberT = TypeVar("NumberT", bound=np.unsignedinteger[Any])
PixelsOf = Callable[[str], Pixels]  # pixels by digest; raises ClickmaskError if they are not kept


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
    shown_as: tuple[LabelledImage, ...] = ()  # everywhere it is annotated, sorted by task and item
    pictures: Pictures = field(default=NoPictures(), compare=False, repr=False)

    @cached_property
    def ending(self) -> str:
        """The ending of the file's format, such as ".png", if `name` has none and the file is kept."""
        if has_picture_ending(self.name) or not self.pictures.holds(self.image):
            return ""
        try:
            return picture_ending(self.pictures.read(self.image))
        except Gone:  # dropped or damaged meanwhile
            return ""

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
    left_out: Mapping[str, int]  # numbers of regions that are no labels, by a word for them
    unclear: int  # images that are left out since they have only such regions
    pictures: Pictures = field(compare=False, repr=False)

    def split(self, side: Side) -> list[Sample]:
        """The usable images on a side."""
        return [sample for sample in self.samples if sample.side == side and sample.usable]

    @property
    def too_few(self) -> bool:
        """Whether a split would say too little, so that models are cross-validated with `folds`."""
        sides = [len(self.split(side)) for side in SIDES]
        return sum(sides) < MIN_SPLIT_IMAGES or min(sides[1:]) < MIN_HELD_OUT


def assign_image(
    store: Store,
    tool: str,
    project: str,
    digest: str,
    categories: frozenset[str],
    pixels_of: PixelsOf,
    wanted: Side | None = None,
) -> Side:
    """The side of an image with labels of `categories`. If it has none, it is assigned now: `wanted`, or one
    that is chosen by its pixels."""
    if side := store.side_of(tool, project, digest):
        return side
    shown = fingerprint(pixels_of(digest))
    while True:  # until no other process has assigned a side meanwhile
        hashes = store.hashes(tool, project)
        near = list[str]()
        if wanted is None:
            near = [hashes[index][0] for index in close(shown.hash, [code for _, code in hashes])]
        few = near if len(near) <= _MAX_QUERY_DIGESTS else None
        assigned = store.sides(tool, project, few) if near else []
        side = wanted or neighbouring_side(shown, assigned)
        if side is None:
            side = choose_side(digest, categories, store.side_counts(tool, project, categories))
        if final := store.assign_side(tool, project, digest, side, shown, known=len(hashes)):
            return final


def assign_images(store: Store, tool: str, project: str, pixels_of: PixelsOf) -> dict[str, ClickmaskError]:
    """Assign a side to each labelled image whose pixels were not available when it was accepted.

    Returns the digests whose pixels still are not, with the errors of `pixels_of`. These images are not used.
    """
    known = {digest for digest, _ in store.hashes(tool, project)}
    since = {image.digest: float("inf") for image in store.images(tool, project) if image.digest not in known}
    if not since:
        return {}
    categories: dict[str, set[str]] = {digest: set() for digest in since}
    for label in store.labels(tool, project):
        if label.image in since:
            since[label.image] = min(since[label.image], label.accepted_at)
            categories[label.image].add(label.category)
    missing: dict[str, ClickmaskError] = {}
    for digest in sorted(since, key=lambda image: (since[image], image)):
        try:
            assign_image(store, tool, project, digest, frozenset(categories[digest]), pixels_of)
        except StoreUnavailable:
            raise
        except ClickmaskError as error:
            missing[digest] = error
    return missing


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
    images = store.images(tool, project)
    while True:  # an annotation that is accepted between the two reads would leave an image without labels
        labels, before = store.labels(tool, project), images
        images = store.images(tool, project)
        if images == before:
            break
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
    sets: dict[tuple[str, str, int], list[AcceptedLabel]] = {}
    for label in sorted(labels, key=lambda each: each.key):
        sets.setdefault((label.image, label.key.task, label.item), []).append(label)

    def rank(image: LabelledImage) -> tuple[object, ...]:
        # Pages and frames are saved together, whether or not anything was drawn on them.
        marked = ((image.digest, image.task, image.item) in sets, bool(image.left_out))
        own = not image.imported
        return (image.ground_truth, own, image.accepted_at, *marked, image.task, image.item)

    by_digest: dict[str, list[LabelledImage]] = {}
    for image in images:
        by_digest.setdefault(image.digest, []).append(image)
    kept = pictures or NoPictures()
    samples: list[Sample] = []
    left_out, unclear = Counter[str](), 0
    for digest, same in by_digest.items():
        counts = max(same, key=rank)
        drawn = sets.get((digest, counts.task, counts.item), [])
        left_out.update(counts.left_out)
        if counts.left_out and not drawn:
            unclear += 1
            continue
        shown_as = tuple(sorted(same, key=lambda each: (each.task, each.item)))
        placed = (sides.get(digest), digest in apart, group(digest))
        name = min(image.name for image in same)
        samples.append(Sample(digest, name, counts.size, *placed, tuple(drawn), shown_as, kept))
    samples.sort(key=lambda sample: (sample.name, sample.image))
    extra = sorted({label.category for sample in samples for label in sample.labels} - set(declared))
    categories = (*dict.fromkeys(declared), *extra)
    # The digest covers all that an export or a training depends on: not when labels were accepted, and not
    # where the pictures are.
    fields = ("image", "name", "size", "side", "quarantined", "group")
    written: list[dict[str, object]] = []
    for sample in samples:
        row: dict[str, object] = {name: getattr(sample, name) for name in fields}
        row["labels"] = [
            [asdict(each.key), each.category, geometry_to_json(each.geometry), each.rle, each.proposal]
            + [each.layer] * (each.layer != 0)  # without it, as before there were layers
            for each in sample.labels
        ]
        # Only if a tool's import knows the image by another name: earlier digests stay valid.
        if frames := [(each.task, each.item, each.known_as) for each in sample.shown_as if each.known_as]:
            row["known_as"] = frames
        written.append(row)
    content = json.dumps([tool, project, categories, unlabelled, written], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    found = (categories, unlabelled, tuple(samples), digest, left_out, unclear)
    return Dataset(tool, project, *found, kept)


def class_map(sample: Sample, categories: Sequence[str], unlabelled: Unlabelled) -> NDArray[np.uint8]:
    """Map (H, W) of uint8, a class per pixel: 0 is background, i + 1 is `categories[i]`, IGNORED is unknown.

    Labels of other categories are unknown too. Raises ValueError for more than 254 categories.
    """
    if len(categories) >= IGNORED:
        raise ValueError(f"a class map has room for {IGNORED - 1} categories, not {len(categories)}")
    numbers = {category: number for number, category in enumerate(categories, 1)}
    ground = 0 if unlabelled == "background" else IGNORED
    return paint(sample, [numbers.get(label.category, IGNORED) for label in sample.labels], ground)


def paint(
    sample: Sample, numbers: Sequence[int], ground: int, kind: type[NumberT] = np.uint8
) -> NDArray[NumberT]:
    """Map (H, W) of `ground`, with each label's pixels set to its number, those of upper labels on top."""
    height, width = sample.size
    columns = np.full((width, height), ground, kind)
    flat = columns.reshape(-1)
    number_of = {id(label): number for label, number in zip(sample.labels, numbers, strict=True)}
    for label in bottom_to_top(sample.labels):
        for start, end in rle_toggles(label.rle).reshape(-1, 2).tolist():
            flat[start:end] = number_of[id(label)]
    return np.ascontiguousarray(columns.T)


def bottom_to_top(labels: Iterable[AcceptedLabel]) -> list[AcceptedLabel]:
    """`labels` in the order in which they cover each other, in a map of one class or object per pixel."""
    return sorted(labels, key=lambda each: (each.layer, -rle_area(each.rle), each.key))


def folds(dataset: Dataset, count: int = 5) -> list[tuple[list[Sample], list[Sample]]]:
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
