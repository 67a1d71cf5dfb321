"""CVAT's functions through the whole application, as CVAT 2.73.0 calls them."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickmask.errors import Busy, NotReady
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.catalogue import SegmenterStatus
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.ingest.inbox import Inbox
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import keep_parts, mask_iou
from clickmask.masks.rle import rle_to_mask
from clickmask.segmenters import sam
from clickmask.segmenters._sam.segmenter import SamEmbedding
from clickmask.store import Store
from clickmask.types import Image, Pixels, Prediction, Prompt, SamFeatures
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import routes
from clickmask_adapters.tools.cvat.functions import SAM_PLUGIN, VIT_H, Function
from conftest import OneSegmenter, workbench_of
from support import CONTRACTS, drawn
from support.cvat_standin import Cvat, Refused, drawn_shapes, stored_shapes
from support.fakes import DiscSegmenter, DrawnAnnotator, disc_mask
from support.waiting import until

CONTRACT = CONTRACTS / "cvat"
REQUESTS = sorted(CONTRACT.glob("[01]*.json"))
SIZE = (60, 80)  # height, width
DISC, DRAWN = "clickmask-disc", "clickmask-detect-drawn"


def encoded(pixels: Pixels) -> bytes:
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, "png")
    return raw.getvalue()


def picture(shade: int = 100, size: tuple[int, int] = SIZE) -> bytes:
    return encoded(np.full((*size, 3), shade, np.uint8))


def http(workbench: Workbench, home: Path, address: str = "127.0.0.1", **settings: Any) -> TestClient:
    app = create_app(Home(Settings(home=home, **settings), workbench))
    return TestClient(app, "http://127.0.0.1:9090", client=(address, 5000), raise_server_exceptions=False)


@pytest.fixture
def client(workbench: Workbench, tmp_path: Path) -> Iterator[TestClient]:
    with http(workbench, tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server of its own, for tests that look at nothing but its answers."""
    home = tmp_path_factory.mktemp("home")
    store, inbox = Store(home / "store.sqlite"), Inbox(home / "inbox.sqlite")
    bench = workbench_of(DiscSegmenter(), DrawnAnnotator(), store, inbox)
    with http(bench, home, cvat_direct_function=DISC) as client:
        yield client


@pytest.fixture
def cvat(steady: TestClient) -> Cvat:
    return Cvat(steady)


@pytest.fixture
def old_cvat(steady: TestClient) -> Cvat:
    return Cvat(steady, "2.59.1")


# What is offered


def test_trap_2_functions_are_an_object_and_not_a_list(steady: TestClient) -> None:
    assert isinstance(steady.get("/api/functions").json(), dict)


def test_every_ready_segmenter_and_annotator_is_offered_the_default_first(cvat: Cvat) -> None:
    models = cvat.models()
    assert next(iter(models)) == DISC
    assert models["clickmask-grabcut"].kind == "interactor"
    assert models[DRAWN].kind == "detector"
    assert not any(name.startswith("clickmask-sam") for name in models)  # its weights are not here


def test_one_function_is_described_as_in_the_list(cvat: Cvat) -> None:
    for name, model in cvat.models().items():
        assert cvat.model(name) == model


def test_trap_3_what_is_false_is_left_out(steady: TestClient) -> None:
    for function in steady.get("/api/functions").json().values():
        assert "startswith_box" not in function["metadata"]["annotations"]
        assert "false" not in json.dumps(function).lower()


def test_trap_4_every_version_is_2(cvat: Cvat) -> None:
    assert {model.version for model in cvat.models().values()} == {2}


def test_trap_5_interactors_have_an_empty_spec_and_detectors_their_labels(steady: TestClient) -> None:
    functions = steady.get("/api/functions").json()
    assert functions[DISC]["metadata"]["annotations"]["spec"] == ""
    labels = json.loads(functions[DRAWN]["metadata"]["annotations"]["spec"])
    assert labels == [
        {"id": number, "name": label, "type": "mask"} for number, label in enumerate(DrawnAnnotator.labels, 1)
    ]


def test_trap_6_every_function_has_a_description_a_status_and_annotations(steady: TestClient) -> None:
    for function in steady.get("/api/functions").json().values():
        assert function["spec"]["description"] and function["metadata"]["annotations"]
        assert function["status"] == {"state": "ready", "httpPort": 9090}


def test_an_interactor_starts_with_a_click_or_a_box_alone(cvat: Cvat) -> None:
    model = cvat.models()[DISC]
    assert (model.min_pos_points, model.min_neg_points) == (0, 0)
    assert model.startswith_box_optional and not model.startswith_box
    assert "right-click" in model.help_message


def test_what_is_not_ready_is_not_offered_and_what_becomes_ready_is(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "FUNCTIONS_TTL_S", 0.0)
    late = SegmenterStatus("late:big", False, "no weights")
    monkeypatch.setattr(workbench, "segmenters", lambda: [late])
    with http(workbench, tmp_path) as client:
        assert list(client.get("/api/functions").json()) == [DRAWN]
        monkeypatch.setattr(workbench, "segmenters", lambda: [SegmenterStatus("late:big", True, "")])
        assert client.get("/api/functions/clickmask-late-big").status_code == 200
        assert list(client.get("/api/functions").json()) == ["clickmask-late-big", DRAWN]


