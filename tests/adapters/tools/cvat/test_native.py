"""clickmask as CVAT's native function, in the hands of the real cvat-sdk and cvat-cli."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("cvat_sdk")

import attrs
import uvicorn

from clickmask.errors import InvalidInput, InvalidRequest, NotFound, NotReady
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.types import Mask
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.client import ServerFailed
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import native
from support.cvat_server import TOKEN
from support.cvat_tasks import TaskServer
from support.drawn import disc, scene, two_parts
from support.fakes import DiscSegmenter, DrawnAnnotator, disc_mask
from support.model_drafts import draft
from support.waiting import until

pytestmark = pytest.mark.slow

MODULE = "clickmask_adapters.tools.cvat.native"
LABELS = list(DrawnAnnotator.labels)
PLUGIN = """
from support.fakes import DiscSegmenter, DrawnAnnotator

def labels(variant, host):
    return DrawnAnnotator.labels

def load(variant, host):
    return DiscSegmenter() if hasattr(host, "weights") else DrawnAnnotator()
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that brings the fakes, for this process and its children."""
    installed = tmp_path / "site" / "fakes-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[clickmask.segmenters]\ndisc = fake_plugin\n[clickmask.annotators]\ndrawn = fake_plugin\n"
    )
    (tmp_path / "site" / "fake_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLICKMASK_SEGMENTER", "disc")


@pytest.fixture
def server(workbench: Workbench, tmp_path: Path) -> Iterator[str]:
    """A real server over the workbench of the fakes."""
    app = create_app(Home(Settings(home=tmp_path, token="the secret"), workbench))
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    until(lambda: uvicorn_server.started)
    yield f"http://127.0.0.1:{uvicorn_server.servers[0].sockets[0].getsockname()[1]}"
    uvicorn_server.should_exit = True
    thread.join(10)


@pytest.fixture(params=["in this process", "by a server"])
def where(request: pytest.FixtureRequest) -> dict[str, str]:
    """The parameters that say where the models run."""
    if request.param == "in this process":
        request.getfixturevalue("plugins")
        return {}
    return {"url": request.getfixturevalue("server"), "token": "the secret"}


@pytest.fixture
def cvat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where the SDK keeps tasks
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    server = TaskServer()
    yield server
    server.close()


def picture(seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(scene(seed=seed).pixels)


def png(image: PIL.Image.Image, **options: Any) -> bytes:
    raw = io.BytesIO()
    image.save(raw, "png", **options)
    return raw.getvalue()


def context(threshold: float | None = None, polygons: bool = False) -> Any:
    from cvat_sdk.auto_annotation.driver import _DetectionFunctionContextImpl

    return _DetectionFunctionContextImpl(
        frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons
    )


def prompts(
    positive: Any = (), negative: Any = (), box: tuple[tuple[float, float], ...] | None = None
) -> Any:
    from cvat_cli._internal.agent_driver_interaction import _InteractionPromptsImpl

    return _InteractionPromptsImpl(pos_points=tuple(positive), neg_points=tuple(negative), bounding_box=box)


def decoded(points: list[float], size: tuple[int, int] = (240, 320)) -> Mask:
    from cvat_sdk.masks import decode_mask

    return decode_mask(points, image_width=size[1], image_height=size[0])


def names(function: Any) -> dict[int, str]:
    return {label.id: label.name for label in function.spec.labels}


def drawn_outlines(shapes: list[Any]) -> Mask:
    rings = [np.array(shape.points).reshape(-1, 2) for shape in shapes]
    return polygons_to_mask(rings, (240, 320))


# --- detectors


def test_a_detector_declares_masks_of_the_annotators_labels(where: dict[str, str]) -> None:
    from cvat_sdk.auto_annotation import DetectionFunctionSpec

    function = native.create("detector", "drawn", **where)
    assert isinstance(function.spec, DetectionFunctionSpec)
    assert list(names(function).values()) == LABELS
    assert {label.type for label in function.spec.labels} == {"mask"}


def test_masks_are_those_that_the_sdk_decodes(where: dict[str, str]) -> None:
    function = native.create("detector", "drawn", **where)
    shapes = function.detect(context(), picture())
    assert [names(function)[shape.label_id] for shape in shapes] == LABELS
    for shape in shapes:
        assert shape.type.value == "mask"
        truth = scene().objects[names(function)[shape.label_id]]
        assert mask_iou(decoded(shape.points), truth) > 0.9


def test_scores_below_the_threshold_are_left_out(where: dict[str, str]) -> None:
    function = native.create("detector", "drawn", **where)
    assert len(function.detect(context(threshold=0.8), picture())) == 2
    assert function.detect(context(threshold=1.0), picture()) == []


def test_polygons_are_given_where_masks_are_to_be_converted(where: dict[str, str]) -> None:
    function = native.create("detector", "drawn", **where)
    masks = function.detect(context(), picture())
    polygons = function.detect(context(polygons=True), picture())
    assert {shape.type.value for shape in polygons} == {"polygon"}
    for mask in masks:
        if names(function)[mask.label_id] == "ring":
            continue  # CVAT's polygons have no holes
        outlines = [shape for shape in polygons if shape.label_id == mask.label_id]
        assert mask_iou(drawn_outlines(outlines), decoded(mask.points)) > 0.95


def test_a_picture_without_objects_has_no_shapes(where: dict[str, str]) -> None:
    function = native.create("detector", "drawn", **where)
    assert function.detect(context(), PIL.Image.new("RGB", (30, 20))) == []


def test_the_first_annotator_that_is_ready_is_the_default(where: dict[str, str]) -> None:
    assert names(native.create(**where)) == dict(enumerate(LABELS, 1))


def test_a_label_of_the_task_may_stand_for_the_only_one_of_the_annotator(
    plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InvalidRequest, match="drawn finds disc, ellipse, block, ring: which of them is 'cell'"
    ):
        native.create("detector", "drawn", label="cell")
    monkeypatch.setattr(DrawnAnnotator, "labels", ("disc",))
    function = native.create("detector", "drawn", label="cell")
    assert names(function) == {1: "cell"}
    assert [shape.label_id for shape in function.detect(context(), picture())] == [1]


def test_the_network_that_was_trained_on_a_project_is_a_detector_too(plugins: None) -> None:

    models = Home(Settings()).models.of("cvat", "3")
    models.promote(models.save(draft(10.0)).id)
    function = native.create("detector", "trained:cvat-3")
    assert names(function) == {1: "cell", 2: "nucleus"}
    pixels = np.full((60, 80, 3), (250, 0, 0), np.uint8)  # its network knows colours
    pixels[disc((60, 80), (20, 20), 12)] = (0, 0, 250)
    (shape,) = function.detect(context(), PIL.Image.fromarray(pixels))
    assert shape.label_id == 2
    assert (decoded(shape.points, (60, 80)) == disc((60, 80), (20, 20), 12)).all()


def test_labels_that_came_with_a_newer_model_wait_for_the_next_start(
    plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrawnAnnotator, "labels", ("disc",))
    function = native.create("detector", "drawn")
    monkeypatch.setattr(DrawnAnnotator, "labels", tuple(LABELS))
    assert [shape.label_id for shape in function.detect(context(), picture())] == [1]


def test_parts_of_one_object_share_a_group_and_what_is_empty_is_left_out(
    plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clickmask.types import Image, Prediction

    masks = [np.zeros((48, 64), bool), two_parts(), disc()]

    def annotate(self: DrawnAnnotator, image: Image) -> list[tuple[str, Prediction]]:
        return [("disc", Prediction(mask, 0.9, "drawn")) for mask in masks]

    monkeypatch.setattr(DrawnAnnotator, "annotate", annotate)
    function = native.create("detector", "drawn")
    assert len(function.detect(context(), PIL.Image.new("RGB", (64, 48)))) == 2
    polygons = function.detect(context(polygons=True), PIL.Image.new("RGB", (64, 48)))
    groups = [getattr(shape, "group", 0) for shape in polygons]
    assert groups[0] == groups[1] != groups[2] == 0
    for shape in polygons:
        assert len(shape.points) >= 6


# --- interactors


def test_an_interactor_takes_any_points_and_an_optional_box(where: dict[str, str]) -> None:
    from cvat_cli._internal.agent_driver_interaction import AgentInteractionFunctionDriver

    function = native.create("interactor", **where)
    # What `cvat-cli function create-native` was seen to post.
    assert AgentInteractionFunctionDriver.get_remote_function_fields(function.spec) == {
        "min_pos_points": 0,
        "min_neg_points": 0,
        "startswith_box_optional": True,
    }


def test_a_click_is_a_mask_with_its_confidence(where: dict[str, str]) -> None:
    function = native.create("interactor", "disc", **where)
    prepared = function.preprocess_image(None, picture())
    (shape,) = function.detect(None, prepared, prompts([(40.5, 30.0)], [(45.0, 30.0)]))
    expected = disc_mask((240, 320), [(40.5, 30.0)]) & ~disc_mask((240, 320), [(45.0, 30.0)])
    assert (decoded(shape.points) == expected).all()
    described = attrs.asdict(shape)
    assert described["type"] == "mask"
    assert [(each.spec_id, each.value) for each in described["attributes"]] == [(0, "0.7500")]


def test_an_interactors_controls_shape_its_masks(where: dict[str, str]) -> None:
    function = native.create("interactor", "disc", **where, controls="max_parts=1")
    prepared = function.preprocess_image(None, picture())
    (shape,) = function.detect(None, prepared, prompts([(40.0, 30.0), (41.0, 30.0), (200.0, 200.0)]))
    assert (decoded(shape.points) == disc_mask((240, 320), [(40.0, 30.0), (41.0, 30.0)])).all()
    with pytest.raises(InvalidInput, match="no control 'sharp'"):
        native.create("interactor", "disc", controls="sharp=1")


def test_one_preparation_serves_many_clicks(
    server: str, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = native.create("interactor", "disc", url=server, token="the secret")
    prepared = function.preprocess_image(None, picture())
    for x in (40.0, 80.0, 120.0):
        assert function.detect(None, prepared, prompts([(x, 30.0)]))
    assert len(disc.encoded) == 1


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (((), (), ((10.0, 10.0), (60.0, 40.0))), 1),
        (((), (), ((60.0, 40.0), (10.0, 10.0))), 1),  # corners in any order
        (((), (), None), 0),
        (((), ((5.0, 5.0),), None), 0),
        ((((-50.0, 9999.0),), (), None), 1),  # moved to the edge
        (((), (), ((-9.0, -9.0), (-2.0, -2.0))), 0),
    ],
    ids=["a box", "a box from below", "nothing", "a negative alone", "far outside", "a box outside"],
)
def test_every_prompt_is_answered(where: dict[str, str], asked: Any, count: int) -> None:
    function = native.create("interactor", "disc", **where)
    prepared = function.preprocess_image(None, picture())
    assert len(function.detect(None, prepared, prompts(*asked))) == count


def test_a_region_of_interest_has_no_file_and_is_answered_in_its_own_pixels(where: dict[str, str]) -> None:
    crop = picture().crop((100, 50, 180, 110))
    function = native.create("interactor", "disc", **where)
    (shape,) = function.detect(None, function.preprocess_image(None, crop), prompts([(20.0, 30.0)]))
    assert (decoded(shape.points, (60, 80)) == disc_mask((60, 80), [(20.0, 30.0)])).all()


def test_pictures_are_turned_as_they_are_shown(where: dict[str, str]) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    opened = PIL.Image.open(io.BytesIO(png(picture(), exif=exif)))
    function = native.create("interactor", "disc", **where)
    assert function.preprocess_image(None, opened).size == (320, 240)


def test_a_server_that_has_forgotten_the_image_is_sent_it_again(server: str, workbench: Workbench) -> None:
    function = native.create("interactor", "disc", url=server, token="the secret")
    prepared = function.preprocess_image(None, picture())
    gone = type(prepared)(prepared.size, "0" * 64, prepared.embedding)
    (shape,) = function.detect(None, gone, prompts([(40.0, 30.0)]))
    assert (decoded(shape.points) == disc_mask((240, 320), [(40.0, 30.0)])).all()


# --- what can go wrong


def test_a_kind_that_there_is_not_is_refused(plugins: None) -> None:
    with pytest.raises(InvalidRequest, match="a detector or an interactor, not 'tracker'"):
        native.create("tracker")  # type: ignore[arg-type] - as a user may write it


def test_annotators_that_cannot_be_had_are_refused_before_anything_runs(where: dict[str, str]) -> None:
    with pytest.raises(NotFound, match=r"no annotator 'nothing'; installed: .*drawn"):
        native.create("detector", "nothing", **where)
    with pytest.raises(NotReady, match=r"everything:sam:vit_b: .*cannot run"):
        native.create("detector", "everything:sam:vit_b", **where)


def test_a_broken_picture_is_told(plugins: None) -> None:
    function = native.create("interactor", "disc")
    opened = PIL.Image.open(io.BytesIO(png(picture())[:-2000]))
    with pytest.raises(InvalidInput, match="cut short"):
        function.preprocess_image(None, opened)


def test_a_server_says_why_it_refuses(server: str) -> None:
    with pytest.raises(ServerFailed, match=r"refused \(401\): .+"):
        native.create("detector", url=server, token="another secret")
    function = native.create("interactor", "no-such-thing", url=server, token="the secret")
    with pytest.raises(ServerFailed, match="there is no segmenter 'no-such-thing'"):
        function.detect(None, SimpleNamespace(size=(9, 9), digest="", embedding=b""), prompts([(1.0, 1.0)]))


def test_no_netrc_takes_the_place_of_the_servers_secret(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert native.create("detector", url=server, token="the secret").spec.labels


def test_a_server_that_is_not_there_is_told_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"no clickmask server answers at http://127.0.0.1:9"):
        native.create("detector", url="http://127.0.0.1:9/")


def test_another_server_at_the_address_is_no_riddle(cvat: TaskServer) -> None:
    with pytest.raises(ServerFailed, match=r"refused \(401\): Unauthorized"):
        native.create("detector", url=cvat.url)


def test_the_secret_of_the_settings_is_used_where_none_is_given(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKMASK_TOKEN", "the secret")
    assert native.create("detector", "drawn", url=server)


def test_a_busy_server_is_asked_again(server: str, drawn: DrawnAnnotator) -> None:
    function = native.create("detector", "drawn", url=server, token="the secret")
    drawn.hold = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(function.detect, context(), picture(seed)) for seed in range(2)]
        until(lambda: len(drawn.annotated) == 2)
        third = pool.submit(function.detect, context(), picture(3))
        threading.Timer(0.5, drawn.hold.set).start()
        assert len(third.result(30)) == len(LABELS)
        assert all(each.result(30) for each in running)


# --- cvat-sdk and cvat-cli themselves


def task_of(cvat: TaskServer, kind: str = "mask") -> int:
    frames = [png(picture(seed)) for seed in range(3)]
    return cvat.add_task(1, frames, deleted=(1,), **dict.fromkeys(LABELS, kind))


def label_names(cvat: TaskServer) -> dict[int, str]:
    return {number: row["name"] for number, row in cvat.labels.items()}


@pytest.mark.parametrize(("kind", "polygons"), [("mask", False), ("polygon", True), ("any", True)])
def test_the_sdk_accepts_and_uploads_what_a_detector_finds(
    plugins: None, cvat: TaskServer, kind: str, polygons: bool
) -> None:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk import make_client

    task = task_of(cvat, kind)
    function = native.create("detector", "drawn")
    with make_client(cvat.url, access_token=TOKEN) as client:
        cvataa.annotate_task(client, task, function, conf_threshold=0.75, conv_mask_to_poly=polygons)
    (body,) = cvat.created[task]
    assert {shape["frame"] for shape in body["shapes"]} == {0, 2}
    for shape in body["shapes"]:
        assert shape["type"] == ("polygon" if polygons else "mask")
        assert shape["source"] == "auto"
        assert label_names(cvat)[shape["label_id"]] in {"disc", "ellipse"}
        if not polygons:
            truth = scene(seed=shape["frame"]).objects[label_names(cvat)[shape["label_id"]]]
            assert mask_iou(decoded(shape["points"]), truth) > 0.9


def test_the_sdk_refuses_masks_for_a_task_of_polygons(plugins: None, cvat: TaskServer) -> None:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk import make_client

    task = task_of(cvat, "polygon")
    function = native.create("detector", "drawn")
    with (
        make_client(cvat.url, access_token=TOKEN) as client,
        pytest.raises(cvataa.BadFunctionError, match="type 'mask' in the function, but 'polygon'"),
    ):
        cvataa.annotate_task(client, task, function)


def run_cvat_cli(cvat: TaskServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cvat_cli", "--server-host", cvat.url, *arguments],
        env={**os.environ, "CVAT_ACCESS_TOKEN": TOKEN, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cvat_cli(cvat: TaskServer, *arguments: str) -> str:
    """What the command printed."""
    ran = run_cvat_cli(cvat, *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ([], "no annotator is ready: "),
        (["segmenter=str:nothing"], "there is no annotator 'nothing'"),
        (["kind=str:tracker"], "a function is a detector or an interactor, not 'tracker'"),
        (["url=str:http://127.0.0.1:9"], "no clickmask server answers at http://127.0.0.1:9"),
    ],
)
def test_cvat_cli_says_a_sentence_without_a_traceback(
    cvat: TaskServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: list[str], said: str
) -> None:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    given = [part for each in parameters for part in ("-p", each)]
    ran = run_cvat_cli(cvat, "task", "auto-annotate", str(task_of(cvat)), "--function-module", MODULE, *given)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert f"CRITICAL: {said}" in ran.stderr


def test_what_goes_wrong_with_a_frame_is_a_sentence_in_cvat_cli_too(plugins: None) -> None:
    critical = importlib.import_module("cvat_cli._internal.common").CriticalError
    detector, interactor = native.create("detector", "drawn"), native.create("interactor", "disc")
    for ask in (detector.detect, interactor.preprocess_image):
        with pytest.raises(critical, match="cut short"):
            ask(context(), PIL.Image.open(io.BytesIO(png(picture())[:-2000])))


def test_an_error_for_cvat_cli_travels_between_processes_as_what_it_is() -> None:
    importlib.import_module("cvat_cli._internal.common")
    with pytest.raises(NotReady) as caught, native.critical_in_cvat_cli():
        raise NotReady("not yet")
    assert type(caught.value) is not NotReady
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (type(sent), str(sent)) == (NotReady, "not yet")


@pytest.mark.parametrize("replacing", [False, True])
def test_cvat_cli_annotates_a_task(plugins: None, cvat: TaskServer, replacing: bool) -> None:
    task = task_of(cvat)
    command = ["task", "auto-annotate", str(task), "--function-module", MODULE]
    command += ["-p", "kind=str:detector", "-p", "segmenter=str:drawn", "--conf-threshold", "0.65"]
    cvat_cli(cvat, *command, *(["--clear-existing"] if replacing else []))
    (body,) = (cvat.replaced if replacing else cvat.created)[task]
    found = [(shape["frame"], label_names(cvat)[shape["label_id"]]) for shape in body["shapes"]]
    assert found == [(frame, label) for frame in (0, 2) for label in LABELS[:3]]


def test_an_agent_answers_clicks(plugins: None, cvat: TaskServer) -> None:
    task = task_of(cvat)
    function = ["--function-module", MODULE, "-p", "kind=str:interactor", "-p", "segmenter=str:disc"]
    number = cvat_cli(cvat, "function", "create-native", "clickmask", *function).strip()
    created = cvat.functions[int(number)]
    assert (created["kind"], created["provider"]) == ("interactor", "native")
    asked = {"type": "interact", "task": task, "frame": 2, "neg_points": [], "obj_bbox": []}
    for more in (
        {"pos_points": [[40.0, 30.0]]},
        {"pos_points": [], "obj_bbox": [[10, 20], [30, 60]]},
        {"pos_points": [[20.0, 30.0]], "roi": [100, 50, 180, 110]},
        {"pos_points": []},
    ):
        cvat.requests.append({"category": "interactive", "parameters": asked | more})
    cvat_cli(cvat, "function", "run-agent", number, "--burst", *function)
    assert cvat.failed == []
    click, box, region, nothing = (body["shapes"] for body in cvat.completed)
    assert (decoded(click[0]["points"]) == disc_mask((240, 320), [(40, 30)])).all()
    assert click[0]["attributes"] == [{"spec_id": 0, "value": "0.7500"}]
    assert box[0]["points"][-4:] == [10, 20, 29, 59]
    assert (decoded(region[0]["points"], (60, 80)) == disc_mask((60, 80), [(20, 30)])).all()
    assert nothing == []


def test_an_agent_annotates_frames_and_tasks(server: str, cvat: TaskServer) -> None:
    """By a server: the agent's own machine needs no model."""
    task = task_of(cvat, "polygon")
    function = ["--function-module", MODULE, "-p", f"url=str:{server}", "-p", "token=str:the secret"]
    number = cvat_cli(cvat, "function", "create-native", "clickmask", *function).strip()
    remote = [(label["name"], label["type"]) for label in cvat.functions[int(number)]["labels_v2"]]
    assert remote == [(label, "mask") for label in LABELS]
    mapping = {"disc": {"name": "ellipse", "attributes": {}}}
    asked = {"task": task, "mapping": mapping, "threshold": None, "conv_mask_to_poly": True}
    for parameters in ({"type": "annotate_frame", "frame": 0}, {"type": "annotate_task"}):
        cvat.requests.append({"category": "batch", "parameters": asked | parameters})
    cvat_cli(cvat, "function", "run-agent", number, "--burst", *function)
    assert cvat.failed == []
    one, all_frames = (body["annotations"]["shapes"] for body in cvat.completed)
    assert [shape["frame"] for shape in one] == [0]
    assert [shape["frame"] for shape in all_frames] == [0, 2]
    for shape in one + all_frames:
        assert shape["type"] == "polygon"
        assert label_names(cvat)[shape["label_id"]] == "ellipse"
        truth = scene(seed=shape["frame"]).objects["disc"]
        outline = np.array(shape["points"]).reshape(-1, 2)
        assert mask_iou(polygons_to_mask([outline], (240, 320)), truth) > 0.9


def test_the_module_is_imported_without_the_sdk() -> None:
    program = f"import sys; sys.modules['cvat_sdk'] = None; import {MODULE}"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
