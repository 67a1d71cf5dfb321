"""What every installed annotator owes: a new file in clickmask/annotators/ is under test at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clickmask import annotators, plugins, segmenters
from clickmask.annotators import everything
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.weights import WeightsFolder
from clickmask.models.versions import ProjectModels
from clickmask.types import Annotator, Image, Pixels
from support.foreground_networks import write_salient
from support.model_drafts import draft
from support.scenes import drawn_scene


@pytest.fixture(scope="module", autouse=True)
def lenient() -> Iterator[None]:
    """Random weights believe in none of their masks, and clicking everywhere takes seconds."""
    sweep = everything.Grid(points_per_side=2, pred_iou_thresh=-1.0, stability_score_thresh=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(everything, "GRID", sweep)
        yield


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotatorCatalogue]:
    """What is installed, over a small SAM with random weights and a drawn U2-Net, as if they were official.

    The trained model is one that calls each pixel by the strongest of its colours.
    """
    folder = tmp_path_factory.mktemp("weights")
    known: dict[str, plugins.Checkpoint] = {}
    if importlib.util.find_spec("onnx") is not None:
        known["salient"] = write_salient(folder)
    if importlib.util.find_spec("torch") is not None:
        from support import checkpoints

        sam = checkpoints.write_checkpoint(folder / "sam.pth", checkpoints.TINY)
        known |= checkpoints.weights_of(sam).checkpoints
    weights = WeightsFolder(folder, checkpoints=known)
    weights.verify_new()
    embeddings = EmbeddingCache(100 * 2**20)
    models = ProjectModels(tmp_path_factory.mktemp("models"))
    project = models.of("cvat", "1")
    project.promote(project.save(draft()).id)
    yield AnnotatorCatalogue(annotators, Catalogue(segmenters, weights), embeddings, models)
    embeddings.close()


@pytest.fixture(params=plugins.names(annotators), scope="module")
def annotator(request: pytest.FixtureRequest, catalogue: AnnotatorCatalogue) -> Annotator:
    """The first of the family that is ready."""
    statuses = [each for each in catalogue.statuses() if each.name.split(":")[0] == request.param]
    ready = [status for status in statuses if status.ready]
    if not ready:
        pytest.skip(statuses[0].reason if statuses else f"{request.param} has nothing to stand on here")
    return catalogue.get(ready[0].name)


def image(pixels: Pixels) -> Image:
    pixels.flags.writeable = False  # writing would raise
    return Image(pixels, f"digest of {pixels.shape} {pixels.sum()}")


def test_its_labels_are_told_before_it_is_loaded(annotator: Annotator, catalogue: AnnotatorCatalogue) -> None:
    (status,) = [status for status in catalogue.statuses() if status.name == annotator.name]
    assert status.ready
    assert status.labels == annotator.labels
    assert len(set(status.labels)) == len(status.labels) > 0


def test_objects_are_whole_image_masks_with_labels_best_first(annotator: Annotator) -> None:
    scene = image(drawn_scene(1)[0])
    found = annotator.annotate(scene)
    assert found
    for label, prediction in found:
        assert label in annotator.labels
        assert prediction.mask.shape == scene.size
        assert prediction.mask.dtype == np.bool_
        assert prediction.mask.any()
        assert prediction.segmenter == annotator.name
    scores = [prediction.score for _, prediction in found]
    assert scores == sorted(scores, reverse=True)


def test_two_threads_get_the_serial_answers(annotator: Annotator) -> None:
    scenes = [image(drawn_scene(seed)[0]) for seed in (2, 3)]
    serial = [annotator.annotate(scene) for scene in scenes]
    with ThreadPoolExecutor(2) as pool:
        for expected, got in zip(serial, pool.map(annotator.annotate, scenes), strict=True):
            assert [label for label, _ in got] == [label for label, _ in expected]
            for (_, one), (_, other) in zip(expected, got, strict=True):
                assert (one.mask == other.mask).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_a_sliver_of_an_image_is_annotated_too(annotator: Annotator, size: tuple[int, int]) -> None:
    for label, prediction in annotator.annotate(image(np.full((*size, 3), 128, np.uint8))):
        assert label in annotator.labels
        assert prediction.mask.shape == size
