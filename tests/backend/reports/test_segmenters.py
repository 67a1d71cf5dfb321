"""What was proposed, measured against what was accepted."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest

from clickmask.labels.geometry import Geometry
from clickmask.labels.submissions import ProjectDescribed
from clickmask.reports.assistance import SegmenterReport, measure_segmenters
from clickmask.store import Store
from clickmask.types import Mask, Point, Prediction, Prompt
from support.drawn import rectangle
from support.labelled import PROJECT, SIZE, TOOL, brush, digest_of, submit

LEFT, RIGHT = rectangle(SIZE, (0, 0, 20, 40)), rectangle(SIZE, (30, 0, 50, 40))
HALF_LEFT = rectangle(SIZE, (0, 0, 10, 40))


@pytest.fixture
def project(store: Store) -> Store:
    store.describe_project(ProjectDescribed(TOOL, PROJECT, "cells", ("cell", "nucleus", "debris")))
    return store


def propose(store: Store, name: str, mask: Mask, at: Point, segmenter: str = "sam", more: int = 0) -> None:
    """Answered on image a; `more` clicks before it."""
    prompt = Prompt(tuple((at[0] + 9 * n, at[1]) for n in range(1 + more)))
    store.remember_proposal(name, digest_of("a"), prompt, Prediction(mask, 0.9, segmenter))


def accept(
    store: Store, drawn: Mapping[str, tuple[str, Mask]], image: str = "a", proposals: tuple[str, ...] = ()
) -> None:
    regions: dict[str, tuple[str, Geometry]] = {
        name: (kind, brush(mask)) for name, (kind, mask) in drawn.items()
    }
    task = str(ord(image))
    submit(store, image, regions, task=task, at=time.time(), proposals=proposals)


def reports(store: Store) -> dict[str, SegmenterReport]:
    return {report.name: report for report in measure_segmenters(store, TOOL, PROJECT)}


def test_the_first_and_the_last_answer_are_measured_from_one_matrix(project: Store) -> None:
    propose(project, "1", HALF_LEFT, (5, 5))
    propose(project, "2", LEFT, (5, 5), more=1)
    propose(project, "3", RIGHT, (40, 5))
    drawn = {"2": ("cell", LEFT), "3": ("nucleus", RIGHT)}
    accept(project, drawn, proposals=("2", "3"))
    (report,) = measure_segmenters(project, TOOL, PROJECT)
    assert (report.name, report.objects, report.first.images) == ("sam", 2, 1)
    assert report.first.iou == {"cell": 0.5, "nucleus": 1.0}
    assert report.first.miou == 0.75
    assert report.last is not None
    assert report.last.iou == {"cell": 1.0, "nucleus": 1.0}
    assert report.last.absent == ("debris",)


def test_objects_that_others_made_are_neither_missed_nor_wrong(project: Store) -> None:
    """The mask of one segmenter lies on an object that somebody drew by hand, as much as on its own."""
    propose(project, "1", LEFT | RIGHT, (5, 5))
    propose(project, "2", rectangle(SIZE, (0, 44, 64, 48)), (5, 46), "builtin")
    drawn = {"1": ("cell", LEFT), "by hand": ("cell", RIGHT), "2": ("cell", rectangle(SIZE, (0, 44, 64, 48)))}
    accept(project, drawn, proposals=("1", "2"))
    found = reports(project)
    assert found.keys() == {"builtin", "sam"}
    assert found["sam"].first.iou == found["builtin"].first.iou == {"cell": 1.0}


def test_what_lies_on_no_object_is_wrong(project: Store) -> None:
    propose(project, "1", LEFT | RIGHT, (5, 5))
    accept(project, {"1": ("cell", LEFT)}, proposals=("1",))
    (report,) = measure_segmenters(project, TOOL, PROJECT)
    assert report.first.iou == {"cell": 0.5}
    # Of objects that were asked for, what is unlabelled was looked at, whatever the project says.
    project.set_unlabelled(TOOL, PROJECT, "ignore")
    assert measure_segmenters(project, TOOL, PROJECT)[0].first.iou == {"cell": 0.5}


def test_a_project_without_proposals_has_no_report(project: Store) -> None:
    propose(project, "1", LEFT, (5, 5))
    accept(project, {"x": ("cell", RIGHT)})
    assert measure_segmenters(project, TOOL, PROJECT) == []


def test_an_annotator_is_measured_on_whole_images_with_its_own_categories(project: Store) -> None:
    drawn = [("1", "cell", LEFT), ("2", "nucleus", RIGHT), ("3", "a former name", RIGHT)]
    for image, masks in {"a": drawn, "b": []}.items():
        shown = [(name, label, Prediction(mask, 0.9, "unet")) for name, label, mask in masks]
        project.remember_prelabels(digest_of(image), SIZE, "unet:x", shown)
    accept(project, {"1": ("cell", LEFT), "2": ("cell", RIGHT)}, proposals=("1", "2"))
    accept(project, {"by hand": ("cell", LEFT)}, "b")
    report = reports(project)["unet:x"]
    # What it found nothing on counts as well.
    assert (report.objects, report.first.images, report.last) == (2, 2, None)
    assert report.first.iou == {"cell": pytest.approx(1 / 3), "nucleus": 0.0}
    assert report.first.miou == pytest.approx(1 / 6)


def test_of_an_annotators_looks_the_last_that_people_saw_is_measured(project: Store) -> None:
    for name, mask in {"1": RIGHT, "2": LEFT}.items():
        look = [(name, "cell", Prediction(mask, 0.9, "unet"))]
        project.remember_prelabels(digest_of("a"), SIZE, "unet:x", look)
    accept(project, {"x": ("cell", LEFT)})
    assert reports(project)["unet:x"].first.iou == {"cell": 1.0}


def test_a_proposal_of_another_size_is_none(project: Store) -> None:
    propose(project, "1", np.ones((10, 10), bool), (5, 5))
    accept(project, {"1": ("cell", LEFT)}, proposals=("1",))
    assert measure_segmenters(project, TOOL, PROJECT) == []
