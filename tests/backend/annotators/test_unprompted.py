"""Segmenters that find objects by themselves, as annotators."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clickmask import annotators, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.errors import NotReady
from clickmask.inference import driver
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache, EmbeddingKey
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.plugins import Variant
from clickmask.types import Image
from support.drawn import disc

pytest.importorskip("onnx")
from support.foreground_networks import write_salient


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[AnnotatorCatalogue]:
    weights = WeightsFolder(tmp_path, checkpoints={"salient": write_salient(tmp_path)})
    weights.verify_new()
    embeddings = EmbeddingCache(2**24)
    yield AnnotatorCatalogue(annotators, Catalogue(segmenters, weights), embeddings)
    embeddings.close()


def test_what_it_finds_has_the_label_that_its_segmenter_says(catalogue: AnnotatorCatalogue) -> None:
    (status,) = [each for each in catalogue.statuses() if each.name == "unprompted:salient"]
    assert (status.ready, status.labels) == (True, ("object",))
    truth = disc((120, 160), (70.0, 60.0), 30.0)
    pixels = np.full((120, 160, 3), 60, np.uint8)
    pixels[truth] = (30, 90, 220)
    annotator = catalogue.get("unprompted:salient")
    ((label, found),) = driver.annotate(annotator, Image(pixels, "a disc"))
    assert (annotator.labels, label) == (("object",), "object")
    assert mask_iou(found.mask, truth) > 0.95


def test_a_picture_is_encoded_once_for_clicks_and_for_this(
    catalogue: AnnotatorCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = catalogue._host.segmenters.get("salient")
    image = Image(np.zeros((20, 30, 3), np.uint8), "dark")
    key = EmbeddingKey(segmenter.name, image.digest)
    catalogue._host.embeddings.get(key, lambda: segmenter.encode(image))
    annotator = catalogue.get("unprompted:salient")
    monkeypatch.setattr(segmenter, "encode", None)  # calling it would raise
    assert annotator.annotate(image) == []


def test_without_weights_it_says_what_its_segmenter_lacks(tmp_path: Path) -> None:
    embeddings = EmbeddingCache(2**20)
    official = write_salient(tmp_path)
    weights = WeightsFolder(tmp_path / "empty", checkpoints={"salient": official})
    catalogue = AnnotatorCatalogue(annotators, Catalogue(segmenters, weights), embeddings)
    (status,) = [each for each in catalogue.statuses() if each.name == "unprompted:salient"]
    assert not status.ready
    assert status.reason.endswith("its weights are not here: clickmask weights fetch salient")
    embeddings.close()


def test_a_segmenter_that_only_says_that_it_finds_objects_is_refused(
    catalogue: AnnotatorCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    grabcut = importlib.import_module("clickmask.segmenters.grabcut")
    monkeypatch.setattr(grabcut, "VARIANTS", {"": Variant(labels=("thing",))}, raising=False)
    with pytest.raises(NotReady, match="grabcut cannot find objects without a prompt"):
        catalogue.get("unprompted:grabcut")
