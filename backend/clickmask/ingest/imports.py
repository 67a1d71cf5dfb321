"""Takes an existing dataset in as accepted labels, as if a tool had submitted them.

What a tool says of the same annotation always replaces an import, and an import never replaces what a tool
said. On one image the tool's labels count, whenever they were made. The same import twice changes nothing.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from clickmask.datasets.snapshot import assign_image
from clickmask.errors import ClickmaskError, InvalidRequest, StoreUnavailable
from clickmask.images.archive import ImageArchive
from clickmask.images.decode import stored_size
from clickmask.images.source import ImageIdentity, ImageSource
from clickmask.labels.geometry import Brush, Geometry, geometry_to_json, geometry_to_rle, rasterise
from clickmask.labels.split import Side, quarantined
from clickmask.labels.submissions import (
    ProjectDescribed,
    Region,
    Submission,
    Unlabelled,
    require_project_name,
)
from clickmask.masks.rle import mask_to_rle, rle_toggles
from clickmask.store import Store
from clickmask.store.accepted import IMPORTED
from clickmask.types import Image, Size


class Shown(NamedTuple):
    """Where an image was in the tool when it was exported, as in `Submission`."""

    task: str
    annotation: str
    item: int
    known_as: str


@dataclass(frozen=True)
class ImportedLabel:
    """An object of a dataset. Those of our own exports bring more than others."""

    category: str
    geometry: Geometry
    region: str = ""  # its id when it was exported
    proposal: str | None = None
    layer: int = 0


@dataclass(frozen=True)
class ImportedImage:
    """A picture of a dataset, and its labels in the frame of an image of `size`."""

    path: Path
    name: str  # the image's original basename
    labels: Sequence[ImportedLabel]
    size: Size | None = None  # (height, width); None if the dataset does not say
    side: Side | None = None  # None: chosen here
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])  # other objects, by a word for why
    shown_as: Shown | None = None


@dataclass(frozen=True)
class ImportedDataset:
    """A dataset as its format tells it. Each of `images` is read when it is its turn, and may raise
    InvalidRequest."""

    source: str  # the format and the file's name, for people
    made_at: float  # seconds since 1970
    categories: tuple[str, ...]
    images: Sequence[Callable[[], ImportedImage]]
    title: str = ""
    exported_from: tuple[str, str] | None = None  # tool and project, if it is an export of ours
    unlabelled: Unlabelled = "background"
    remarks: tuple[str, ...] = ()  # sentences on what the format, or this dataset, does not say


@dataclass(frozen=True)
class ImportProgress:
    """How far an import is."""

    done: int = 0  # images
    taken: int = 0  # images whose labels are new here
    known: int = 0  # images that were here already with the same labels
    labels: int = 0  # of those that were taken in
    left_out: tuple[str, ...] = ()  # sentences


def take_in(
    dataset: ImportedDataset,
    tool: str,
    project: str,
    store: Store,
    images: ImageSource,
    archive: ImageArchive,
) -> Generator[ImportProgress]:
    """Store the dataset's labels, pictures and sides. Yields after each picture, and at the end again, with
    sentences on the whole. A picture that cannot be taken in is left out. Raises InvalidInput if the project
    cannot be named so, and StoreUnavailable."""
    require_project_name(project)
    was_known = store.knows_project(tool, project)
    _describe(dataset, tool, project, store)
    authors = store.authors(tool)
    seen: dict[str, str] = {}
    taken, known, labels, done, moved = 0, 0, 0, 0, 0
    left_out, damaged = list[str](), Counter[str]()
    for done, read in enumerate(dataset.images, 1):
        name = ""
        try:
            picture = _picture(read)
            name = f"{picture.name}: "
            raw = _read(picture.path)
            image = images.load_bytes(raw)
            if other := seen.get(image.digest):
                raise InvalidRequest(f"it shows the same pixels as {other}, whose labels count")
            seen[image.digest] = picture.name
            submission = _submission(dataset, picture, tool, project, image, raw)
            damaged.update(submission.left_out)
            author, at = authors.get((submission.annotation, submission.item), ("", 0.0))
            if author == submission.author or (at and not author.startswith(IMPORTED)):
                known += 1
            else:
                newer = replace(
                    submission, updated_at=max(submission.updated_at, math.nextafter(at, math.inf))
                )
                side = _accept(newer, image, raw, picture.side, store, archive)
                moved += picture.side not in (None, side)
                taken, labels = taken + 1, labels + len(submission.regions)
        except StoreUnavailable:
            raise
        except ClickmaskError as error:
            left_out.append(name + str(error))
        yield ImportProgress(done, taken, known, labels, tuple(left_out))
    left_out += [f"{count} objects are {word} and left out" for word, count in sorted(damaged.items())]
    if moved:
        left_out.append(f"{moved} images were on another side here already, and stay there")
    if apart := len(quarantined(store.sides(tool, project)) & seen.keys()):
        said = "look like ones on another side: they are neither trained on nor measured"
        left_out.append(f"{apart} images {said}")
    if was_known and dataset.unlabelled != (area := store.unlabelled(tool, project)):
        left_out.append(
            f"area without a label is {dataset.unlabelled} in the dataset, but {area} in this project: "
            "`clickmask project` shows and changes that"
        )
    yield ImportProgress(done, taken, known, labels, tuple(left_out))


def _describe(dataset: ImportedDataset, tool: str, project: str, store: Store) -> None:
    """Tell the store the project's new categories, behind those that it knows. Only of a new project is the
    meaning of its area without labels set."""
    if dataset.unlabelled == "ignore" and not store.knows_project(tool, project):
        store.set_unlabelled(tool, project, dataset.unlabelled)
    there = store.categories(tool, project)
    if new := [each for each in dataset.categories if each not in there]:
        listed = {(each.tool, each.project): each.title for each in store.projects()}
        title = listed.get((tool, project)) or dataset.title
        store.describe_project(ProjectDescribed(tool, project, title, (*there, *new)))


def _accept(
    submission: Submission,
    image: Image,
    raw: bytes,
    wanted: Side | None,
    store: Store,
    archive: ImageArchive,
) -> Side:
    """Store the picture, then its side, which is returned, then its labels. Raises InvalidRequest."""
    if not archive.keep(image.digest, raw):
        raise InvalidRequest("there is no room for its picture: raise CLICKMASK_KEPT_BYTES")
    of, categories = (submission.tool, submission.project), {each.category for each in submission.regions}
    side = assign_image(store, *of, image.digest, frozenset(categories), lambda _: image.pixels, wanted)
    drawn = [(region, geometry_to_rle(region.geometry, image.size)) for region in submission.regions]
    if not store.accept(submission, ImageIdentity(image.digest, image.size), drawn):
        raise InvalidRequest("it, its task or its project was deleted here before")
    return side


def _picture(read: Callable[[], ImportedImage]) -> ImportedImage:
    """What `read` gives. Raises InvalidRequest for whatever a damaged row makes it raise."""
    try:
        return read()
    except ClickmaskError:
        raise
    except Exception as error:
        raise InvalidRequest(f"an image of the dataset is damaged ({type(error).__name__})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name with a zero byte
        raise InvalidRequest("it cannot be read: no file has such a name") from error


def _submission(
    dataset: ImportedDataset, picture: ImportedImage, tool: str, project: str, image: Image, raw: bytes
) -> Submission:
    """What a tool would have submitted. Labels that do not fit are counted as damaged. Raises InvalidRequest
    if the dataset is about an image of another size."""
    size, is_turned = image.size, False
    if picture.size not in (None, size):
        is_turned = picture.size == size[::-1] and stored_size(raw)[1] is not None
        if not is_turned:
            here, told = (f"{width}x{height}" for height, width in (size, picture.size or size))
            raise InvalidRequest(f"it has {here} pixels, but the dataset describes one of {told}")
    named = hashlib.sha256(json.dumps([project, dataset.source, image.digest]).encode()).hexdigest()[:20]
    shown = Shown(f"import-{named}", f"import-{named}", 0, "")
    if is_ours := picture.shown_as is not None and dataset.exported_from == (tool, project):
        shown = picture.shown_as or shown
    left_out, regions = Counter(picture.left_out), list[Region]()
    content = hashlib.sha256(json.dumps([image.digest, picture.name]).encode())
    for number, label in enumerate(picture.labels):
        name = label.region if is_ours else f"{number}"
        try:
            written = json.dumps(geometry_to_json(label.geometry), allow_nan=False)
            if isinstance(label.geometry, Brush):
                rle_toggles(label.geometry.rle)
            geometry = _turned(label.geometry, raw, size) if is_turned else label.geometry
            geometry_to_rle(geometry, size)
        except (ValueError, TypeError):
            left_out["damaged"] += 1
            continue
        content.update(json.dumps([name, label.category, written, label.proposal, label.layer]).encode())
        regions.append(Region(name, label.category, geometry, label.proposal, label.layer))
    return Submission(
        tool,
        project,
        shown.task,
        shown.annotation,
        address="",
        name=picture.name,
        size=size,
        regions=tuple(regions),
        updated_at=dataset.made_at,
        author=f"{IMPORTED}{dataset.source} {content.hexdigest()[:16]}",
        item=shown.item,
        left_out=dict(left_out),
        known_as=shown.known_as,
    )


def _turned(geometry: Geometry, raw: bytes, size: Size) -> Geometry:
    """The geometry of a dataset that knows the picture as it is stored, on the upright picture of `size`."""
    turn = stored_size(raw)[1]
    mask = rasterise(geometry, (size[1], size[0]))
    stored = PIL.Image.fromarray(mask.astype(np.uint8))
    return Brush(mask_to_rle(np.asarray(stored if turn is None else stored.transpose(turn)) > 0))
