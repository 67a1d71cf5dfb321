"""Stores what a tool submits as labels: the only way in, for webhooks and pulls alike."""

import itertools
import logging
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from clickmask.datasets.snapshot import assign_image
from clickmask.errors import (
    ClickmaskError,
    Conflict,
    Gone,
    InvalidInput,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    TooLarge,
    ToolUnavailable,
)
from clickmask.images.archive import ImageArchive
from clickmask.images.source import ImageIdentity, ImageSource
from clickmask.labels.geometry import Brush, geometry_to_rle
from clickmask.labels.submissions import (
    Change,
    Deleted,
    ProjectDescribed,
    Region,
    Submission,
    Unreadable,
    Unsized,
    submission_of,
)
from clickmask.masks.rle import Rle, rle_area, rle_overlap, unite
from clickmask.store import Store
from clickmask.types import ImageRef, Pixels

log = logging.getLogger(__name__)
MAX_REASONS = 10  # in one sentence
# Bytes of all run lengths of one annotation. 10,000 cells take 6 MB; 1 MB of large triangles 500 MB.
MAX_RUN_LENGTHS = 2**26
REPEATED = 0.9  # share of a region's pixels in a brush of the same name from which it is its repeat


@dataclass(frozen=True)
class Page:
    """A part of a pull, and the position from which the pull resumes once the part is stored."""

    changes: Sequence[Change]
    position: str
    remaining: int | None = None  # parts after this one; None if unknown


@dataclass(frozen=True)
class PullProgress:
    """The progress of a pull. Its parts are tasks or jobs."""

    read: int = 0
    remaining: int | None = None  # parts to come; None if unknown
    taken: int = 0  # submissions that changed the store
    known: int = 0  # submissions that were already stored
    gone: int = 0  # annotations and tasks that the tool no longer has
    left_out: tuple[str, ...] = ()  # sentences about what could not be stored


class Locator(Protocol):
    """Knows where the images of submissions are."""

    def locate(self, submission: Submission) -> ImageRef:
        """The address of the submission's image, with all that is needed to read it."""
        ...


class LabelSource(Locator, Protocol):
    """A source of a tool's labels. Called from one thread at a time.

    `changes` is lazy if it has to ask the tool: what it yielded before it raised stays stored. It MUST raise
    InvalidRequest if the event will never be readable, and ToolUnavailable if it may be readable later. If
    only part of an event makes no sense, it yields Unreadable for that part.
    """

    @property
    def origin(self) -> str | None:
        """The address configured for the tool; None if there is none."""
        ...

    def changes(self, event: bytes, retry: bool = False) -> Iterable[Change]:
        """Changes that the event announces, often none. A `retry` MUST ask the tool again."""
        ...

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        """Accepted labels from `position` on, in resumable order. Raises NotFound for a missing project."""
        ...

    def gone(self, annotations: Sequence[tuple[str, str]], project: str) -> Iterator[Change]:
        """Deletions of those `annotations` of `project`, (task, annotation), that the tool no longer has, and
        submissions of those that it has moved to another project.

        It MUST ask the tool about each: an annotation missing from a pull may have moved meanwhile.
        """
        ...


