"""The network that a project's labels have trained, as CVAT sees it: one of its detectors.

The model calls each pixel by the strongest of its colours: green is `cell`, blue is `nucleus`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from clickmask import annotators
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.images.decode import decode_image
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.ingest.inbox import Inbox
from clickmask.masks.rle import rle_to_mask
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import routes
from conftest import OneSegmenter
from support.cvat_standin import Cvat, stored_shapes
from support.drawn import disc, rectangle
from support.fakes import DiscSegmenter
from support.labelled import png
from support.model_drafts import draft

SIZE = (60, 80)
NUCLEUS, CELL = disc(SIZE, (20, 20), 12), rectangle(SIZE, (50, 30, 70, 50))
DETECTOR = "clickmask-detect-trained-cvat-1"


def picture() -> bytes:
    pixels = np.full((*SIZE, 3), (250, 0, 0), np.uint8)
    pixels[NUCLEUS], pixels[CELL] = (0, 0, 250), (150, 200, 0)
    return png(pixels)


@pytest.fixture
def models(tmp_path: Path) -> ProjectModels:
    return ProjectModels(tmp_path / "models")


@pytest.fixture
def cvat(
    store: Store, inbox: Inbox, models: ProjectModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cvat]:
    monkeypatch.setattr(routes, "FUNCTIONS_TTL_S", 0.0)
    catalogue, embeddings = OneSegmenter(DiscSegmenter()), EmbeddingCache(2**24, queue_length=4)
    found = AnnotatorCatalogue(annotators, catalogue, embeddings, models)
    images = ImageSource(Fetcher())
    bench = Workbench(catalogue, found, images, embeddings, store, inbox, default_segmenter="disc")
    app = create_app(Home(Settings(home=tmp_path), bench))
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as http:
        yield Cvat(http)


def serve(models: ProjectModels, weight: float = 10.0) -> None:
    project = models.of("cvat", "1")
    project.promote(project.save(draft(weight)).id)


def test_it_is_offered_from_the_first_version_on_with_its_categories(
    cvat: Cvat, models: ProjectModels
) -> None:
    assert DETECTOR not in cvat.models()
    serve(models)
    offered = cvat.models()[DETECTOR]
    assert (offered.kind, [label["name"] for label in offered.labels]) == ("detector", ["cell", "nucleus"])


def test_what_it_finds_is_stored_and_remembered(cvat: Cvat, models: ProjectModels, store: Store) -> None:
    serve(models)
    found = stored_shapes(cvat.detect(DETECTOR, picture()), ["cell", "nucleus"], SIZE)
    masks = {shape["label"]: shape["mask"] for shape in found}
    np.testing.assert_array_equal(masks["nucleus"], NUCLEUS)
    np.testing.assert_array_equal(masks["cell"], CELL)
    drawn = store.prelabels(decode_image(picture()).digest)
    assert {each.annotator for each in drawn} == {"trained:cvat-1"}
    for each in drawn:
        np.testing.assert_array_equal(rle_to_mask(each.rle), masks[each.label])


def test_what_is_below_cvats_threshold_is_neither_shown_nor_remembered(
    cvat: Cvat, models: ProjectModels, store: Store
) -> None:
    serve(models)
    (only,) = cvat.detect(DETECTOR, picture(), 0.97)
    assert only["label"] == "nucleus"
    assert [each.label for each in store.prelabels(decode_image(picture()).digest)] == ["nucleus"]


def test_another_version_answers_from_the_next_frame_on(cvat: Cvat, models: ProjectModels) -> None:
    serve(models)
    before = cvat.detect(DETECTOR, picture())
    serve(models, 5.0)
    after = cvat.detect(DETECTOR, picture())
    assert [item["label"] for item in after] == [item["label"] for item in before]
    assert float(after[-1]["confidence"]) < float(before[-1]["confidence"])