def test_a_function_that_cvat_could_not_read_is_left_out_and_named_at_the_start(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [SegmenterStatus(name, True, "") for name in ("a b", "x:y", "x-y", "ü")]
    monkeypatch.setattr(workbench, "segmenters", lambda: bad)
    with http(workbench, tmp_path) as client:
        assert set(Cvat(client).models()) == {"clickmask-x-y", DRAWN}
    left_out = [record.getMessage() for record in caplog.records if "not offered" in record.getMessage()]
    assert len(left_out) == 3
    assert "x-y: x:y is clickmask-x-y already" in left_out[1]


def test_an_interactor_with_controls_stands_beside_the_plain_ones(
    workbench: Workbench, tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    variants = " disc  max_parts=1 , nosuch:a smooth=2"
    left = "clickmask-disc-max_parts-1"
    with http(workbench, tmp_path, cvat_controls=variants) as client:
        cvat = Cvat(client)
        models = cvat.models()
        assert next(iter(models)) == DISC and left in models and not any("nosuch" in name for name in models)
        points = [[20, 30], [60, 30], [61, 30]]
        ((plain, _),) = drawn_shapes(cvat.click(DISC, picture(), points), SIZE)
        ((shaped, _),) = drawn_shapes(cvat.click(left, picture(), points), SIZE)
    assert 0 < shaped.sum() < plain.sum()
    assert np.array_equal(shaped, keep_parts(plain, most=1))
    digest = workbench.identify_base64(base64.b64encode(picture())).digest
    newest = store.proposals(digest)[-1]
    assert np.array_equal(rle_to_mask(newest.rle), shaped)
    assert "clickmask nosuch:a smooth=2: the segmenter nosuch:a is not ready" in caplog.text


@pytest.mark.parametrize(
    ("labels", "problem"),
    [((), "has labels"), (("a", "a"), "twice"), ((" ",), "cannot be a label"), (("a" * 65,), "cannot be")],
)
def test_a_detector_with_labels_that_take_cvats_list_down_cannot_be_written(
    labels: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        Function("clickmask-x", "detector", "x", "x", "x", labels)


def test_the_list_touches_no_model_and_waits_for_none(client: TestClient, disc: DiscSegmenter) -> None:
    disc.hold = threading.Event()
    cvat = Cvat(client)
    with ThreadPoolExecutor(24) as pool:
        clicks = [pool.submit(cvat.click, DISC, picture(), [[40, 30]]) for _ in range(24)]
        until(lambda: client.get("/v1/status").json()["cache"]["misses"] > 8)
        assert DISC in cvat.models() and cvat.model(DISC)
        assert not any(each.done() for each in clicks)
        disc.hold.set()
        assert all(len(each.result(20)["shapes"]) == 1 for each in clicks)


def test_a_click_does_not_look_through_the_plugins_again(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    monkeypatch.setattr(routes, "FUNCTIONS_TTL_S", 0.0)
    with http(workbench, tmp_path) as client:
        monkeypatch.setattr(workbench, "segmenters", lambda: looks.append(None) or [])
        assert Cvat(client).click(DISC, picture(), [[40, 30]])["shapes"]
        assert not looks
        assert list(client.get("/api/functions").json()) == [DRAWN]
        assert looks


def test_an_unknown_function_is_404(cvat: Cvat, steady: TestClient) -> None:
    for name in ("clickmask-nosuch", "", "../../etc", "x" * 500):
        answer = cvat.invoke(name, {"image": base64.b64encode(picture()).decode()})
        assert answer.status_code == 404 and "offers no function" in answer.json()["error"]
    assert steady.get("/api/functions/clickmask-nosuch").status_code == 404


# Clicks


def replay(client: TestClient, path: Path) -> Any:
    """The answer to a request of the contract, as JSON."""
    request = json.loads(path.read_text())["request"]
    answer = client.request(
        request["method"], request["path"], headers=request["headers"], json=request.get("body")
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_every_request_of_the_contract_is_answered(path: Path, steady: TestClient) -> None:
    if "sam_plugin" in path.stem:
        return  # offered with ViT-H only: replayed below
    answer = replay(steady, path)
    if "_interact_" in path.stem or "direct" in path.stem:
        (mask, *_), *more = drawn_shapes(answer, (240, 320))
        assert mask.any() and len(more) == ("two_boxes" in path.stem)
    elif "detect" in path.stem:
        assert answer == []  # the contract's picture is grey


def test_every_request_of_the_contract_says_where_it_comes_from() -> None:
    assert len(REQUESTS) >= 14
    assert all("2.73.0" in json.loads(path.read_text())["_note"] for path in REQUESTS)


def test_a_click_becomes_a_mask_where_it_points(cvat: Cvat) -> None:
    ((mask, confidence),) = drawn_shapes(cvat.click(DISC, picture(), [[40.5, 30.25]]), SIZE)
    assert (mask == disc_mask(SIZE, [(40.5, 30.25)])).all()
    assert confidence == 0.75


def test_negative_points_take_away(cvat: Cvat) -> None:
    ((mask, _),) = drawn_shapes(cvat.click(DISC, picture(), [[40, 30]], [[45, 30]]), SIZE)
    assert (mask == (disc_mask(SIZE, [(40, 30)]) & ~disc_mask(SIZE, [(45, 30)]))).all()


@pytest.mark.parametrize(
    "obj_bbox", [None, [], [[10, 5], [30, 45]], [[30, 45], [10, 5]], [[30, 5], [10, 45]]]
)
def test_trap_7_a_box_is_null_or_empty_or_two_corners(obj_bbox: Any, cvat: Cvat) -> None:
    points = [] if obj_bbox else [[40, 30]]
    ((mask, _),) = drawn_shapes(cvat.click(DISC, picture(), points, obj_bbox=obj_bbox), SIZE)
    expected = drawn.rectangle(SIZE, (10, 5, 30, 45)) if obj_bbox else disc_mask(SIZE, [(40, 30)])
    assert (mask == expected).all()


def test_a_request_without_points_and_boxes_at_all_finds_nothing(cvat: Cvat) -> None:
    assert cvat.call(DISC, {"image": base64.b64encode(picture()).decode()}) == {"shapes": []}


def test_several_boxes_give_several_shapes_in_their_order(cvat: Cvat, old_cvat: Cvat) -> None:
    boxes = [[5, 5], [20, 30], [40, 10], [70, 50]]
    first, second = drawn_shapes(cvat.click(DISC, picture(), obj_bbox=boxes), SIZE)
    assert (first[0] == drawn.rectangle(SIZE, (5, 5, 20, 30))).all()
    assert (second[0] == drawn.rectangle(SIZE, (40, 10, 70, 50))).all()
    ((together, _),) = drawn_shapes(old_cvat.click(DISC, picture(), obj_bbox=boxes), SIZE)
    assert (together == first[0] | second[0]).all()


def test_of_several_boxes_each_takes_the_points_that_are_nearest_to_it(cvat: Cvat) -> None:
    boxes = [[5, 5], [20, 30], [40, 10], [70, 50]]
    first, second = drawn_shapes(
        cvat.click(DISC, picture(), [[12, 15], [60, 20], [75, 20]], [[66, 20]], boxes), SIZE
    )
    assert (first[0] == disc_mask(SIZE, [(12, 15)])).all()
    assert (second[0] == (disc_mask(SIZE, [(60, 20), (75, 20)]) & ~disc_mask(SIZE, [(66, 20)]))).all()


def test_trap_8_points_far_outside_are_moved_to_the_edge(cvat: Cvat) -> None:
    for far, near in (([-1e9, 30], (0, 30)), ([1e300, 1e300], (80, 60)), ([40, -5], (40, 0))):
        ((mask, _),) = drawn_shapes(cvat.click(DISC, picture(), [far]), SIZE)
        assert (mask == disc_mask(SIZE, [near])).all()
    ((mask, _),) = drawn_shapes(cvat.click(DISC, picture(), obj_bbox=[[-50, -50], [20, 1000]]), SIZE)
    assert (mask == drawn.rectangle(SIZE, (0, 0, 20, 60))).all()


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"neg_points": [[10, 10]]},
        {"obj_bbox": [[10, 10], [10, 40]]},
        {"obj_bbox": [[-10, 0], [-5, 40]]},
        {"obj_bbox": [[100, 100], [200, 200]]},
        {"pos_points": [[40, 30]], "neg_points": [[40, 30]]},
    ],
    ids=str,
)
def test_trap_8_a_silly_prompt_finds_nothing(prompt: dict[str, Any], cvat: Cvat, old_cvat: Cvat) -> None:
    assert cvat.click(DISC, picture(), **prompt) == {"shapes": []}
    ((mask, _),) = drawn_shapes(old_cvat.click(DISC, picture(), **prompt), SIZE)
    assert not mask.any()


def test_a_region_of_interest_is_an_image_like_any_other(cvat: Cvat) -> None:
    """CVAT since 2.70 sends it cropped, with shifted points, and shifts the answer back."""
    pixels = drawn.scene().pixels
    whole, crop = encoded(pixels), encoded(pixels[100:220, 40:200])
    ((of_whole, _),) = drawn_shapes(cvat.click(DISC, whole, [[90, 150]]), pixels.shape[:2])
    ((of_crop, _),) = drawn_shapes(cvat.click(DISC, crop, [[50, 50]]), (120, 160))
    assert (of_crop == of_whole[100:220, 40:200]).all()


def test_a_threshold_leaves_out_what_is_less_sure(cvat: Cvat) -> None:
    assert cvat.click(DISC, picture(), [[40, 30]], threshold=0.76) == {"shapes": []}
    assert len(cvat.click(DISC, picture(), [[40, 30]], threshold=0.75)["shapes"]) == 1


def test_trap_14_confidence_is_a_text_in_the_attribute_zero(cvat: Cvat) -> None:
    (shape,) = cvat.click(DISC, picture(), [[40, 30]])["shapes"]
    assert shape["attributes"] == [{"spec_id": 0, "value": "0.7500"}]


def test_trap_19_shapes_are_run_lengths_from_zero_and_an_inclusive_box(cvat: Cvat) -> None:
    (shape,) = cvat.click(DISC, picture(), obj_bbox=[[10, 5], [30, 45]])["shapes"]
    assert (shape["type"], shape["points"]) == ("mask", [0, 800, 10, 5, 29, 44])


def test_trap_10_cvat_since_2_60_is_sent_shapes_and_before_a_dense_mask(steady: TestClient) -> None:
    for version in ("2.60.0", "2.73.0", "2.100.1", "3.0", "2.74.0.dev20260901"):
        assert list(Cvat(steady, version).click(DISC, picture(), [[40, 30]])) == ["shapes"]
    for version in ("2.59.9", "2.4.6", "2.6.0", "1.99", None):
        answer = Cvat(steady, version).click(DISC, picture(), [[40, 30]])
        assert list(answer) == ["mask"]
        ((mask, _),) = drawn_shapes(answer, SIZE)
        assert (mask == disc_mask(SIZE, [(40, 30)])).all()


def test_trap_11_a_dense_mask_is_never_cropped(old_cvat: Cvat) -> None:
    answer = old_cvat.click(DISC, picture(), obj_bbox=[[10, 5], [30, 45]])
    assert np.shape(answer["mask"]) == SIZE and "bounds" not in answer


class Undecided(DiscSegmenter):
    """Three discs of growing size, the second twice, and one empty mask."""

    def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        masks = [drawn.disc(embedding.shape, prompt.foreground[0], radius) for radius in (5, 8, 12, 0)]
        return [Prediction(mask, 0.9 - 0.1 * index, "disc") for index, mask in enumerate(masks)]


def bench_of(segmenter: DiscSegmenter, workbench: Workbench) -> Workbench:
    """The test's workbench with another segmenter in the place of the discs."""
    workbench._catalogue = OneSegmenter(segmenter)  # pyright: ignore[reportPrivateUsage]  # a fake
    return workbench


def test_all_candidates_are_sent_where_the_settings_say_so(workbench: Workbench, tmp_path: Path) -> None:
    with http(bench_of(Undecided(), workbench), tmp_path, cvat_candidates=True) as client:
        found = drawn_shapes(Cvat(client).click(DISC, picture(), [[40, 30]]), SIZE)
        assert [confidence for _, confidence in found] == [0.9, 0.8, 0.7]
        assert len(drawn_shapes(Cvat(client, "2.50").click(DISC, picture(), [[40, 30]]), SIZE)) == 1
        assert Cvat(client).click(DISC, picture(), [[40, 30]], threshold=0.75)["shapes"][1:]


def test_a_repeated_click_asks_for_the_next_candidate(workbench: Workbench, tmp_path: Path) -> None:
    with http(bench_of(Undecided(), workbench), tmp_path) as client:
        cvat = Cvat(client)
        confidences = [
            drawn_shapes(cvat.click(DISC, picture(), [[40, 30]] * times), SIZE)[0][1] for times in (1, 2, 3)
        ]
    assert confidences == [0.9, 0.8, 0.7]


# The image


def test_trap_9_an_image_that_was_seen_is_not_decoded_again(
    client: TestClient, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat = Cvat(client)
    cvat.click(DISC, picture(), [[40, 30]])

    def decoded(*_: object) -> None:
        raise AssertionError("the image was decoded again")

    monkeypatch.setattr("clickmask.images.fetch.binascii.a2b_base64", decoded)
    monkeypatch.setattr("clickmask.images.source.decode_image", decoded)
    for x in range(20, 30):
        assert cvat.click(DISC, picture(), [[x, 30]])["shapes"]
    assert len(disc.encoded) == 1


def test_an_image_whose_pixels_had_to_go_is_decoded_again(
    disc: DiscSegmenter, workbench: Workbench, tmp_path: Path
) -> None:
    """With room for one image and no embedding, each of two images throws out the other."""
    workbench.images = ImageSource(Fetcher(), image_bytes=1)
    workbench._cache = EmbeddingCache(1)  # pyright: ignore[reportPrivateUsage]  # a small one
    with http(workbench, tmp_path) as client:
        cvat = Cvat(client)
        for _ in range(3):
            for shade in (10, 200):
                assert cvat.click(DISC, picture(shade), [[40, 30]])["shapes"]
    assert len(disc.encoded) == 6


def test_two_images_are_never_mistaken_for_each_other(steady: TestClient) -> None:
    cvat = Cvat(steady)
    bright, dark = encoded(drawn.scene(seed=1).pixels), encoded(drawn.scene(seed=2).pixels)
    small = picture()
    for _ in range(2):
        assert drawn_shapes(cvat.click(DISC, bright, [[300, 200]]), (240, 320))
        assert drawn_shapes(cvat.click(DISC, small, [[40, 30]]), SIZE)
        assert drawn_shapes(cvat.click(DISC, dark, [[300, 200]]), (240, 320))


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "P", "CMYK"])
def test_images_of_every_mode_that_cvat_passes_on_are_read(mode: str, cvat: Cvat) -> None:
    """Section 1.8: always the original file, alpha and 16 bits included."""
    raw = io.BytesIO()
    if mode == "I;16":
        PIL.Image.fromarray(np.full(SIZE, 30000, np.uint16)).save(raw, "png")
    else:
        PIL.Image.new(mode, SIZE[::-1], 90).save(raw, "tiff" if mode == "CMYK" else "png")
    assert len(cvat.click(DISC, raw.getvalue(), [[40, 30]])["shapes"]) == 1


def test_clicks_on_a_turned_photo_are_in_the_frame_that_is_displayed(cvat: Cvat) -> None:
    """CVAT sends it upright already; one that is not would be displayed upright too."""
    raw = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(raw, "jpeg", exif=exif)
    ((mask, _),) = drawn_shapes(cvat.click(DISC, raw.getvalue(), [[30, 70]]), (80, 60))
    assert (mask == disc_mask((80, 60), [(30, 70)])).all()


# What cannot be

IMAGE = base64.b64encode(picture()).decode()
SILLY: dict[str, tuple[Any, int]] = {
    "no body": (b"", 400),
    "not JSON": (b"{", 400),
    "not an object": ([1], 400),
    "NaN": (b'{"image": "%b", "pos_points": [[NaN, 1]]}' % IMAGE.encode(), 400),
    "infinity": (b'{"image": "%b", "pos_points": [[1e999, 1]]}' % IMAGE.encode(), 400),
    "no image": ({"pos_points": [[40, 30]]}, 400),
    "image null": ({"image": None, "pos_points": [[40, 30]]}, 400),
    "image a number": ({"image": 7}, 400),
    "image empty": ({"image": ""}, 400),
    "broken base64": ({"image": IMAGE[:-7], "pos_points": [[40, 30]]}, 422),
    "not base64": ({"image": "\u00e9 %", "pos_points": [[40, 30]]}, 422),
    "not an image": ({"image": base64.b64encode(b"GIF89a, not").decode()}, 422),
    "cut image": ({"image": base64.b64encode(picture()[:60]).decode()}, 422),
    "a data: URL of no image": ({"image": "data:image/png;base64," + base64.b64encode(b"no").decode()}, 422),
    "a data: URL without base64": ({"image": "data:image/png," + IMAGE[:-1] + "!"}, 422),
    "a file's address": ({"image": "file:///etc/passwd"}, 422),
    "points a number": ({"image": IMAGE, "pos_points": 7}, 400),
    "points flat": ({"image": IMAGE, "pos_points": [40, 30]}, 400),
    "a point of three": ({"image": IMAGE, "pos_points": [[1, 2, 3]]}, 400),
    "a point of texts": ({"image": IMAGE, "pos_points": [["40", "30"]]}, 422),
    "a point of booleans": ({"image": IMAGE, "pos_points": [[True, False]]}, 422),
    "negatives an object": ({"image": IMAGE, "neg_points": {}}, 400),
    "an odd box": ({"image": IMAGE, "obj_bbox": [[1, 2], [3, 4], [5, 6]]}, 400),
    "a flat box": ({"image": IMAGE, "obj_bbox": [1, 2, 3, 4]}, 400),
    "many points": ({"image": IMAGE, "pos_points": [[1, 2]] * 21}, 422),
    "many boxes": ({"image": IMAGE, "obj_bbox": [[1, 2], [3, 4]] * 101}, 422),
    "threshold a text": ({"image": IMAGE, "pos_points": [[40, 30]], "threshold": "high"}, 422),
}


@pytest.mark.parametrize("name", SILLY)
def test_what_cannot_be_is_refused_in_a_sentence(name: str, steady: TestClient) -> None:
    payload, status = SILLY[name]
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    of_the_prompt = "point" in name or "box" in name or "negatives" in name  # which a detector has not
    for function, expected in ((DISC, status), (DRAWN, 200 if of_the_prompt else status)):
        for version in ("2.73.0", "2.50.0"):
            answer = Cvat(steady, version).invoke(function, body)
            assert answer.status_code == expected
            if expected != 200:
                (sentence,) = answer.json().values()
                assert " " in sentence and "Traceback" not in sentence and "/etc" not in sentence
                assert answer.headers["x-clickmask-error"] == sentence  # which is the reason phrase


nonsense = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@hypothesis_settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    part=st.sampled_from(["pos_points", "neg_points", "obj_bbox", "threshold", "text_prompts", "image"]),
    put=nonsense,
    version=st.sampled_from(["2.73.0", "2.50.0"]),
    function=st.sampled_from([DISC, DRAWN]),
)
def test_nonsense_in_a_request_is_never_an_error_of_ours(
    part: str, put: Any, version: str, function: str, steady: TestClient
) -> None:
    payload = {"image": IMAGE, "pos_points": [[40, 30]], part: put}
    answer = Cvat(steady, version).invoke(function, payload)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotReady("no weights"), 409), (Busy("full"), 429), (RuntimeError("/a/path"), 422)],
)
def test_trap_17_what_fails_inside_is_a_sentence_and_never_a_5xx(
    error: Exception, status: int, client: TestClient, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat = Cvat(client)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(disc, "decode", fail)
    with pytest.raises(Refused) as refused:
        cvat.click(DISC, picture(), [[40, 30]])
    answer = refused.value.answer
    assert answer.status_code == status
    assert "/a/path" not in answer.text and "Traceback" not in answer.text
    assert ("retry-after" in answer.headers) == isinstance(error, Busy)


def test_thirty_two_clicks_at_once_are_all_answered(client: TestClient, disc: DiscSegmenter) -> None:
    cvat = Cvat(client)
    points = [(10 + 2 * number, 30) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda point: cvat.click(DISC, picture(), [point]), points))
    for point, answer in zip(points, answers, strict=True):
        ((mask, _),) = drawn_shapes(answer, SIZE)
        assert (mask == disc_mask(SIZE, [point])).all()
    assert len(disc.encoded) == 1


