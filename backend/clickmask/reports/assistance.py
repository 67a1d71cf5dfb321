"""Measures how much the assistance helped, by comparing proposals with accepted labels.

`matching` pairs them. Proposals do not know their project; on an image that two share, they count in both.

`measure_segmenters` measures their masks with one confusion matrix each, as models are measured. A segmenter
is measured on the objects it was asked for. Each mask takes the category of the object that came from it.
Other objects of the image are ignored; the rest of the mask is wrong. Proposals that led to no object have no
truth. An annotator is measured on whole images with its own categories, by its last run before submission.
People started from its objects, which flatters it; a model's own report uses unseen images.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from clickmask.datasets.snapshot import IGNORED, Sample, class_map, create_dataset
from clickmask.labels.geometry import Brush
from clickmask.labels.submissions import AcceptedLabel, LabelKey, Unlabelled
from clickmask.masks.rle import rle_iou
from clickmask.metrics.report import Report, measure
from clickmask.reports.matching import MAX_CLOCK_SKEW_S, marks, pair, shown
from clickmask.store import PrelabelledObject, RememberedProposal, Store

UNTOUCHED_IOU = 0.99  # the tool may have encoded the mask again
OUTLINED_IOU = 0.95  # the same for an outline with few points if nobody moved a vertex

Outcome = Literal["untouched", "edited", "unassisted", "rejected", "open"]
Axis = Literal["category", "segmenter", "week"]
_Compared = tuple[Sample, Sample]  # an image with its true labels, and the same with the answers as labels


@dataclass(frozen=True)
class Entry:
    """An accepted object with its session, an object without one, or a session without an object."""

    outcome: Outcome  # a session without an object is rejected, or open until its image is submitted
    category: str  # empty for a session without an object
    segmenter: str  # empty for an object without a session
    at: float  # time of acceptance, else of the last proposal; seconds since 1970
    first_iou: float | None  # IoU of the session's first proposal with the accepted object
    last_iou: float | None  # IoU of the last or the accepted proposal with the accepted object
    clicks: int | None  # marks in the last prompt; a box counts as one
    seconds: float | None  # from the first to the last proposal


@dataclass(frozen=True)
class Summary:
    """Summary of entries with the same category, segmenter or week. None means nothing to average."""

    name: str
    objects: int  # accepted
    untouched: int
    edited: int
    unassisted: int
    rejected: int  # sessions
    first_iou: float | None  # means
    last_iou: float | None
    clicks: float | None
    seconds: float | None  # median


def match(
    proposals: Sequence[RememberedProposal],
    labels: Sequence[AcceptedLabel],
    submitted: bool,
    prelabels: Sequence[PrelabelledObject] = (),
) -> list[Entry]:
    """Entries of one image, by the labels of all annotators. It may be `submitted` without labels."""
    paired, unaccepted = pair(proposals, prelabels, labels)
    found: list[Entry] = []
    for accepted, session in paired:
        category, at = accepted.label.category, accepted.label.accepted_at
        if session is None:
            found.append(Entry("unassisted", category, "", at, None, None, None, None))
            continue
        first, step = session.first, session.steps[-1]
        named = [each for each in step if each.id == accepted.label.proposal]
        last = named[0] if named else max(step, key=lambda each: rle_iou(each.rle, accepted.rle))
        ious = (rle_iou(first.rle, accepted.rle), rle_iou(last.rle, accepted.rle))
        # An outline with few points already differed from the mask when it was shown.
        untouched = ious[1] >= (OUTLINED_IOU if accepted.outlined else UNTOUCHED_IOU)
        outcome: Outcome = "untouched" if untouched else "edited"
        seconds = last.created_at - first.created_at
        found.append(Entry(outcome, category, last.segmenter, at, *ious, _clicks(last), seconds))
    never = float("inf") if submitted else float("-inf")
    until = max((label.accepted_at for label in labels), default=never) + MAX_CLOCK_SKEW_S
    for session in unaccepted:
        last, seconds = session.last, session.last.created_at - session.first.created_at
        outcome = "rejected" if last.created_at <= until else "open"
        found.append(Entry(outcome, "", last.segmenter, last.created_at, None, None, _clicks(last), seconds))
    return found


def read(store: Store, tool: str, project: str) -> list[Entry]:
    """All entries of a project."""
    labels: dict[str, list[AcceptedLabel]] = {image.digest: [] for image in store.images(tool, project)}
    for label in store.labels(tool, project, all_annotations=True):
        labels.setdefault(label.image, []).append(label)
    return [
        entry
        for digest, own in sorted(labels.items())
        for entry in match(store.proposals(digest), own, True, store.prelabels(digest))
    ]


def summarise(entries: Iterable[Entry], by: Axis | None = None) -> list[Summary]:
    """Summaries by category, segmenter or ISO 8601 week (UTC), sorted by name; a single one without `by`."""
    groups: dict[str, list[Entry]] = {} if by else {"": []}
    for entry in entries:
        year, week, _ = datetime.fromtimestamp(entry.at, UTC).isocalendar()
        names = {"category": entry.category, "segmenter": entry.segmenter, "week": f"{year}-W{week:02}"}
        groups.setdefault(names[by] if by else "", []).append(entry)
    return [_summary(name, groups[name]) for name in sorted(groups)]


def _clicks(proposal: RememberedProposal) -> int:
    foreground, background, box, mask = marks(proposal)
    return len(foreground) + len(background) + (box is not None) + (mask is not None)


def _summary(name: str, entries: Sequence[Entry]) -> Summary:
    outcomes = Counter(entry.outcome for entry in entries)
    assisted = [entry for entry in entries if entry.outcome in ("untouched", "edited")]

    def averaged(average: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return average(there) if there else None

    return Summary(
        name,
        len(assisted) + outcomes["unassisted"],
        outcomes["untouched"],
        outcomes["edited"],
        outcomes["unassisted"],
        outcomes["rejected"],
        averaged(statistics.fmean, (entry.first_iou for entry in assisted)),
        averaged(statistics.fmean, (entry.last_iou for entry in assisted)),
        averaged(statistics.fmean, (entry.clicks for entry in assisted)),
        averaged(statistics.median, (entry.seconds for entry in assisted)),
    )


@dataclass(frozen=True)
class SegmenterReport:
    """A report on the segmenter or annotator `name`."""

    name: str
    objects: int  # accepted objects it was asked for; for an annotator, objects it drew
    first: Report  # on the answers to the first prompts
    last: Report | None  # on the accepted answers; None for an annotator


def measure_segmenters(store: Store, tool: str, project: str) -> list[SegmenterReport]:
    """One report per segmenter, sorted by name. Segmenters without an accepted object are left out."""
    images, declared = store.images(tool, project), store.categories(tool, project)
    labels = store.labels(tool, project)
    dataset = create_dataset(images, labels, tool=tool, project=project, declared=declared)
    categories = dataset.categories
    first: defaultdict[str, list[_Compared]] = defaultdict(list)
    last: defaultdict[str, list[_Compared]] = defaultdict(list)
    drawn: defaultdict[str, list[_Compared]] = defaultdict(list)
    for sample in dataset.samples:
        prelabels = store.prelabels(sample.image)
        for name, truth, firsts, lasts in _asked(sample, store.proposals(sample.image), prelabels):
            first[name].append((truth, firsts))
            last[name].append((truth, lasts))
        for name, objects in shown(prelabels, sample.labels).items():
            masks: list[AcceptedLabel] = []
            for each in objects:
                if each.label in categories:
                    image, shape = (sample.image, sample.size), Brush(each.rle)
                    key = LabelKey("", "", "", "", each.id)
                    masks.append(AcceptedLabel(key, *image, each.label, shape, each.rle, 0.0, None))
            drawn[name].append((sample, replace(sample, labels=tuple(masks))))

    def report(images: Iterable[_Compared], unlabelled: Unlabelled = "background") -> Report:
        maps = (
            (class_map(truth, categories, unlabelled), class_map(answer, categories, "background"))
            for truth, answer in images
        )
        return measure(maps, categories, ignore=IGNORED).report

    def count(images: Iterable[_Compared]) -> int:
        return sum(len(answer.labels) for _, answer in images)

    unlabelled = store.unlabelled(tool, project)
    reports = [
        *(SegmenterReport(name, count(own), report(own), report(last[name])) for name, own in first.items()),
        *(SegmenterReport(name, count(own), report(own, unlabelled), None) for name, own in drawn.items()),
    ]
    return sorted(reports, key=lambda report: report.name)


def _asked(
    sample: Sample, proposals: Sequence[RememberedProposal], prelabels: Sequence[PrelabelledObject]
) -> Iterator[tuple[str, Sample, Sample, Sample]]:
    """Each segmenter that an object of the image came from, with the truth, its first and last answers."""
    by_annotators = {each.id for each in prelabels}
    objects: list[tuple[str, AcceptedLabel]] = []  # each with the name of its segmenter; empty for none
    first: defaultdict[str, list[AcceptedLabel]] = defaultdict(list)
    last: defaultdict[str, list[AcceptedLabel]] = defaultdict(list)
    for found, session in pair(proposals, prelabels, sample.labels)[0]:
        name, label = "", replace(found.label, rle=found.rle)
        if session is not None and session.first.id not in by_annotators:
            accepted = next((each for each in session.steps[-1] if each.id == label.proposal), session.last)
            if session.first.rle["size"] == accepted.rle["size"] == label.rle["size"]:
                name = accepted.segmenter
                first[name].append(replace(label, rle=session.first.rle))
                last[name].append(replace(label, rle=accepted.rle))
        objects.append((name, label))

    def labelled(labels: Iterable[AcceptedLabel]) -> Sample:
        return replace(sample, labels=tuple(labels))

    for name in first:  # class maps ignore the area of an empty category, which no dataset has
        truth = (label if by == name else replace(label, category="") for by, label in objects)
        yield name, labelled(truth), labelled(first[name]), labelled(last[name])
