from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clickmask.files import DamagedFiles
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import keep_parts, mask_iou
from clickmask.masks.rle import mask_to_rle, rle_to_mask
from clickmask.store import Store
from clickmask.workbench import Workbench
from clickmask_adapters.api import proposals, status
from clickmask_adapters.server.failures import RecentFailures, install
from clickmask_adapters.settings import Settings
from support.drawn import rectangle, scene
from support.fakes import DiscSegmenter, DrawnAnnotator, disc_mask
from support.pictures import SIZE, png_base64, to_base64
from support.waiting import until

CLICK = {"foreground": [[40, 30]]}


@pytest.fixture
def client(workbench: Workbench, tmp_path: Path) -> Iterator[TestClient]:
    app, recent = FastAPI(), RecentFailures()
    install(app, recent)
    app.include_router(proposals.router(workbench, Settings(home=tmp_path)))
    app.include_router(status.router(workbench, recent, DamagedFiles(tmp_path)))
    yield TestClient(app, raise_server_exceptions=False)


def propose(client: TestClient, prompt: dict[str, Any] = CLICK, **more: Any) -> Any:
    body = {"image": {"data": png_base64()}, "prompt": prompt} | more
    answer = client.post("/v1/proposals", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("form", ["data:image/png;base64,{}", "{}\n", "DATA:;base64, {}", "urlsafe"])
def test_an_image_is_read_in_every_form_of_base64(client: TestClient, form: str) -> None:
    data = png_base64()
    if form == "urlsafe":
        written = data.replace("+", "-").replace("/", "_").rstrip("=")
        assert written != data
    else:
        written = form.format("\r\n".join(data[at : at + 76] for at in range(0, len(data), 76)))
    assert propose(client, image={"data": written})["image"] == propose(client)["image"]


def polygons_mask(polygons: list[dict[str, Any]]) -> np.ndarray:
    rings = [np.array(ring) for polygon in polygons for ring in [polygon["outer"], *polygon["holes"]]]
    return polygons_to_mask(rings, SIZE)


def test_a_click_is_answered_as_run_lengths_and_as_polygons(client: TestClient) -> None:
    answer = propose(client)
    assert {"width": 80, "height": 60}.items() <= answer["image"].items()
    assert answer["segmenter"] == "disc"
    (proposal,) = answer["proposals"]
    expected = disc_mask(SIZE, [(40, 30)])
    assert np.array_equal(rle_to_mask(proposal["rle"]), expected)
    assert proposal["area"] == expected.sum()
    assert proposal["box"] == [30, 20, 50, 40]
    assert proposal["score"] == 0.75
    drawn = polygons_mask(proposal["polygons"])
    assert mask_iou(drawn, expected) == pytest.approx(proposal["iou"])
    assert proposal["iou"] >= 0.98
    assert proposal["points"] == sum(len(polygon["outer"]) for polygon in proposal["polygons"])


def test_an_iou_of_one_is_exact_and_holes_are_holes(client: TestClient) -> None:
    prompt = {"box": [5, 5, 75, 55], "background": [[40, 30]]}
    (proposal,) = propose(client, prompt, min_iou=1)["proposals"]
    (polygon,) = proposal["polygons"]
    assert len(polygon["holes"]) == 1
    assert proposal["iou"] == 1
    assert np.array_equal(polygons_mask(proposal["polygons"]), rle_to_mask(proposal["rle"]))


def annotate(client: TestClient, **more: Any) -> Any:
    body = {"image": {"data": to_base64(scene().pixels)}, "annotator": "drawn"} | more
    answer = client.post("/v1/annotations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_object_of_an_image_is_given_with_its_label(client: TestClient) -> None:
    answer = annotate(client, min_iou=1)
    assert {"width": 320, "height": 240}.items() <= answer["image"].items()
    assert answer["annotator"] == "drawn"
    assert {found["label"] for found in answer["objects"]} == set(scene().objects)
    for found in answer["objects"]:
        mask = rle_to_mask(found["rle"])
        assert mask_iou(mask, scene().objects[found["label"]]) > 0.9
        rings = [np.array(ring) for part in found["polygons"] for ring in [part["outer"], *part["holes"]]]
        assert np.array_equal(polygons_to_mask(rings, mask.shape), mask)
        assert found["area"] == mask.sum()
    assert annotate(client, image={"data": png_base64()})["objects"] == []


def test_objects_below_the_score_that_is_asked_for_are_left_out(client: TestClient) -> None:
    scores = [found["score"] for found in annotate(client, want=[])["objects"]]
    assert scores == sorted(scores, reverse=True)
    assert len(annotate(client, want=[], min_score=scores[1])["objects"]) == 2


def test_annotators_are_listed_with_what_they_find(client: TestClient) -> None:
    listed = client.get("/v1/annotators").json()["annotators"]
    (drawn,) = [each for each in listed if each["name"] == "drawn"]
    assert drawn == {"name": "drawn", "ready": True, "reason": "", "labels": list(scene().objects)}


def test_an_unknown_annotator_is_404_and_a_busy_one_503(client: TestClient, drawn: DrawnAnnotator) -> None:
    body = {"image": {"data": png_base64()}, "annotator": "no-such-thing"}
    assert client.post("/v1/annotations", json=body).status_code == 404
    drawn.hold = threading.Event()
    body["annotator"] = "drawn"
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(client.post, "/v1/annotations", json=body) for _ in range(2)]
        until(lambda: len(drawn.annotated) == 2)
        busy = client.post("/v1/annotations", json=body)
        drawn.hold.set()
        assert {each.result(10).status_code for each in running} == {200}
    assert busy.status_code == 503
    assert int(busy.headers["Retry-After"]) > 0


def test_only_what_is_wanted_is_sent(client: TestClient) -> None:
    assert "polygons" not in propose(client, want=["rle"])["proposals"][0]
    assert "rle" not in propose(client, want=["polygons"])["proposals"][0]


def test_a_lower_quality_takes_fewer_points_and_a_cap_is_kept(client: TestClient) -> None:
    points = [propose(client, min_iou=iou)["proposals"][0]["points"] for iou in (0.8, 0.95, 1)]
    assert points == sorted(points)
    assert points[0] < points[-1]
    capped = propose(client, min_iou=1, max_points=5)["proposals"][0]
    assert capped["points"] <= 5
    assert capped["iou"] < 1


def test_nothing_found_is_an_answer(client: TestClient) -> None:
    (proposal,) = propose(client, {"foreground": [[40, 30]], "background": [[40, 30]]})["proposals"]
    assert proposal["area"] == 0
    assert proposal["box"] is None
    assert proposal["polygons"] == []


def test_an_image_is_sent_once_and_then_named(client: TestClient, disc: DiscSegmenter) -> None:
    known = client.post("/v1/images", json={"image": {"data": png_base64()}}).json()
    assert (known["width"], known["height"]) == (80, 60)
    answer = propose(client, image={"digest": known["digest"]})
    assert answer["image"]["digest"] == known["digest"]
    assert disc.encoded == [known["digest"]]
    gone = client.post("/v1/proposals", json={"image": {"digest": "0" * 64}, "prompt": CLICK})
    assert gone.status_code == 410
    unknown = client.post("/v1/images", json={"image": {"data": png_base64()}, "segmenter": "nope"})
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"prompt": CLICK}, 422, "image"),
        ({"image": {}, "prompt": CLICK}, 400, "exactly one"),
        ({"image": {"data": png_base64(), "url": "http://x/"}, "prompt": CLICK}, 400, "exactly one"),
        ({"image": {"data": png_base64()}, "prompt": {}}, 422, "foreground point"),
        ({"image": {"data": png_base64()}, "prompt": {"background": [[1, 1]]}}, 422, "foreground point"),
        ({"image": {"data": png_base64()}, "prompt": {"foreground": [[81, 1]]}}, 422, "80x60"),
        ({"image": {"data": png_base64()}, "prompt": {"foreground": [[1]]}}, 422, "foreground"),
        ({"image": {"data": png_base64()}, "prompt": {"box": [5, 5, 5, 9]}}, 422, "no area"),
        ({"image": {"data": png_base64()}, "prompt": CLICK, "min_iou": 1.5}, 422, "min_iou"),
        ({"image": {"data": png_base64()}, "prompt": CLICK, "min_iou": 0}, 422, "min_iou"),
        ({"image": {"data": png_base64()}, "prompt": CLICK, "surprise": 1}, 422, "surprise"),
        ({"image": {"data": png_base64()}, "prompt": CLICK, "segmenter": "nothing"}, 404, "installed"),
        ({"image": {"data": "not base64!"}, "prompt": CLICK}, 422, "base64"),
        ({"image": {"data": base64.b64encode(b"no image").decode()}, "prompt": CLICK}, 422, "image"),
        ({"image": {"url": "file:///etc/passwd"}, "prompt": CLICK}, 403, ""),
        ({"image": {"url": "http://127.0.0.1:1/x.png"}, "prompt": CLICK}, 403, ""),
        ({"image": {"url": "gopher://example.com/"}, "prompt": CLICK}, 403, ""),
        ([], 422, ""),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    client: TestClient, body: Any, status: int, says: str
) -> None:
    answer = client.post("/v1/proposals", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client: TestClient, number: str) -> None:
    body = f'{{"image": {{"data": "{png_base64()}"}}, "prompt": {{"foreground": [[{number}, 1]]}}}}'
    answer = client.post("/v1/proposals", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "error" in answer.json()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=JSON, prompt=JSON, more=JSON)
