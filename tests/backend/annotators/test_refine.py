"""A model's regions beside a segmenter's answers about them: which of the two outlines is kept."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickmask import annotators
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.annotators.trained import SAME_OBJECT, along, better, edge_strengths, refine
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.masks.regions import mask_box, mask_iou
from clickmask.models.versions import ProjectModels
from clickmask.segmenters import grabcut
from clickmask.types import Image, Mask, Prediction, Prompt
from conftest import OneSegmenter
from support.drawn import disc, rectangle
from support.fakes import DiscSegmenter
from support.hosts import host_of
from support.model_drafts import draft

SIZE = (60, 80)
OBJECT = disc(SIZE, (40, 30), 18)
SMALLER, LARGER = disc(SIZE, (40, 30), 16), disc(SIZE, (40, 30), 20)


def picture(mask: Mask = OBJECT) -> Image:
    pixels = np.full((*SIZE, 3), 60, np.uint8)
    pixels[mask] = (200, 90, 60)
    return Image(pixels, "drawn")


class Answering:
    """Answers with one mask, and remembers what it was asked."""

    name = "answering"

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.asked: list[Prompt] = []

    def encode(self, image: Image) -> NDArray[np.uint8]:
        return image.pixels[..., 0].copy()

    def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        self.asked.append(prompt)
        return [Prediction(self.mask, 0.1, self.name)]


def refined(region: Mask, segmenter: Answering) -> tuple[str, Prediction]:
    found = [("cell", Prediction(region, 0.8, "unet:x"))]
    (one,) = refine(picture(), found, segmenter, EmbeddingCache(2**20))
    return one


@pytest.mark.parametrize("region", [SMALLER, LARGER])
def test_the_outline_on_the_edge_is_kept(region: Mask) -> None:
    assert np.array_equal(refined(region, Answering(OBJECT))[1].mask, OBJECT)
    assert np.array_equal(refined(OBJECT, Answering(region))[1].mask, OBJECT)


def test_the_segmenter_is_shown_the_region_and_its_box_and_changes_the_mask_alone() -> None:
    segmenter = Answering(OBJECT)
    label, made = refined(SMALLER, segmenter)
    (asked,) = segmenter.asked
    assert asked.mask is SMALLER
    assert (asked.box, asked.foreground) == (mask_box(SMALLER), ())
    assert (label, made.score, made.segmenter) == ("cell", 0.8, "unet:x")


@pytest.mark.parametrize("answer", [np.zeros(SIZE, bool), OBJECT & ~disc(SIZE, (48, 30), 18)])
def test_an_answer_about_something_else_is_not_taken(answer: Mask) -> None:
    assert mask_iou(SMALLER, answer) < SAME_OBJECT
    assert np.array_equal(refined(SMALLER, Answering(answer))[1].mask, SMALLER)


def test_nothing_found_needs_no_embedding() -> None:
    assert refine(picture(), [], DiscSegmenter(), EmbeddingCache(0, 0)) == []


@given(st.integers(0, 59), st.integers(0, 79), st.integers(1, 60), st.integers(1, 80))
def test_of_two_the_kept_one_never_has_less_of_an_edge(top: int, left: int, high: int, wide: int) -> None:
    pixels = picture().pixels
    answer = rectangle(SIZE, (left, top, min(left + wide, 80), min(top + high, 60)))
    kept = better(SMALLER, answer, pixels)
    assert along(kept, pixels) >= along(SMALLER, pixels)
    assert mask_iou(kept, SMALLER) >= SAME_OBJECT


def test_the_sides_of_the_image_are_no_outline() -> None:
    pixels = picture().pixels
    assert along(np.ones(SIZE, bool), pixels) == 0.0
    half = rectangle(SIZE, (0, 0, 40, 60))
    column = np.zeros(SIZE, bool)
    column[:, 39] = True
    assert along(half, pixels) == pytest.approx(edge_strengths(pixels)[column].mean())


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_an_outline_is_as_strong_if_it_is_looked_at_a_few_rows_at_a_time(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    monkeypatch.setattr("clickmask.annotators.trained.PIXELS_AT_ONCE", 8 * SIZE[1] * rows)
    for mask in (OBJECT, SMALLER | rectangle(SIZE, (60, 0, 80, 20)), ~OBJECT):
        outline = mask & ~cv2.erode(mask.view(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).view(bool)
        assert along(mask, pixels) == pytest.approx(edge_strengths(pixels)[outline].mean())


def serve(models: ProjectModels) -> None:
    kept = models.of("cvat", "3")
    kept.promote(kept.save(draft(10.0)).id)


def test_a_project_s_model_is_refined_by_the_segmenter_that_is_named(tmp_path: Path) -> None:
    models = ProjectModels(tmp_path)
    serve(models)
    segmenters: Catalogue = OneSegmenter(grabcut.load("", host_of()))
    given = (annotators, segmenters, EmbeddingCache(2**22), models)
    plain, both = AnnotatorCatalogue(*given), AnnotatorCatalogue(*given, refiner="grabcut")
    version = models.of("cvat", "3").served()
    assert version is not None
    assert plain.trained("cvat", "3") == ("trained:cvat-3", f"unet {version.id}")
    assert both.trained("cvat", "3") == ("trained:cvat-3", f"unet {version.id} refined by grabcut")
    pixels = np.full((*SIZE, 3), (250, 0, 0), np.uint8)
    pixels[OBJECT] = (0, 0, 250)
    image = Image(pixels, "blue on red")
    for catalogue in (plain, both):
        ((label, found),) = catalogue.get("trained:cvat-3").annotate(image)
        assert (label, mask_iou(found.mask, OBJECT)) == ("nucleus", pytest.approx(1, abs=0.1))


def test_a_refiner_that_cannot_run_is_said(tmp_path: Path) -> None:
    models = ProjectModels(tmp_path)
    serve(models)
    segmenters = OneSegmenter(DiscSegmenter())
    catalogue = AnnotatorCatalogue(annotators, segmenters, EmbeddingCache(2**22), models, refiner="sam:vit_b")
    (status,) = [each for each in catalogue.statuses() if each.name == "trained:cvat-3"]
    assert not status.ready
    assert "sam:vit_b cannot run" in status.reason
