"""Records of accepted labels: what an annotator drew, in image coordinates, and who submitted it where.

Tools' `labels` modules make these. A `Geometry` is as drawn; `rasterise` gives its pixels. Ids are text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clickmask.errors import InvalidInput
from clickmask.labels.geometry import Geometry
from clickmask.masks.rle import Rle
from clickmask.types import Size


@dataclass(frozen=True, order=True)
class LabelKey:
    """The key of a label. A region's id is not enough: two annotators may accept the same proposal."""

    tool: str
    project: str
    task: str
    annotation: str
    region: str


MAX_PROJECT_NAME = 64  # bytes of a project's name: escaped, as a folder has it, each may become three


def require_project_name(name: str) -> None:
    """Raise InvalidInput unless a log, a terminal, a database and a folder can hold the name of a project of
    clickmask's own."""
    if not name.strip() or not name.isprintable() or len(name.encode()) > MAX_PROJECT_NAME:
        raise InvalidInput(f"the name of a project has 1 to {MAX_PROJECT_NAME} bytes, all of them printable")


Unlabelled = Literal["background", "ignore"]  # meaning of the area without labels


@dataclass(frozen=True)
class Region:
    """One object marked by an annotator."""

    id: str
    category: str
    geometry: Geometry
    proposal: str | None = None  # id of the proposal it was accepted from
    layer: int = 0  # a label of a higher layer covers those of lower ones


@dataclass(frozen=True)
class Submission:
    """All regions of one annotation on one image. Missing regions were withdrawn."""

    tool: str
    project: str
    task: str
    annotation: str
    address: str  # of the image, as the tool writes it; never shown to another tool
    name: str  # the image's original basename
    size: Size | None  # of the upright image, as the tool displays it; None if the tool does not say
    regions: tuple[Region, ...]
    updated_at: float  # seconds since 1970, by the tool's clock
    author: str = ""
    item: int = 0  # index of the image in the task: Label Studio's item_index, CVAT's frame
    items: int | None = None  # images of the annotation, if all are saved at once; None if saved one by one
    ground_truth: bool = False
    skipped: bool = False  # no labels, whatever the regions are
    left_out: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # regions that are no label, by a word
    known_as: str = ""  # the image's name by which the tool's own import finds it, if it is not `name`


@dataclass(frozen=True)
class AnnotationDeleted:
    tool: str
    annotation: str


@dataclass(frozen=True)
class TaskDeleted:
    tool: str
    task: str


@dataclass(frozen=True)
class ProjectDeleted:
    tool: str
    project: str


@dataclass(frozen=True)
class ProjectDescribed:
    """A tool's description of a project. `categories` are in the tool's order."""

    tool: str
    project: str
    title: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Unreadable:
    """A part of an event that makes no sense, and the reason. The other parts still count."""

    reason: str


@dataclass(frozen=True)
class Unsized:
    """A submission, still without regions, whose tool does not say how large the image is.

    `read` gives the submission for an image of a size, and what of it makes no sense.
    """

    submission: Submission
    read: Callable[[Size], Sequence[Submission | Unreadable]]


Deleted = AnnotationDeleted | TaskDeleted | ProjectDeleted
Change = Submission | Unsized | Deleted | ProjectDescribed | Unreadable


def submission_of(change: Change) -> Submission | None:
    """The submission that a change is, or will be."""
    if isinstance(change, Unsized):
        return change.submission
    return change if isinstance(change, Submission) else None


@dataclass(frozen=True)
class AcceptedLabel:
    """One accepted label. `image` is the digest of its image, and `size` the image's size."""

    key: LabelKey
    image: str
    size: Size
    category: str
    geometry: Geometry
    rle: Rle
    accepted_at: float  # seconds since 1970, by the tool's clock
    proposal: str | None
    item: int = 0  # as in its submission
    layer: int = 0  # as in its region


@dataclass(frozen=True)
class LabelledImage:
    """An annotated image in a task, with or without labels, and the annotation that counts there."""

    digest: str
    name: str
    size: Size
    task: str
    item: int
    annotation: str = ""
    accepted_at: float = 0.0  # seconds since 1970, by the tool's clock
    ground_truth: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])  # as in its submission
    known_as: str = ""  # as in its submission
    imported: bool = False  # from a dataset or by a program, not by the tool