def test_no_json_is_an_internal_error(client: TestClient, image: Any, prompt: Any, more: Any) -> None:
    for body in (
        {"image": image, "prompt": prompt},
        {"image": {"data": png_base64()}, "prompt": prompt},
        {"image": {"url": image}, "prompt": CLICK},
        {"image": {"data": png_base64()}, "prompt": {"foreground": prompt, "box": more}},
        {"image": {"data": png_base64()}, "prompt": CLICK, "min_iou": more, "segmenter": image},
        more,
    ):
        assert client.post("/v1/proposals", json=body).status_code in {200, 400, 403, 404, 422}


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": {"foreground": [[]] * 50_000}},
        {"prompt": {"background": [["x", "y"]] * 50_000}},
        {"prompt": {}, "want": ["x"] * 50_000},
        {"prompt": {f"a{number}": 1 for number in range(50_000)}},
        {"prompt": {}, **{f"a{number}": 1 for number in range(50_000)}},
    ],
)
def test_what_is_wrong_many_times_is_one_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        proposals.ProposalsIn.model_validate({"image": {"data": ""}, **wrong})
    assert refused.value.error_count() == 1


def test_segmenters_and_the_default_are_listed(client: TestClient) -> None:
    listed = client.get("/v1/segmenters").json()
    assert listed["default"] == "disc"
    assert {"name": "grabcut", "ready": True, "reason": ""} in listed["segmenters"]


