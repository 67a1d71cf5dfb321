"""The routes under what the real Label Studio sent, and under nonsense."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clickmask.ingest.inbox import Inbox
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import keep_parts, mask_iou
from clickmask.masks.rle import rle_to_mask
from clickmask.types import ImageRef, Mask
from clickmask.workbench import Workbench
from clickmask_adapters.server import failures
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio import client as label_studio_client
from clickmask_adapters.tools.label_studio import routes
from clickmask_adapters.tools.label_studio.client import client_of
from clickmask_adapters.tools.label_studio.shapes import brush_rle_to_mask
from support import CONTRACTS, drawn
from support.fakes import DiscSegmenter, disc_mask
from support.label_studio_standin import TOKEN, LabelStudioStandin, label_studio_standin
from support.waiting import until

RECORDED = CONTRACTS / "label_studio"
INTERACTIVE = sorted(path.name for path in RECORDED.glob("*_predict_interactive_*.json"))
WEBHOOKS = sorted(path.name for path in RECORDED.glob("*_webhook_*.json"))


def recorded(name: str) -> dict[str, Any]:
    """The body of the recorded request whose file name begins with `name`."""
    (path,) = RECORDED.glob(f"{name}*.json")
    return json.loads(path.read_text())["request"]["body"]


def data_uri(height: int, width: int, value: int = 90) -> str:
    _, png = cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


class Images:
    """Stands for Label Studio: every address of a task is a plain picture of the given size."""

    def __init__(self) -> None:
        self.size = (480, 640)
        self.asked: list[tuple[int, str]] = []

    def image_ref(self, task_id: int, uri: str) -> ImageRef:
        self.asked.append((task_id, uri))
        return ImageRef(data_uri(*self.size))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Images:
    images = Images()
    monkeypatch.setattr(
        label_studio_client.LabelStudioClient, "image_ref", lambda _, task, uri: images.image_ref(task, uri)
    )
    return images


@pytest.fixture
def http(workbench: Workbench, tmp_path: Path, images: Images) -> Iterator[TestClient]:
    app = FastAPI()
    failures.install(app, failures.RecentFailures())
    app.include_router(routes.router(workbench, client_of(Settings(home=tmp_path, segmenter="disc")), 0.98))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def send(http: TestClient, body: Any) -> dict[str, Any]:
    answer = http.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def shown(region: dict[str, Any], size: tuple[int, int]) -> Mask:
    """The pixels of a brush or polygon region."""
    value = region["value"]
    if "rle" in value:
        return brush_rle_to_mask(value["rle"], size)
    return polygons_to_mask([np.array(value["points"]) * (size[1], size[0]) / 100], size)


EXPECTED: dict[str, tuple[tuple[int, int], Any, list[tuple[str, str, str]]]] = {
    # size, the mask that the fake segmenter must have been asked for, (type, from_name, label)
    "06": (
        (480, 640),
        disc_mask((480, 640), [(191.763, 215.931)]),
        [("brushlabels", "brush", "Car"), ("polygonlabels", "poly", "Car")],
    ),
    "07": (
        (480, 640),
        disc_mask((480, 640), [(191.763, 215.931), (191.763, 287.744)]),
        [("brushlabels", "brush", "Car"), *[("polygonlabels", "poly", "Car")] * 2],
    ),
    "08": (
        (480, 640),
        drawn.rectangle((480, 640), (371, 183, 589, 423)),
        [("brushlabels", "brush", "Road"), ("polygonlabels", "poly", "Road")],
    ),
    "09": (
        (480, 640),
        disc_mask((480, 640), [(191.763, 215.931)]),
        [("polygonlabels", "poly", "Car")],
    ),
    "10": ((700, 1000), disc_mask((700, 1000), [(300.558, 279.740)]), [("brushlabels", "brush", "Car")]),
    "11": ((480, 640), disc_mask((480, 640), [(328.286, 336.178)]), [("brushlabels", "brush", "Car")]),
    "12": (
        (480, 640),
        disc_mask((480, 640), [(191.763, 192.256)]),
        [("brush", "brush", ""), ("labels", "labels", "Car")],
    ),
}


def test_every_recorded_click_has_an_expected_answer() -> None:
    assert {name[:2] for name in INTERACTIVE} == set(EXPECTED)


@pytest.mark.parametrize("number", sorted(EXPECTED))
def test_a_recorded_click_is_answered_with_what_it_points_at(
    number: str, http: TestClient, images: Images
) -> None:
    size, truth, expected = EXPECTED[number]
    images.size = size
    body = recorded(number)
    (answer,) = send(http, body)["results"]
    regions = answer["result"]
    assert answer["score"] == 0.75
    assert answer["model_version"] == "disc"
    described = [
        (region["type"], region["from_name"], *(region["value"].get(region["type"]) or [""]))
        for region in regions
    ]
    assert described == expected
    asked = body["params"]["context"]["result"][-1]
    for region in regions:
        assert region["to_name"] == "image"
        assert (region["original_height"], region["original_width"]) == size
        assert region["image_rotation"] == asked["image_rotation"]
        assert region.get("item_index") == asked.get("item_index")
        assert region["score"] == 0.75
    for region in (region for region in regions if "rle" in region["value"]):
        assert region["value"]["format"] == "rle"
        assert mask_iou(shown(region, size), truth) > 0.99
    polygons = [region for region in regions if "points" in region["value"]]
    assert all(region["value"]["closed"] for region in polygons)
    if polygons:
        together = np.logical_or.reduce([shown(region, size) for region in polygons])
        assert mask_iou(together, truth) > 0.975


def test_regions_carry_one_proposal_and_their_number(http: TestClient) -> None:
    regions = send(http, recorded("07"))["results"][0]["result"]
    proposals, numbers = zip(*(region["id"].rsplit("-", 1) for region in regions), strict=True)
    assert len(set(proposals)) == 1 and len(proposals[0]) >= 16
    assert numbers == ("0", "1", "2")


def test_one_click_with_two_results_is_answered_with_one_region_in_two_results(http: TestClient) -> None:
    brush, labels = send(http, recorded("12"))["results"][0]["result"]
    assert brush["id"] == labels["id"]
    assert brush["value"]["rle"] == labels["value"]["rle"]


def test_the_image_is_the_one_that_item_index_selects(http: TestClient, images: Images) -> None:
    images.size = (700, 1000)
    send(http, recorded("10"))
    assert images.asked == [(recorded("10")["tasks"][0]["id"], "/data/upload/8/753a10e0-b.jpg")]


def test_an_item_index_beyond_the_images_is_refused(http: TestClient, images: Images) -> None:
    body = recorded("10")
    body["params"]["context"]["result"][0]["item_index"] = 2
    answer = http.post("/predict", json=body)
    assert answer.status_code == 400
    assert "2 images" in answer.json()["error"]


def test_an_image_of_another_size_than_the_one_displayed_is_refused(http: TestClient, images: Images) -> None:
    images.size = (640, 480)
    answer = http.post("/predict", json=recorded("06"))
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "the image has 480x640 pixels, but Label Studio shows one of 640x480: reload the task"
    }


def test_only_negative_clicks_find_nothing(http: TestClient, images: Images) -> None:
    body = recorded("07")
    for mark in body["params"]["context"]["result"]:
        mark["is_positive"] = False
    assert send(http, body) == {"results": [{"result": [], "score": 0, "model_version": "disc"}]}
    assert not images.asked


def test_an_empty_mask_finds_nothing(http: TestClient) -> None:
    body = recorded("07")
    marks = body["params"]["context"]["result"]
    marks[1:] = [marks[0] | {"id": "other", "is_positive": False}]
    assert send(http, body) == {"results": [{"result": [], "score": 0, "model_version": "disc"}]}


@pytest.mark.parametrize("number", ["04", "05"])
def test_opening_a_task_prepares_its_image_and_stores_nothing(
    number: str, http: TestClient, images: Images, disc: DiscSegmenter
) -> None:
    disc.hold = threading.Event()
    body = recorded(number)
    assert send(http, body) == {"results": []}  # though no image can be encoded yet
    disc.hold.set()
    deadline = time.monotonic() + 10
    while not disc.encoded and time.monotonic() < deadline:
        time.sleep(0.01)
    assert disc.encoded
    assert images.asked[0][0] == body["tasks"][0]["id"]


def test_new_tasks_are_prepared_after_their_event_was_answered(
    http: TestClient, images: Images, disc: DiscSegmenter
) -> None:
    disc.hold = threading.Event()
    event = recorded("19")
    assert http.post("/webhook", json=event).json() == {"status": "kept"}  # though nothing can be encoded yet
    disc.hold.set()
    deadline = time.monotonic() + 10
    while not disc.encoded and time.monotonic() < deadline:
        time.sleep(0.01)
    assert disc.encoded
    assert images.asked == [(event["tasks"][0]["id"], event["tasks"][0]["data"]["image"])]


@pytest.fixture
def label_studio() -> Iterator[LabelStudioStandin]:
    with label_studio_standin() as standin:
        yield standin


@pytest.fixture
def with_label_studio(
    label_studio: LabelStudioStandin, workbench: Workbench, tmp_path: Path, images: Images
) -> Iterator[TestClient]:
    known = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": TOKEN}
    app = FastAPI()
    app.include_router(
        routes.router(workbench, client_of(Settings(home=tmp_path, segmenter="disc", **known)), 0.98)
    )
    with TestClient(app) as client:
        yield client


def click_in(task: int) -> dict[str, Any]:
    body = recorded("06")
    (own,) = body["tasks"]
    return body | {"tasks": [own | {"id": task}]}


def test_a_click_prepares_the_next_tasks_that_nobody_has_labelled(
    with_label_studio: TestClient, label_studio: LabelStudioStandin, images: Images
) -> None:
    for number in range(5, 13):
        label_studio.add_task(number)["data"] = recorded("06")["tasks"][0]["data"] | {"n": number}
    label_studio.tasks[9]["annotations"] = [label_studio.annotation(9)]
    for _ in range(2):
        send(with_label_studio, click_in(7))
    until(lambda: len(images.asked) == 5, 60)
    send(with_label_studio, click_in(7))
    assert [task for task, _ in images.asked if task != 7] == [8, 10, 11]
    assert label_studio.asked == ["/api/tasks"]  # once, however often is clicked


def test_a_click_is_answered_where_the_next_tasks_are_not_told(
    with_label_studio: TestClient, label_studio: LabelStudioStandin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    label_studio.fail_after = 0
    assert send(with_label_studio, click_in(7))["results"][0]["result"]
    until(lambda: "the tasks after 7 are not prepared" in caplog.text, 60)


def test_without_a_label_studio_to_ask_nothing_follows(http: TestClient, images: Images) -> None:
    send(http, click_in(7))
    assert [task for task, _ in images.asked] == [7]


@pytest.mark.parametrize(
    "changes",
    [{"tasks": None}, {"tasks": [7]}, {"project": None}, {"project": {"id": 1, "label_config": "<"}}],
)
def test_an_event_of_new_tasks_that_makes_no_sense_is_kept_all_the_same(
    changes: dict[str, Any],
    http: TestClient,
    images: Images,
    inbox: Inbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert http.post("/webhook", json=recorded("19") | changes).json() == {"status": "kept"}
    assert inbox.count() == 1
    deadline = time.monotonic() + 10
    while "new tasks are not prepared" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "new tasks are not prepared" in caplog.text
    assert images.asked == []


def test_preparations_that_wait_are_bounded_and_leave_when_done(
    http: TestClient, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    hold = threading.Event()

    def prepare(*_: object) -> None:
        begun.append("")
        assert hold.wait(10)

    monkeypatch.setattr(routes.Backend, "prepare", prepare)
    for _ in range(routes.MAX_PREPARED + 5):
        assert send(http, recorded("04")) == {"results": []}
    hold.set()
    deadline = time.monotonic() + 10
    while len(begun) < routes.MAX_PREPARED and time.monotonic() < deadline:
        time.sleep(0.01)
    assert send(http, recorded("04")) == {"results": []}
    while len(begun) <= routes.MAX_PREPARED and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(begun) == routes.MAX_PREPARED + 1


def test_health_says_up(http: TestClient) -> None:
    assert http.head("/health").status_code == 200
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "UP", "model_class": "clickmask"}


@pytest.mark.parametrize("number", ["02", "21"])
def test_setup_names_the_model_version(number: str, http: TestClient) -> None:
    answer = http.post("/setup", json=recorded(number))
    assert (answer.status_code, answer.json()) == (200, {"model_version": "disc"})


@pytest.mark.parametrize("given", [{"segmenter": "grabcut"}, '{"segmenter": "grabcut"}'])
def test_setup_remembers_the_projects_segmenter(given: Any, http: TestClient, workbench: Workbench) -> None:
    answer = http.post("/setup", json=recorded("02") | {"extra_params": given})
    assert answer.json() == {"model_version": "grabcut"}
    # the same project number, as later requests write it
    assert workbench.project_segmenter("label_studio", "1") == "grabcut"
    assert http.post("/setup", json=recorded("02") | {"extra_params": ""}).json() == {"model_version": "disc"}


@pytest.mark.parametrize("as_text", [False, True])
def test_the_projects_controls_shape_what_a_click_is_answered_with(
    as_text: bool, http: TestClient, workbench: Workbench, images: Images
) -> None:
    body = recorded("07")
    *_, third = body["params"]["context"]["result"]
    third["is_positive"] = True
    third["value"] |= {"x": 90, "y": 90}
    (plain,) = [each for each in send(http, body)["results"][0]["result"] if "rle" in each["value"]]
    whole = shown(plain, images.size)
    given: Any = {"controls": {"max_parts": 1}}
    http.post("/setup", json=recorded("02") | {"extra_params": json.dumps(given) if as_text else given})
    (region,) = [each for each in send(http, body)["results"][0]["result"] if "rle" in each["value"]]
    assert np.array_equal(shown(region, images.size), keep_parts(whole, most=1))
    assert shown(region, images.size).sum() < whole.sum()
    kept = workbench.store.proposal(region["id"].rpartition("-")[0])  # what an untouched region equals
    assert kept is not None and np.array_equal(rle_to_mask(kept.rle), shown(region, images.size))
    http.post("/setup", json=recorded("02"))
    (again,) = [each for each in send(http, body)["results"][0]["result"] if "rle" in each["value"]]
    assert again["value"] == plain["value"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"segmenter": "nosuch"}, 404),
        ({"segmenter": 7}, 400),
        ("{", 400),
        ("[]", 400),
        ([1], 400),
        ({"controls": 1}, 400),
        ({"controls": {"smooth": -1}}, 422),
        ({"controls": {"smooth": "2"}}, 422),
        ({"controls": {"sharp": 2}}, 422),
    ],
)
def test_setup_refuses_extra_params_that_cannot_be(given: Any, status: int, http: TestClient) -> None:
    answer = http.post("/setup", json=recorded("02") | {"extra_params": given})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_versions_are_the_segmenters_that_are_ready(http: TestClient) -> None:
    assert "grabcut" in http.get("/versions").json()["versions"]


@pytest.mark.parametrize("name", WEBHOOKS)
def test_a_recorded_event_is_kept_as_it_came(name: str, http: TestClient, inbox: Inbox) -> None:
    before = inbox.count()
    body = orjson.dumps(recorded(name.removesuffix(".json")))
    answer = http.post("/webhook", content=body, headers={"Content-Type": "application/json"})
    # Here nothing is trained, and Label Studio's page says so.
    assert answer.status_code == (503 if "START_TRAINING" in name else 200)
    assert ("nothing is trained" in answer.text) == ("START_TRAINING" in name)
    assert inbox.count() == before + 1


def test_an_event_is_not_answered_with_success_before_it_is_on_the_disk(
    http: TestClient, inbox: Inbox
) -> None:
    inbox._writer.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'full'); END")
    answer = http.post("/webhook", json=recorded("13"))
    assert answer.status_code == 503
    assert "could not be kept" in answer.json()["error"]
    assert inbox.count() == 0


def test_an_event_that_is_no_object_is_refused(http: TestClient, inbox: Inbox) -> None:
    assert http.post("/webhook", content=b"").status_code == 400
    assert http.post("/webhook", json=[1]).status_code == 400
    assert inbox.count() == 0


@pytest.mark.parametrize("path", ["/predict", "/setup"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"project": []}', b"[" * 5000])
def test_a_broken_body_is_refused_in_a_sentence(path: str, body: bytes, http: TestClient) -> None:
    answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert " " in answer.json()["error"] and "Traceback" not in answer.text


nonsense = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every part of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            yield from places(part, (*path, key))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.sampled_from(["02", "04", "06", "07", "08", "10", "12"]), put=nonsense, which=st.data())
def test_nonsense_anywhere_in_a_request_is_never_an_error_of_ours(
    number: str, put: Any, which: st.DataObject, http: TestClient
) -> None:
    body = recorded(number)
    *parents, last = which.draw(st.sampled_from(list(places(body))[1:]))
    target = body
    for key in parents:
        target = target[key]
    target[last] = put
    answer = http.post("/setup" if number == "02" else "/predict", content=json.dumps(body).encode())
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert list(answer.json()) == ["error"]
