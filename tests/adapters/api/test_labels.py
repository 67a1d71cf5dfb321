"""Labels that programs bring over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clickmask.labels.submissions import ProjectDeleted
from clickmask.masks.rle import mask_to_rle
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.drawn import disc
from support.labelled import noise
from support.pictures import to_base64

SQUARE: dict[str, Any] = {"kind": "polygon", "rings": [[[10, 10], [30, 10], [30, 30], [10, 30]]]}
DEEP = json.loads("[" * 300 + "]" * 300)  # more than Pydantic writes
URL = "/v1/projects/page/cells/labels"


@pytest.fixture
def client(workbench: Workbench, tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(Home(Settings(home=tmp_path), workbench))
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        yield client


def body(*geometries: dict[str, Any], key: str = "1", seed: int = 1, **more: Any) -> dict[str, Any]:
    labels = [{"category": "cell", "geometry": geometry} for geometry in geometries]
    image = {"data": to_base64(noise(seed))}
    return {"key": key, "image": image, "name": f"{seed}.png", "labels": labels} | more


def listed(client: TestClient) -> list[dict[str, Any]]:
    return client.get(URL).json()["labels"]


def test_a_program_brings_every_kind_of_shape(client: TestClient) -> None:
    rle = mask_to_rle(disc())
    shapes = [
        SQUARE,
        {"kind": "rectangle", "box": [1, 2, 30, 40]},
        {"kind": "ellipse", "centre": [30, 20], "radii": [9, 7], "rotation": 10},
        {"kind": "brush", "rle": rle},
    ]
    answer = client.post(URL, json=body(*shapes))
    assert (answer.status_code, answer.json()["changed"], answer.json()["labels"]) == (200, True, 4)
    found = listed(client)
    assert [each["geometry"]["kind"] for each in found] == [each["kind"] for each in shapes]
    assert found[0]["geometry"] == SQUARE
    assert found[3]["rle"] == rle
    (project,) = client.get("/v1/projects").json()["projects"]
    assert (project["tool"], project["project"], project["images"]) == ("page", "cells", 1)
    exported = client.get("/v1/projects/page/cells/export/coco")
    assert exported.status_code == 200


def test_the_same_labels_again_change_nothing_and_others_of_the_same_key_replace_them(
    client: TestClient,
) -> None:
    client.post(URL, json=body(SQUARE))
    first = listed(client)
    assert client.post(URL, json=body(SQUARE)).json()["changed"] is False
    assert listed(client) == first
    assert client.post(URL, json=body(SQUARE, SQUARE)).json()["changed"] is True
    assert len(listed(client)) == 2
    assert client.post(URL, json=body(seed=2, key="2")).json()["labels"] == 0
    (project,) = client.get("/v1/projects").json()["projects"]
    assert (project["images"], project["labels"]) == (2, 2)
    late = client.post(URL, json=body(SQUARE, accepted_at=5))
    assert (late.status_code, len(listed(client))) == (409, 2)


def test_a_digest_names_an_image_whose_labels_are_there(client: TestClient) -> None:
    digest = client.post(URL, json=body(SQUARE)).json()["image"]["digest"]
    again = client.post(URL, json=body(SQUARE, SQUARE) | {"image": {"digest": digest}})
    assert (again.status_code, again.json()["image"]["digest"]) == (200, digest)
    seen = client.post("/v1/images", json={"image": {"data": to_base64(noise(3))}}).json()["digest"]
    assert client.post(URL, json=body(SQUARE) | {"image": {"digest": seen}}).status_code == 410


def test_the_proposal_that_a_label_came_from_counts_as_assistance(client: TestClient) -> None:
    image = {"data": to_base64(noise(1))}
    proposed = client.post(
        "/v1/proposals", json={"image": image, "prompt": {"foreground": [[30, 20]]}}
    ).json()
    given = body({"kind": "brush", "rle": proposed["proposals"][0]["rle"]})
    given["labels"][0]["proposal"] = proposed["proposals"][0]["id"]
    assert client.post(URL, json=given).status_code == 200
    assert listed(client)[0]["proposal"] == proposed["proposals"][0]["id"]


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"kind": "circle"},
        {"kind": "polygon"},
        {"kind": "polygon", "rings": "a"},
        {"kind": "polygon", "rings": [[["a", "b"]]]},
        {"kind": "polygon", "rings": [[[1, 2, 3]]]},
        {"kind": "polygon", "rings": [[[1e300, 0], [0, 1e300], [5, 5]]]},
        {"kind": "polygon", "rings": [["12", "34", "51"]]},
        {"kind": "polygon", "rings": [[["1", "2"], ["30", "4"], ["5", "30"]]]},
        {"kind": "polygon", "rings": [[[[1, 2], [30, 4]], [[5, 30], [1, 1]]]]},
        {"kind": "polygon", "rings": {"": DEEP}},
        {"kind": "polygon", "rings": [], "rotation": 1},
        {"kind": "rectangle", "box": [1, 2, 3]},
        {"kind": "rectangle", "box": [1, 2, 3, 4], "x": DEEP},
        {"kind": "rectangle", "box": [1, 2, 3, 4], "x": "\ud800"},
        {"kind": "rectangle", "box": [1, 2, 3, None]},
        {"kind": "rectangle", "box": [1, 2, 3, 4], "rotation": "x"},
        {"kind": "ellipse", "centre": [1, 2], "radii": 3},
        {"kind": "brush", "rle": {"size": [48, 64], "counts": "~~"}},
        {"kind": "brush", "rle": {"size": [48, 64], "counts": "é"}},
        {"kind": "brush", "rle": {"size": [4, 4], "counts": "0d0"}},
        {"kind": "brush", "rle": {"size": [True, 64], "counts": "0"}},
        {"kind": "brush", "rle": []},
        {"kind": "brush", "rle": {"size": [48, 64], "counts": "PP3", "x": DEEP}},
        {"kind": "brush", "rle": {"size": {"48": DEEP, "64": 1}, "counts": "PP3"}},
    ],
)
def test_what_is_no_shape_is_refused_and_nothing_of_its_image_kept(
    client: TestClient, geometry: dict[str, Any]
) -> None:
    sent = json.dumps(body(SQUARE, geometry))  # httpx would refuse half of a surrogate pair
    answer = client.post(URL, content=sent, headers={"Content-Type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (422, ["error"]), answer.text
    assert "label 1" in answer.json()["error"]
    assert client.get("/v1/projects").json() == {"projects": []}


def test_labels_that_take_too_much_room_together_are_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickmask_adapters.api.labels.MAX_RUN_LENGTHS", 500)
    assert client.post(URL, json=body(*[SQUARE] * 5)).status_code == 200
    answer = client.post(URL, json=body(*[SQUARE] * 50))
    assert answer.status_code == 422
    assert answer.json()["error"] == "the labels have run lengths of more than 500 bytes"
    assert len(listed(client)) == 5


def test_projects_are_of_tools_or_of_clickmask_itself(client: TestClient) -> None:
    answer = client.post("/v1/projects/paint/cells/labels", json=body(SQUARE))
    assert answer.status_code == 404
    assert "cvat, label_studio, page" in answer.json()["error"]


@pytest.mark.parametrize("name", ["%00", "%20", "a%0aINFO b", "%1b[31m", "x" * 65, "%c3%a9" * 33])
def test_a_project_has_a_name_that_logs_and_folders_can_hold(client: TestClient, name: str) -> None:
    answer = client.post(f"/v1/projects/page/{name}/labels", json=body(SQUARE))
    assert (answer.status_code, "the name of a project" in answer.text) == (422, True), answer.text
    assert client.get("/v1/projects").json() == {"projects": []}


def test_what_was_deleted_does_not_come_back(client: TestClient, workbench: Workbench) -> None:
    client.post(URL, json=body(SQUARE))
    workbench.store.delete(ProjectDeleted("page", "cells"))
    assert client.post(URL, json=body(SQUARE)).status_code == 409
    assert client.get(URL).status_code == 404