def test_trap_16_a_click_that_takes_too_long_is_told_to_come_again(
    client: TestClient, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat = Cvat(client)
    monkeypatch.setattr(routes, "MAX_CLICK_S", 1.0)
    disc.hold = threading.Event()
    with pytest.raises(Refused, match="429") as refused:
        cvat.click(DISC, picture(), [[40, 30]])
    assert "still working" in refused.value.answer.json()["error"]
    disc.hold.set()
    until(lambda: bool(disc.encoded))
    assert cvat.click(DISC, picture(), [[40, 30]])["shapes"]
    assert len(disc.encoded) == 1  # what was late was not in vain


def test_a_detection_that_came_too_late_is_there_at_the_next_try(
    client: TestClient, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat, hold = Cvat(client), threading.Event()
    annotate = workbench.annotate
    begun: list[None] = []

    def slowly(*arguments: Any, **named: Any) -> Any:
        begun.append(None)
        hold.wait(60)
        return annotate(*arguments, **named)

    monkeypatch.setattr(workbench, "annotate", slowly)
    image = encoded(drawn.scene().pixels)
    monkeypatch.setattr(routes, "patience", lambda *_: 0.1)
    for _ in range(2):
        with pytest.raises(Refused, match="429"):
            cvat.detect(DRAWN, image)
    assert len(begun) == 1
    monkeypatch.setattr(routes, "patience", lambda *_: 60.0)
    hold.set()
    found = cvat.detect(DRAWN, image)
    assert len(found) >= 4 and len(begun) == 1
    assert cvat.detect(DRAWN, image) == found and len(begun) == 2  # what was given is not kept
    assert cvat.detect(DRAWN, image, 0.99) != found and len(begun) == 3


@pytest.mark.parametrize(
    ("kind", "timeout", "seconds"),
    [
        ("interactor", "120s", 50),  # nginx gives up after 60
        ("interactor", "30s", 25),
        ("detector", "120s", 115),
        ("detector", "600s", 595),
        ("detector", "", 115),
        ("detector", "soon", 115),
        ("detector", "1s", 1),
    ],
)
def test_trap_16_an_answer_is_there_before_cvat_gives_up(kind: Any, timeout: str, seconds: float) -> None:
    labels = ("a",) if kind == "detector" else ()
    assert routes.patience(Function("f", kind, "f", "f", "f", labels), timeout) == seconds


# The plugin in CVAT's page


@dataclass(frozen=True, eq=False)
class Features:
    features: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return self.features.nbytes


class HugeSegmenter(DiscSegmenter):
    """Its embeddings are in the shape of ViT-H's: noise that the image's first value seeds."""

    shape = (256, 64, 64)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def encode(self, image: Image) -> Any:
        self.encoded.append(image.digest)
        return Features(self.features(int(image.pixels[0, 0, 0])))

    def features(self, seed: int) -> NDArray[np.float32]:
        return np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32)


class WithDecoders(OneSegmenter):
    """Two segmenters, of which one or both say that ViT-H's decoder reads their embeddings."""

    def __init__(self, *segmenters: tuple[HugeSegmenter, str]) -> None:
        super().__init__(segmenters[0][0])
        self._decoders = {segmenter.name: decoder for segmenter, decoder in segmenters}
        self._loaded |= {segmenter.name: segmenter for segmenter, _ in segmenters}

    def statuses(self) -> list[SegmenterStatus]:
        return [SegmenterStatus(name, True, "", decoder) for name, decoder in self._decoders.items()]


def with_decoders(workbench: Workbench, *segmenters: tuple[HugeSegmenter, str]) -> Workbench:
    workbench._catalogue = WithDecoders(*segmenters)  # pyright: ignore[reportPrivateUsage]  # a fake
    return workbench


def test_trap_20_the_pages_plugin_is_offered_for_vit_h_embeddings_only(
    workbench: Workbench, tmp_path: Path
) -> None:
    bench = with_decoders(
        workbench, (HugeSegmenter("sam:vit_b"), ""), (HugeSegmenter("sam:vit_l"), "sam:vit_l")
    )
    with http(bench, tmp_path) as client:
        assert set(Cvat(client).models()) == {"clickmask-sam-vit_b", "clickmask-sam-vit_l", DRAWN}
        assert Cvat(client).invoke(SAM_PLUGIN, {"image": IMAGE}).status_code == 404


def test_trap_20_the_real_vit_h_goes_before_what_imitates_it(workbench: Workbench, tmp_path: Path) -> None:
    imitation, real = HugeSegmenter("mobile_sam"), HugeSegmenter("sam:vit_h")
    with http(with_decoders(workbench, (imitation, "sam:vit_h"), (real, "sam:vit_h")), tmp_path) as client:
        assert "embeddings of" not in Cvat(client).models()[SAM_PLUGIN].name
        Cvat(client).call(SAM_PLUGIN, {"image": IMAGE})
    assert (len(real.encoded), len(imitation.encoded)) == (1, 0)


def test_trap_20_of_our_own_sams_vit_h_alone_says_so_and_has_such_embeddings() -> None:
    decoders = {name: variant.sam_decoder for name, variant in sam.VARIANTS.items()}
    assert decoders == {"vit_b": "", "vit_l": "", "vit_h": VIT_H}
    features = np.zeros((256, 64, 64), np.float32)
    assert isinstance(SamEmbedding({"features": features}, (3, 4), None), SamFeatures)


def test_the_pages_plugin_is_sent_the_embedding_as_float32(workbench: Workbench, tmp_path: Path) -> None:
    segmenter = HugeSegmenter("mobile_sam")
    with http(with_decoders(workbench, (segmenter, "sam:vit_h")), tmp_path) as client:
        cvat = Cvat(client)
        model = cvat.models()[SAM_PLUGIN]
        assert model.kind == "interactor" and "mobile_sam" in model.name and "mobile_sam" in model.description
        answer = cvat.click(SAM_PLUGIN, picture(7), [[40, 30]])
        assert list(replay(client, CONTRACT / "11_interact_sam_plugin.json")) == ["blob"]
    assert list(answer) == ["blob"] and len(answer["blob"]) == 5_592_408
    tensor = np.frombuffer(base64.b64decode(answer["blob"], validate=True), "<f4").reshape(1, 256, 64, 64)
    assert (tensor[0] == segmenter.features(7)).all()


def test_an_embedding_of_another_shape_is_refused(workbench: Workbench, tmp_path: Path) -> None:
    class Small(HugeSegmenter):
        shape = (256, 32, 32)

    with http(with_decoders(workbench, (Small("small"), "sam:vit_h")), tmp_path) as client:
        answer = Cvat(client).invoke(SAM_PLUGIN, {"image": IMAGE})
    assert answer.status_code == 409 and "not those of SAM's decoder" in answer.json()["error"]


# Detectors


def test_a_detector_finds_what_was_drawn(cvat: Cvat) -> None:
    scene = drawn.scene()
    found = cvat.detect(DRAWN, encoded(scene.pixels))
    stored = stored_shapes(found, list(scene.objects), scene.pixels.shape[:2])
    assert {each["label"] for each in stored} == set(scene.objects)
    for each in stored:
        assert mask_iou(each["mask"], scene.objects[each["label"]]) > 0.95


def test_trap_12_every_detection_is_a_flat_crop_and_an_outline(cvat: Cvat) -> None:
    scene = drawn.scene()
    found, size = cvat.detect(DRAWN, encoded(scene.pixels)), scene.pixels.shape[:2]
    masks = stored_shapes(found, list(scene.objects), size)
    polygons = stored_shapes(found, list(scene.objects), size, conv_mask_to_poly=True)
    for mask, polygon in zip(masks, polygons, strict=True):
        outline = polygons_to_mask([np.array(polygon["polygon"]).reshape(-1, 2)], size)
        filled = mask["mask"]
        if mask["label"] == "ring":  # CVAT's polygons have no holes
            filled = filled | drawn.disc(size, (0.70 * 320, 0.74 * 240), 30)
        assert mask_iou(outline, filled) > 0.95
        assert len(polygon["polygon"]) < 200


def test_the_threshold_of_a_batch_is_honoured(cvat: Cvat) -> None:
    image = encoded(drawn.scene().pixels)
    everything = cvat.detect(DRAWN, image)
    confidences = [float(item["confidence"]) for item in everything]
    assert len(set(confidences)) > 1
    middle = sorted(confidences)[len(confidences) // 2]
    assert cvat.detect(DRAWN, image, middle) == [
        item for item in everything if float(item["confidence"]) >= middle
    ]
    assert cvat.detect(DRAWN, image, 0) == everything


def test_an_image_without_objects_is_an_empty_list(cvat: Cvat) -> None:
    assert cvat.detect(DRAWN, picture()) == []


def test_trap_14_a_detectors_confidence_is_beside_the_shape(cvat: Cvat) -> None:
    found = cvat.detect(DRAWN, encoded(drawn.scene().pixels))
    assert all(0 < float(item["confidence"]) <= 1 and "attributes" not in item for item in found)


def test_a_detector_waits_for_its_turn_as_a_batch_ends_with_its_first_failure(
    client: TestClient, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvat = Cvat(client)
    turns = iter([Busy("others", retry_after=0.01), Busy("others", retry_after=0.01), None])
    annotate = workbench.annotate

    def taking_turns(*arguments: Any, **named: Any) -> Any:
        busy = next(turns)
        if busy:
            raise busy
        return annotate(*arguments, **named)

    monkeypatch.setattr(workbench, "annotate", taking_turns)
    assert len(cvat.detect(DRAWN, encoded(drawn.scene().pixels))) >= 4


# Who may ask


def test_a_trusted_network_may_call_and_others_may_not(workbench: Workbench, tmp_path: Path) -> None:
    trusted: dict[str, Any] = {"trusted_networks": "172.20.0.0/16", "cvat_direct_function": DISC}
    payload = {"image": IMAGE, "pos_points": [[40, 30]]}
    lan = http(workbench, tmp_path, "172.20.0.5", **trusted)
    assert Cvat(lan).call(DISC, payload)["shapes"]
    assert lan.post("/", json=payload).status_code == 200
    assert lan.get("/").status_code == 403  # the page is not for tools
    for secret, status in ((None, 403), ("a secret", 401)):
        stranger = http(workbench, tmp_path, "172.21.0.5", token=secret, **trusted)
        assert stranger.get("/api/functions").status_code == status
        assert stranger.post("/", json=payload).status_code == status
        assert Cvat(stranger).invoke(DISC, payload).status_code == status
        assert stranger.get("/api/functions").headers["x-clickmask-error"]


def test_credentials_in_cvats_host_setting_are_understood(workbench: Workbench, tmp_path: Path) -> None:
    """CVAT_NUCLIO_HOST=clickmask:secret@host becomes basic auth."""
    basic = {"authorization": "Basic " + base64.b64encode(b"clickmask:a secret").decode()}
    with http(workbench, tmp_path, "203.0.113.9", token="a secret") as client:
        assert Cvat(client, extra=basic).models()
        with pytest.raises(Refused, match="401"):
            Cvat(client).models()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example", "content-type": "application/json"}, 403),
        ({"sec-fetch-site": "cross-site", "content-type": "application/json"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"host": "evil.example:9090", "content-type": "application/json"}, 421),
    ],
)
def test_a_page_of_another_site_cannot_use_the_server_of_its_visitor(
    headers: dict[str, str], status: int, workbench: Workbench, tmp_path: Path
) -> None:
    body = json.dumps({"image": IMAGE, "pos_points": [[40, 30]]})
    with http(workbench, tmp_path, cvat_direct_function=DISC) as client:
        for path in ("/api/function_invocations", "/"):
            answer = client.post(path, content=body, headers=headers | {"x-nuclio-function-name": DISC})
            assert answer.status_code == status


def test_a_body_that_is_too_large_is_a_clear_413(workbench: Workbench, tmp_path: Path) -> None:
    with http(workbench, tmp_path, max_body_bytes=2**20) as client:
        answer = Cvat(client).invoke(DISC, {"image": "A" * 2**20})
    assert answer.status_code == 413 and "1 MiB" in answer.headers["x-clickmask-error"]


def test_no_code_comes_in_as_into_nuclios_dashboard(steady: TestClient) -> None:
    for method, path in (
        ("POST", "/api/functions"),
        ("PUT", "/api/functions/x"),
        ("PATCH", "/api/functions"),
    ):
        assert steady.request(method, path, json={}).status_code == 405
    assert steady.get("/api/projects").status_code == 404


# CVAT's nuclio method `direct`


def test_the_root_calls_the_one_function_of_the_settings_and_still_shows_the_page(
    workbench: Workbench, tmp_path: Path
) -> None:
    payload = {"image": IMAGE, "pos_points": [[40, 30]]}
    client = http(workbench, tmp_path, cvat_direct_function=DISC)
    answer = client.post("/", json=payload, headers={"user-agent": "CVAT/2.73.0 python-requests/2.33.1"})
    assert len(answer.json()["shapes"]) == 1
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert http(workbench, tmp_path).post("/", json=payload).status_code == 405


def test_a_function_of_the_settings_that_is_not_there_is_named_and_at_the_start_what_there_is(
    workbench: Workbench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with http(workbench, tmp_path, cvat_direct_function="clickmask-nosuch") as client:
        assert any(f"there is: {DISC}" in record.getMessage() for record in caplog.records)
        answer = client.post("/", json={"image": IMAGE})
    assert answer.status_code == 404 and "clickmask-nosuch" in answer.json()["error"]