def test_the_status_shows_the_cache_and_what_went_wrong(client: TestClient) -> None:
    propose(client)
    propose(client)
    client.post("/v1/proposals", json={})
    status = client.get("/v1/status").json()
    assert (status["cache"]["hits"], status["cache"]["misses"], status["cache"]["entries"]) == (1, 1, 1)
    assert status["cache"]["hit_rate"] == 0.5
    assert status["queue"] == {"waiting": 0, "capacity": 4}
    assert status["inbox"] == 0
    assert [(error["method"], error["path"], error["status"]) for error in status["errors"]] == [
        ("POST", "/v1/proposals", 422)
    ]


def test_the_api_describes_itself_with_examples_that_hold(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/v1/proposals", "/v1/images", "/v1/segmenters", "/v1/status"} <= set(described["paths"])
    schemas = described["components"]["schemas"]
    proposals.ProposalsIn.model_validate(schemas["ProposalsIn"]["examples"][0])
    proposals.ProposalsOut.model_validate(schemas["ProposalsOut"]["examples"][0])
    proposals.ProposalsOut.model_validate(propose(client))


def test_eight_threads_on_two_images_get_the_answers_of_one(client: TestClient) -> None:
    def ask(number: int) -> tuple[int, dict[str, Any]]:
        image = {"data": png_base64(shade=50 * (number % 2))}
        prompt = {"foreground": [[10 + number % 7 * 10, 30]]}
        return number, propose(client, prompt, image=image)

    def essence(answer: dict[str, Any]) -> tuple[Any, ...]:
        (proposal,) = answer["proposals"]
        return answer["image"]["digest"], proposal["rle"]["counts"], str(proposal["polygons"])

    serial = {number: essence(answer) for number, answer in map(ask, range(14))}
    with ThreadPoolExecutor(8) as pool:
        for number, answer in pool.map(ask, list(range(14)) * 4):
            assert essence(answer) == serial[number]


def test_controls_shape_the_mask_that_is_given_and_remembered(client: TestClient, store: Store) -> None:
    two_discs = {"foreground": [[20, 30], [60, 30]]}
    (whole,) = propose(client, two_discs)["proposals"]
    (one,) = propose(client, two_discs, controls={"max_parts": 1})["proposals"]
    assert np.array_equal(rle_to_mask(one["rle"]), keep_parts(rle_to_mask(whole["rle"]), most=1))
    assert 0 < one["area"] < whole["area"]
    remembered = store.proposal(one["id"])
    assert remembered is not None
    assert np.array_equal(rle_to_mask(remembered.rle), rle_to_mask(one["rle"]))


def test_a_mask_is_a_prompt_alone_and_beside_points(client: TestClient) -> None:
    square = rectangle((60, 80), (40, 10, 70, 50))
    (alone,) = propose(client, {"mask": mask_to_rle(square)})["proposals"]
    assert np.array_equal(rle_to_mask(alone["rle"]), square)
    (beside,) = propose(client, {"mask": mask_to_rle(square), "foreground": [[20, 30]]})["proposals"]
    assert np.array_equal(rle_to_mask(beside["rle"]), square | disc_mask((60, 80), [(20, 30)]))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (mask_to_rle(np.ones((80, 60), bool)), "a mask of 60x80 pixels does not fit the 80x60 image"),
        (mask_to_rle(np.zeros((60, 80), bool)), "the mask has no pixel"),
        ({"size": [60, 80], "counts": "abc"}, "the mask cannot be read"),
        ({"size": [60, 80], "counts": "é"}, "the mask cannot be read"),
        ({"size": [60, 80], "counts": "0" * (proposals.MAX_COUNTS + 1)}, "at most"),
        ({"size": [10**9, 10**9], "counts": "0"}, "does not fit"),
    ],
)
def test_a_mask_that_is_none_of_the_image_is_refused(
    client: TestClient, mask: dict[str, Any], said: str
) -> None:
    answer = client.post("/v1/proposals", json={"image": {"data": png_base64()}, "prompt": {"mask": mask}})
    assert answer.status_code == 422
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    "wish", [{"smooth": -1}, {"max_parts": 0}, {"fill_holes": 1.5}, {"sharpen": 1}, {"second_look": 1}]
)
def test_a_wish_that_cannot_be_is_refused(client: TestClient, wish: dict[str, Any]) -> None:
    body = {"image": {"data": png_base64()}, "prompt": CLICK, "controls": wish}
    answer = client.post("/v1/proposals", json=body)
    assert answer.status_code == 422
    assert next(iter(wish)) in answer.json()["error"]
