"""What Label Studio is answered before anybody has clicked, once a project has a model.

The model calls each pixel by the strongest of its colours: green is `cell`, blue is `nucleus`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from clickmask import annotators
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.errors import Busy, ImageUnavailable
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.ingest.inbox import Inbox
from clickmask.masks.rle import rle_to_mask
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.types import ImageRef
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio import client as label_studio_client
from clickmask_adapters.tools.label_studio import label_config, labels, prelabel
from clickmask_adapters.tools.label_studio.shapes import brush_rle_to_mask
from conftest import OneSegmenter
from support.drawn import disc, rectangle
from support.fakes import DiscSegmenter
from support.labelled import png
from support.model_drafts import draft

SIZE = (60, 80)
NUCLEUS, CELL = disc(SIZE, (20, 20), 12), rectangle(SIZE, (50, 30, 70, 50))
XML = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cell"/><Label value="nucleus"/></BrushLabels>'
    '<PolygonLabels name="polygon" toName="image"><Label value="cell"/></PolygonLabels></View>'
)


def address(*, blank: bool = False) -> str:
    pixels = np.full((*SIZE, 3), (250, 0, 0), np.uint8)
    if not blank:
        pixels[NUCLEUS], pixels[CELL] = (0, 0, 250), (150, 200, 0)
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


@pytest.fixture
def models(tmp_path: Path) -> ProjectModels:
    return ProjectModels(tmp_path / "models")


@pytest.fixture
def workbench(store: Store, inbox: Inbox, models: ProjectModels) -> Iterator[Workbench]:
    catalogue, embeddings = OneSegmenter(DiscSegmenter()), EmbeddingCache(2**24, queue_length=4)
    found = AnnotatorCatalogue(annotators, catalogue, embeddings, models)
    images = ImageSource(Fetcher())
    bench = Workbench(catalogue, found, images, embeddings, store, inbox, default_segmenter="disc")
    yield bench
    bench.close()


@pytest.fixture
def http(workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    def image_ref(_: object, task: int, uri: str) -> ImageRef:
        if uri == "gone":
            raise ImageUnavailable("it is gone")
        return ImageRef(uri)

    monkeypatch.setattr(label_studio_client.LabelStudioClient, "image_ref", image_ref)
    app = create_app(Home(Settings(home=tmp_path), workbench))
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        yield client


def serve(models: ProjectModels, weight: float = 10.0) -> str:
    project = models.of("label_studio", "1")
    return project.promote(project.save(draft(weight)).id).id


def predict(http: TestClient, *addresses: str, xml: str = XML) -> list[dict[str, Any]]:
    tasks = [{"id": number, "data": {"image": uri}} for number, uri in enumerate(addresses, 1)]
    body = {"tasks": tasks, "project": "1.17953", "label_config": xml, "params": {"context": None}}
    answer = http.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def set_up(http: TestClient) -> str:
    return http.post("/setup", json={"project": "1.17953", "schema": XML}).json()["model_version"]


def test_nothing_is_stored_before_there_is_a_model(http: TestClient) -> None:
    assert predict(http, address()) == []


def test_each_object_is_one_region_with_its_label_and_score(http: TestClient, models: ProjectModels) -> None:
    serve(models)
    (found,) = predict(http, address())
    by_label = {region["value"]["brushlabels"][0]: region for region in found["result"]}
    assert len(found["result"]) == len(by_label) == 2
    for label, mask in (("nucleus", NUCLEUS), ("cell", CELL)):
        region = by_label[label]
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
        assert (region["original_height"], region["original_width"]) == SIZE
        np.testing.assert_array_equal(brush_rle_to_mask(region["value"]["rle"], SIZE), mask)
    assert by_label["nucleus"]["score"] > by_label["cell"]["score"] == found["score"] > 0.8


def test_the_model_version_follows_the_pointer(http: TestClient, models: ProjectModels) -> None:
    assert set_up(http) == "disc"
    first = serve(models)
    assert set_up(http) == predict(http, address())[0]["model_version"] == f"disc, unet {first}"
    second = serve(models, 5.0)
    assert set_up(http) == f"disc, unet {second}"
    models.of("label_studio", "1").roll_back()
    assert set_up(http) == f"disc, unet {first}"


def test_tasks_are_answered_in_their_order_whatever_one_of_them_is(
    http: TestClient, models: ProjectModels
) -> None:
    serve(models)
    found = predict(http, "gone", address(), address(blank=True))
    assert [len(each["result"]) for each in found] == [0, 2, 0]
    assert predict(http, "gone") == []  # nothing to keep: it is asked for again


def test_a_label_that_the_config_has_not_is_not_drawn(http: TestClient, models: ProjectModels) -> None:
    serve(models)
    (found,) = predict(http, address(), xml=XML.replace('<Label value="nucleus"/>', ""))
    assert [region["value"]["brushlabels"] for region in found["result"]] == [["cell"]]


def test_polygons_are_drawn_where_there_is_no_brush(http: TestClient, models: ProjectModels) -> None:
    serve(models)
    only = XML.replace("BrushLabels", "RectangleLabels")
    (found,) = predict(http, address(), xml=only)
    assert [region["type"] for region in found["result"]] == ["polygonlabels"]


def test_what_is_shown_is_remembered_under_the_ids_of_its_regions(
    http: TestClient, models: ProjectModels, workbench: Workbench
) -> None:
    serve(models)
    uri = address()
    (found,) = predict(http, uri, xml=XML.replace('<Label value="nucleus"/>', ""))
    (region,) = found["result"]
    (drawn,) = workbench.store.prelabels(
        workbench.identify(ImageRef(uri)).digest
    )  # no nucleus: it is not shown
    assert (f"{drawn.id}-0", "cell", "trained:label_studio-1") == (region["id"], drawn.label, drawn.annotator)
    np.testing.assert_array_equal(rle_to_mask(drawn.rle), CELL)
    annotation = {"id": 5, "result": found["result"], "updated_at": "2026-11-22T10:00:00Z", "project": 1}
    task = {"id": 1, "project": 1, "data": {"image": uri}}
    (submission,) = labels.submissions(annotation, task, label_config.parse(XML))
    assert [each.proposal for each in submission.regions] == [drawn.id]


def test_a_damaged_model_is_no_reason_not_to_answer(http: TestClient, models: ProjectModels) -> None:
    served = models.of("label_studio", "1").version(serve(models))
    (served.path / "manifest.json").unlink()
    assert set_up(http) == "disc"
    assert predict(http, address()) == []


def test_a_task_waits_its_turn_where_others_are_annotated(
    http: TestClient, models: ProjectModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(models)
    annotate, refused = Workbench.annotate, iter([Busy("others", retry_after=0.0)])

    def busy_once(self: Workbench, *arguments: Any) -> Any:
        for error in refused:
            raise error
        return annotate(self, *arguments)

    monkeypatch.setattr(Workbench, "annotate", busy_once)
    assert len(predict(http, address())[0]["result"]) == 2


def test_too_much_at_once_is_busy(
    http: TestClient, models: ProjectModels, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(models)
    monkeypatch.setattr(prelabel, "PREDICT_WAIT_S", 0.0)
    while workbench._annotations.acquire(blocking=False):
        pass
    body = {"tasks": [{"id": 1, "data": {"image": address()}}], "project": "1.1", "label_config": XML}
    answer = http.post("/predict", json=body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
