"""Measures proposed masks against accepted labels, with one confusion matrix each, as models are measured.

A segmenter is measured on the objects it was asked for. It gives no category, so each mask takes the category
of the object that came from it. Other objects of the image are ignored; the rest of the mask is wrong.
Proposals that led to no object have no truth; `assistance` counts them.

An annotator labels whole images, so its last run before submission is measured on whole images with its own
categories. People started from its objects, which flatters it; a model's own report uses unseen images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from clickmask.datasets.snapshot import IGNORED, Sample, class_map, create_dataset
from clickmask.labels.geometry import Brush
from clickmask.labels.submissions import AcceptedLabel, LabelKey, Unlabelled
from clickmask.metrics.confusion import LabelMap
from clickmask.metrics.report import Report, measure
from clickmask.reports.matching import pair, shown
from clickmask.store import PrelabelledObject, RememberedProposal, Store

UNKNOWN = ""  # a category in no dataset, so class maps ignore its area
NOBODY = ""  # not the name of any segmenter


@dataclass(frozen=True)
class SegmenterReport:
    """A report on the segmenter or annotator `name`."""

    name: str
    objects: int  # accepted objects it was asked for; for an annotator, objects it drew
    first: Report  # on the answers to the first prompts
    last: Report | None  # on the accepted answers; None for an annotator


@dataclass(frozen=True, eq=False)
class _Compared:
    """Truth and answers on one image, all in the form of labels."""

    sample: Sample
    truth: list[AcceptedLabel]
    first: list[AcceptedLabel]
    last: list[AcceptedLabel]


def measure_segmenters(store: Store, tool: str, project: str) -> list[SegmenterReport]:
    """One report per segmenter, sorted by name. Segmenters without an accepted object are left out."""
    dataset = create_dataset(
        store.images(tool, project),
        store.labels(tool, project),
        tool=tool,
        project=project,
        declared=store.categories(tool, project),
    )
    asked: defaultdict[str, list[_Compared]] = defaultdict(list)
    drawn: defaultdict[str, list[_Compared]] = defaultdict(list)
    for sample in dataset.samples:
        prelabels = store.prelabels(sample.image)
        for name, compared in _asked(sample, store.proposals(sample.image), prelabels).items():
            asked[name].append(compared)
        for name, objects in shown(prelabels, sample.labels).items():
            masks = [
                AcceptedLabel(
                    LabelKey("", "", "", "", each.id),
                    sample.image,
                    sample.size,
                    each.label,
                    Brush(each.rle),
                    each.rle,
                    0.0,
                    None,
                )
                for each in objects
                if each.label in dataset.categories
            ]
            drawn[name].append(_Compared(sample, list(sample.labels), masks, []))
    unlabelled = store.unlabelled(tool, project)
    return sorted(
        [_of_segmenter(name, images, dataset.categories) for name, images in asked.items()]
        + [_of_annotator(name, images, dataset.categories, unlabelled) for name, images in drawn.items()],
        key=lambda report: report.name,
    )


def _of_segmenter(name: str, images: list[_Compared], categories: Sequence[str]) -> SegmenterReport:
    def pairs(answer: Callable[[_Compared], list[AcceptedLabel]]) -> Iterator[tuple[LabelMap, LabelMap]]:
        for each in images:
            yield _map(each, each.truth, categories), _map(each, answer(each), categories)

    first = measure(pairs(lambda each: each.first), categories, ignore=IGNORED).report
    last = measure(pairs(lambda each: each.last), categories, ignore=IGNORED).report
    return SegmenterReport(name, sum(len(each.first) for each in images), first, last)


def _of_annotator(
    name: str, images: list[_Compared], categories: Sequence[str], unlabelled: Unlabelled
) -> SegmenterReport:
    pairs = (
        (_map(each, each.truth, categories, unlabelled), _map(each, each.first, categories))
        for each in images
    )
    report = measure(pairs, categories, ignore=IGNORED).report
    return SegmenterReport(name, sum(len(each.first) for each in images), report, None)


def _asked(
    sample: Sample, proposals: Sequence[RememberedProposal], prelabels: Sequence[PrelabelledObject]
) -> dict[str, _Compared]:
    """Truth and answers for each segmenter that an object of the image came from."""
    by_annotators = {each.id for each in prelabels}
    objects: list[tuple[str, AcceptedLabel]] = []  # each with the name of its segmenter
    first: defaultdict[str, list[AcceptedLabel]] = defaultdict(list)
    last: defaultdict[str, list[AcceptedLabel]] = defaultdict(list)
    for found, session, proposal in pair(proposals, prelabels, sample.labels).accepted:
        name, label = NOBODY, replace(found.label, rle=found.rle)
        if session is not None and session.first.id not in by_annotators:
            accepted = next((each for each in session.steps[-1] if each.id == proposal), session.last)
            if session.first.rle["size"] == accepted.rle["size"] == label.rle["size"]:
                name = accepted.segmenter
                first[name].append(replace(label, rle=session.first.rle))
                last[name].append(replace(label, rle=accepted.rle))
        objects.append((name, label))
    return {
        name: _Compared(
            sample,
            [label if by == name else replace(label, category=UNKNOWN) for by, label in objects],
            first[name],
            last[name],
        )
        for name in first
    }


def _map(
    compared: _Compared,
    labels: Sequence[AcceptedLabel],
    categories: Sequence[str],
    unlabelled: Unlabelled = "background",
) -> LabelMap:
    return class_map(replace(compared.sample, labels=tuple(labels)), categories, unlabelled)