class Ingester:
    """Stores changes, from any thread. Storing a change twice has no further effect."""

    def __init__(self, store: Store, images: ImageSource, archive: ImageArchive) -> None:
        self._store = store
        self._images = images
        self.archive = archive

    def apply(self, change: Change, tool: Locator) -> bool:
        """Store the change, its image first. True if labels changed.

        Raises InvalidRequest (Unreadable, or a region that does not fit, without which the others were
        stored), StoreUnavailable and image errors.
        """
        if isinstance(change, Unreadable):
            raise InvalidRequest(change.reason)
        if isinstance(change, ProjectDescribed):
            self._store.describe_project(change)
            return False
        if isinstance(change, Deleted):
            self._store.delete(change)
            return True
        if isinstance(change, Unsized):  # read again even if it is known, so that its damage stays known too
            of = change.submission
            image = self._image(of, tool) if self._store.is_news(of) else self._store.known_image(of)
            found = change.read(image.size) if image else ()
            sized = [self.apply(each, tool) for each in found if isinstance(each, Submission)]
            if reasons := [each.reason for each in found if isinstance(each, Unreadable)]:
                raise InvalidRequest(_joined(reasons))
            return any(sized)
        if not self._store.is_news(change):
            return False
        if change.skipped:
            return self._store.accept(change, None, [])
        image = self._image(change, tool)
        if change.size is not None and change.size != image.size:
            here, there = (f"{width}x{height}" for height, width in (image.size, change.size))
            raise InvalidRequest(
                f"task {change.task}: the image has {here} pixels, but it was annotated as one of {there}"
            )
        masks, unfit = list[tuple[Region, Rle]](), list[str]()
        room = MAX_RUN_LENGTHS
        for region in change.regions:
            try:
                masks.append((region, rle := geometry_to_rle(region.geometry, image.size)))
                room -= len(rle["counts"])
            except ValueError as error:
                unfit.append(f"region {region.id[:40]!r}: {error}")
            if room < 0:
                raise InvalidRequest(f"the regions have run lengths of more than {MAX_RUN_LENGTHS} bytes")
        if unfit:
            change = replace(change, left_out={**change.left_out, "damaged": len(unfit)})
        drawn = self._without_repeats(masks, image.digest)
        categories = frozenset(region.category for region, _ in drawn)
        try:  # before the labels, because a crash must not leave labels without a side
            assign_image(self._store, change.tool, change.project, image.digest, categories, self._pixels)
        except (Gone, InvalidInput, TooLarge):  # no room to keep the image: it gets a side when it is back
            log.info("image %s has no side yet", image.digest[:8])
        is_news = self._store.accept(change, image, drawn)
        if is_news:
            of = (change.tool, change.project, change.task, change.annotation, len(drawn))
            log.info("%s %s: task %s, annotation %s: accepted labels: %d", *of)
        if unfit:
            raise InvalidRequest(_joined(unfit))
        return is_news

    def accept(self, submission: Submission, ref: ImageRef) -> bool:
        """Store what a program submits of the image at `ref`. Its `address` names the content: False if that
        is stored already. Raises Conflict if it was deleted or has a newer state, and what `apply` raises."""
        if self._store.known_image(submission):
            return False
        if not self.apply(submission, _Given(ref)):
            raise Conflict("these labels, or their project, were deleted here before, or are newer here")
        return True

    def with_bytes(self, ref: ImageRef) -> ImageRef:
        """`ref`, or the kept file that it names by the digest. Raises Gone if that is not kept."""
        if not ref.uri.startswith("digest:"):
            return ref
        identity = self._images.identify(ref)
        return ImageRef(f"data:;base64,{b64encode(self.archive.read(identity.digest)).decode()}")

    def _without_repeats(self, drawn: Sequence[tuple[Region, Rle]], digest: str) -> list[tuple[Region, Rle]]:
        """`drawn` with only the brush of a proposal that was accepted as a brush and as polygons.

        A tool's region names a proposal by its form alone. Polygons of one that the store does not know, such
        as another server's, are repeats only if they lie in the brush and together fill it; its regions are
        kept without it. What the annotator moved out of the brush or labelled otherwise is a label as well.
        """
        known = self._store.proposed(digest, {region.proposal for region, _ in drawn if region.proposal})
        outlines: dict[tuple[str, str], list[int]] = {}  # places in `drawn`, by proposal and category
        for place, (region, _) in enumerate(drawn):
            if region.proposal and not isinstance(region.geometry, Brush):
                outlines.setdefault((region.proposal, region.category), []).append(place)
        repeats = set[int]()
        for region, rle in drawn:
            others = outlines.get((region.proposal or "", region.category))
            if not others or not isinstance(region.geometry, Brush):
                continue
            least = REPEATED / 2 if region.proposal in known else REPEATED
            inside = [
                place
                for place in others
                if rle_overlap(drawn[place][1], rle) > least * rle_area(drawn[place][1])
            ]
            filled = rle_area(unite([drawn[place][1] for place in inside])) if inside else 0
            if region.proposal in known or filled >= REPEATED * rle_area(rle):
                repeats.update(inside)
        return [
            (region if region.proposal in known else replace(region, proposal=None), rle)
            for place, (region, rle) in enumerate(drawn)
            if place not in repeats
        ]

    def _pixels(self, digest: str) -> Pixels:
        try:
            return self._images.load_digest(digest).pixels  # decoded just now, if it was just fetched
        except Gone:
            return self._images.load_bytes(self.archive.read(digest)).pixels

    def _image(self, submission: Submission, tool: Locator) -> ImageIdentity:
        """Fetch the image only once, across the annotations of a task and across restarts."""
        known = self._store.known_image(submission)
        if known and self.archive.holds(known.digest):
            return known
        ref = tool.locate(submission)
        seen = self._images.known(ref)
        if seen and self.archive.holds(seen.digest):
            return seen
        image, raw = self._images.read(ref)
        self.archive.keep(image.digest, raw)
        return image

    def pull(self, name: str, tool: LabelSource, project: str) -> Generator[PullProgress]:
        """Store everything accepted in `project` of `tool`, called `name`. Yields after each change and part.

        Resumes where the last pull stopped. Ends with deletions that no webhook announced; if the project
        was deleted, everything goes. Raises NotFound, ToolUnavailable and StoreUnavailable.
        """
        read, taken, known, left_out = 0, 0, 0, list[str]()
        seen: set[tuple[str, str]] = set()

        def changed(change: Change) -> bool | None:
            """Whether labels changed; None if the change is left out."""
            submission = submission_of(change)
            what = f"task {submission.task}, annotation {submission.annotation}: " if submission else ""
            try:
                return self.apply(change, tool)
            except (ToolUnavailable, StoreUnavailable):
                raise
            except ClickmaskError as error:
                left_out.append(what * (not str(error).startswith(what)) + str(error))
            except Exception as error:  # else every pull would stop here, short of the rest
                log.error("%sit cannot be taken in", what, exc_info=error)
                left_out.append(f"{what}something went wrong inside clickmask ({type(error).__name__})")
            return None

        is_known = self._store.knows_project(name, project)
        position = self._store.pull_position(name, project)
        for read, part in enumerate(_pages(tool, project, position, is_known), 1):
            for change in part.changes:
                is_news = changed(change)
                if submission := submission_of(change):
                    seen.add((submission.task, submission.annotation))
                    taken, known = taken + (is_news is True), known + (is_news is False)
                left = None if part.remaining is None else part.remaining + 1  # this one too
                yield PullProgress(read - 1, left, taken, known, 0, tuple(left_out))
            self._store.set_pull_position(name, project, part.position)
            yield PullProgress(read, part.remaining, taken, known, 0, tuple(left_out))
        unseen = [each for each in self._store.annotations(name, project) if each not in seen]
        gone = sum(changed(each) is True for each in tool.gone(unseen, project))
        self._store.set_pull_position(name, project, None)
        yield PullProgress(read, 0, taken, known, gone, tuple(left_out))

    def refetch_missing(self, name: str, tool: LabelSource, project: str, stopped: Callable[[], bool]) -> int:
        """Fetch labelled images the archive lacks from `tool`, called `name`. Returns how many stay missing.

        Only the tool knows where they are, so it is asked for the whole project if any is missing. An image
        that was replaced by another one stays missing. Raises ToolUnavailable and StoreUnavailable.
        """
        labelled = {image.digest for image in self._store.images(name, project)}
        missing = {digest for digest in labelled if not self.archive.holds(digest)}
        if not missing:
            return 0
        log.info("%s %s: %d labelled images are fetched again", name, project, len(missing))
        for change in itertools.chain.from_iterable(part.changes for part in tool.pull(project)):
            if stopped() or not missing:
                break
            submission = submission_of(change)
            known = self._store.known_image(submission) if submission else None
            if known is None or known.digest not in missing or submission is None:
                continue
            try:
                image, raw = self._images.read(tool.locate(submission))
            except (StoreUnavailable, ToolUnavailable):
                raise
            except ClickmaskError as error:
                log.info("%s: the image of task %s stays missing: %s", name, submission.task, error)
                continue
            if image.digest in missing:
                if not self.archive.keep(image.digest, raw):
                    break  # there is no room for the others either
                missing.discard(image.digest)
        return len(missing)


class _Given:
    """Where the image of one submission is."""

    def __init__(self, ref: ImageRef) -> None:
        self._ref = ref

    def locate(self, submission: Submission) -> ImageRef:
        return self._ref


def _joined(reasons: Sequence[str]) -> str:
    """A sentence for people and the log, however many parts of an annotation are damaged."""
    more = len(reasons) - MAX_REASONS
    return "; ".join(reasons[:MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _pages(tool: LabelSource, project: str, position: str | None, is_known: bool) -> Iterator[Page]:
    """Pages of the tool; none if the tool has deleted a project that is known here."""
    try:
        yield from tool.pull(project, position)
    except NotFound:
        if not is_known:
            raise
