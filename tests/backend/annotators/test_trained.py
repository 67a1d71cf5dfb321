"""Trained models as annotators; here they call each pixel by the strongest of its colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clickmask import annotators, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.errors import NotFound
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.weights import WeightsFolder
from clickmask.models.versions import ProjectModels
from clickmask.types import Image
from support.drawn import disc, rectangle
from support.model_drafts import draft

SIZE = (60, 80)
BLUE, GREEN = disc(SIZE, (20, 20), 12), rectangle(SIZE, (50, 30, 70, 50))


@pytest.fixture
def models(tmp_path: Path) -> ProjectModels:
    return ProjectModels(tmp_path / "models")


@pytest.fixture
def catalogue(tmp_path: Path, models: ProjectModels) -> AnnotatorCatalogue:
    kept = Catalogue(segmenters, WeightsFolder(tmp_path / "weights"))
    return AnnotatorCatalogue(annotators, kept, EmbeddingCache(2**20), models)


def serve(models: ProjectModels, weight: float = 2.0, project: str = "3") -> str:
    kept = models.of("cvat", project)
    return kept.promote(kept.save(draft(weight)).id).id


def picture() -> Image:
    """A blue disc (nucleus), a greenish block (cell) and a speck of it on red."""
    pixels = np.full((*SIZE, 3), (255, 0, 0), np.uint8)
    pixels[BLUE], pixels[GREEN], pixels[2, 2] = (0, 0, 252), (150, 200, 0), (0, 255, 0)
    return Image(pixels, "drawn")


def trained_names(catalogue: AnnotatorCatalogue) -> list[str]:
    return [each.name for each in catalogue.statuses() if each.name.startswith("trained")]


def test_there_is_one_for_each_project_whose_model_is_served(
    catalogue: AnnotatorCatalogue, models: ProjectModels
) -> None:
    assert trained_names(catalogue) == []
    with pytest.raises(NotFound):
        catalogue.get("trained:cvat-3")
    serve(models)
    serve(models, project="task-9")
    models.of("cvat", "4").save(draft())
    assert trained_names(catalogue) == ["trained:cvat-3", "trained:cvat-task-9"]
    (status,) = [each for each in catalogue.statuses() if each.name == "trained:cvat-3"]
    assert (status.ready, status.labels) == (True, ("cell", "nucleus"))


def test_objects_are_what_hangs_together_and_the_surest_come_first(
    catalogue: AnnotatorCatalogue, models: ProjectModels
) -> None:
    serve(models, weight=10.0)
    found = catalogue.get("trained:cvat-3").annotate(picture())
    assert [label for label, _ in found] == ["cell", "nucleus", "cell"]
    np.testing.assert_array_equal(found[1][1].mask, BLUE)
    np.testing.assert_array_equal(found[2][1].mask, GREEN)
    scores = [prediction.score for _, prediction in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] > 0.99 > scores[2] > 0.8


def test_specks_are_no_objects(
    catalogue: AnnotatorCatalogue, models: ProjectModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(models)
    annotator = catalogue.get("trained:cvat-3")
    assert len(annotator.annotate(picture())) == 3  # of a picture so small, one pixel is an object
    monkeypatch.setattr("clickmask.annotators.trained.MIN_AREA_SHARE", 1e-2)
    assert len(annotator.annotate(picture())) == 2


def test_what_the_network_is_not_sure_of_is_no_object(
    catalogue: AnnotatorCatalogue, models: ProjectModels
) -> None:
    serve(models, weight=1.0)  # the block's 0.44 is more than any other class has, and little
    found = catalogue.get("trained:cvat-3").annotate(picture())
    assert [label for label, _ in found] == ["cell", "nucleus"]
    assert not any((prediction.mask & GREEN).any() for _, prediction in found)


def test_another_version_is_used_from_the_next_picture_on(
    catalogue: AnnotatorCatalogue, models: ProjectModels
) -> None:
    serve(models, weight=1.0)
    annotator = catalogue.get("trained:cvat-3")
    unsure = annotator.annotate(picture())[0][1].score
    serve(models, weight=10.0)
    assert annotator.annotate(picture())[0][1].score > unsure
    models.of("cvat", "3").roll_back()
    assert annotator.annotate(picture())[0][1].score == unsure


def test_a_damaged_model_is_not_ready(catalogue: AnnotatorCatalogue, models: ProjectModels) -> None:
    served = serve(models)
    (models.of("cvat", "3").version(served).path / "manifest.json").unlink()
    (status,) = [each for each in catalogue.statuses() if each.name == "trained:cvat-3"]
    assert not status.ready
    assert "has no manifest that can be read" in status.reason
