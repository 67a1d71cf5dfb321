"""Measures proposed masks against accepted labels, with one confusion matrix each, as models are measured.

A segmenter is measured on the objects it was asked for. It gives no category, so each mask takes the category
of the object that came from it. Other objects of the image are ignored; the rest of the mask is wrong.
Proposals that led to no object have no truth; `assistance` counts them.

An annotator labels whole images, so its last run before submission is measured on whole images with its own
categories. People started from its objects, which flatters it; a model's own report uses unseen images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from clickmask.datasets.snapshot import IGNORED, Sample, class_map, create_dataset
from clickmask.labels.geometry import Brush
from clickmask.labels.submissions import AcceptedLabel, LabelKey, Unlabelled
from clickmask.metrics.report import Report, measure
from clickmask.reports.matching import pair, shown
from clickmask.store import PrelabelledObject, RememberedProposal, Store

UNKNOWN = ""  # a category in no dataset, so class maps ignore its area
NOBODY = ""  # not the name of any segmenter
_Compared = tuple[Sample, Sample]  # an image with its true labels, and the same with the answers as labels


@dataclass(frozen=True)
class SegmenterReport:
    """A report on the segmenter or annotator `name`."""

    name: str
    objects: int  # accepted objects it was asked for; for an annotator, objects it drew
    first: Report  # on the answers to the first prompts
    last: Report | None  # on the accepted answers; None for an annotator


def measure_segmenters(store: Store, tool: str, project: str) -> list[SegmenterReport]:
    """One report per segmenter, sorted by name. Segmenters without an accepted object are left out."""
    dataset = create_dataset(
        store.images(tool, project),
        store.labels(tool, project),
        tool=tool,
        project=project,
        declared=store.categories(tool, project),
    )
    first: defaultdict[str, list[_Compared]] = defaultdict(list)
    last: defaultdict[str, list[_Compared]] = defaultdict(list)
    drawn: defaultdict[str, list[_Compared]] = defaultdict(list)
    for sample in dataset.samples:
        prelabels = store.prelabels(sample.image)
        for name, truth, firsts, lasts in _asked(sample, store.proposals(sample.image), prelabels):
            first[name].append((truth, firsts))
            last[name].append((truth, lasts))
        for name, objects in shown(prelabels, sample.labels).items():
            masks = tuple(
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
            )
            drawn[name].append((sample, replace(sample, labels=masks)))

    categories = dataset.categories

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
    objects: list[tuple[str, AcceptedLabel]] = []  # each with the name of its segmenter
    first: defaultdict[str, list[AcceptedLabel]] = defaultdict(list)
    last: defaultdict[str, list[AcceptedLabel]] = defaultdict(list)
    for found, session in pair(proposals, prelabels, sample.labels)[0]:
        name, label = NOBODY, replace(found.label, rle=found.rle)
        if session is not None and session.first.id not in by_annotators:
            accepted = next((each for each in session.steps[-1] if each.id == label.proposal), session.last)
            if session.first.rle["size"] == accepted.rle["size"] == label.rle["size"]:
                name = accepted.segmenter
                first[name].append(replace(label, rle=session.first.rle))
                last[name].append(replace(label, rle=accepted.rle))
        objects.append((name, label))

    def labelled(labels: Iterable[AcceptedLabel]) -> Sample:
        return replace(sample, labels=tuple(labels))

    for name in first:
        truth = (label if by == name else replace(label, category=UNKNOWN) for by, label in objects)
        yield name, labelled(truth), labelled(first[name]), labelled(last[name])
