"""An annotator in Chromium at a real Label Studio, with clickmask behind it.

What the annotator accepts and submits is read back over Label Studio's REST API, decoded by Label Studio's
own SDK, and compared with the truth.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest.inbox import Inbox
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.reports.clicks import central_point
from clickmask.types import Mask, Pixels, Size
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect
from support.clicking import chromium
from support.label_studio_sdk_oracle import decode_rle
from support.label_studio_server import LabelingPage, LabelStudioServer
from support.photographs import outlined_objects, tight_box
from support.scenes import drawn_scene
from support.served import Server, serving

pytestmark = pytest.mark.slow

PHOTO = "coffee: espresso"
ORIENTATION, TURN_RIGHT = 0x0112, 6  # EXIF: shown turned by 90 degrees clockwise
LABELS = '<Label value="Thing" background="#e0218a"/><Label value="Other" background="#1f6feb"/>'
IMAGE = '<Image name="image" value="$image" zoom="true"/>'
POINTING = f"""<KeyPointLabels name="point" toName="image" smart="true">{LABELS}</KeyPointLabels>
<RectangleLabels name="box" toName="image" smart="true">{LABELS}</RectangleLabels>"""
BRUSH = f'<BrushLabels name="brush" toName="image">{LABELS}</BrushLabels>'
POLYGON = f'<PolygonLabels name="polygon" toName="image">{LABELS}</PolygonLabels>'
DRAWING = {"brush": BRUSH, "polygon": POLYGON, "both": BRUSH + POLYGON}
SEPARATE = f"""<View>{IMAGE}<Labels name="labels" toName="image">{LABELS}</Labels>
<Brush name="brush" toName="image"/><Polygon name="polygon" toName="image"/>
<KeyPoint name="point" toName="image" smart="true"/></View>"""

Encode = Callable[[Pixels], tuple[str, bytes]]


def config(drawing: str) -> str:
    return f"<View>{IMAGE}{DRAWING[drawing]}{POINTING}</View>"


def plain(pixels: Pixels) -> tuple[str, bytes]:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    return "plain.png", stored.getvalue()


def rotated(pixels: Pixels) -> tuple[str, bytes]:
    """A JPEG whose stored pixels lie on their side, as a phone writes them."""
    stored, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    Image.fromarray(np.rot90(pixels)).save(stored, "JPEG", quality=95, exif=exif)
    return "rotated.jpg", stored.getvalue()


def saved_masks(regions: list[dict[str, Any]], size: Size) -> dict[str, Mask]:
    """The regions of each type, joined: each must speak of the upright image."""
    masks: dict[str, Mask] = {}
    for region in regions:
        assert (region["original_height"], region["original_width"]) == size
        kind, value = region["type"].removesuffix("labels"), region["value"]
        if kind == "brush":
            mask = decode_rle(value["rle"]).reshape(*size, 4)[:, :, 3] > 0
        elif kind == "polygon":
            mask = polygons_to_mask([np.array(value["points"]) * (size[1] / 100, size[0] / 100)], size)
        else:
            continue
        masks[kind] = masks.get(kind, np.zeros(size, bool)) | mask
    return masks


@pytest.fixture(scope="module")
def clickmask(studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, LABEL_STUDIO_URL=studio.url, LABEL_STUDIO_API_KEY=studio.token) as server:
        yield server


@pytest.fixture(scope="module")
def annotator(studio: LabelStudioServer) -> Iterator[LabelingPage]:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        labeling = LabelingPage(page, studio)
        labeling.log_in()
        yield labeling


@pytest.fixture
def client(studio: LabelStudioServer) -> LabelStudioClient:
    return LabelStudioClient(studio.url, studio.token)


@pytest.fixture
def image_source(studio: LabelStudioServer) -> ImageSource:
    return ImageSource(Fetcher(trusted_origins=[studio.url]))


@pytest.fixture
def connected(
    studio: LabelStudioServer, clickmask: Server, client: LabelStudioClient, image_source: ImageSource
) -> Callable[[str, str, bytes], tuple[int, int]]:
    """A project with a label config and one image, connected: its id and the task's."""

    def make(label_config: str, name: str, image: bytes) -> tuple[int, int]:
        project = studio.new_project("end to end", label_config)
        task = studio.upload(project, name, image)
        said = list(connect(client, str(project), clickmask.url, None, image_source.identify))
        assert f"clickmask reads the image of task {task}." in said
        return project, task

    return make


def keep_screenshot(page: Page, name: str) -> None:
    if folder := os.environ.get("CLICKMASK_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.mark.parametrize("encode", [plain, rotated])
@pytest.mark.parametrize("drawing", list(DRAWING))
def test_a_click_and_a_box_become_what_the_project_draws_with(
    studio: LabelStudioServer,
    annotator: LabelingPage,
    connected: Callable[[str, str, bytes], tuple[int, int]],
    drawing: str,
    encode: Encode,
) -> None:
    pixels, truths = drawn_scene(1)
    project, task = connected(config(drawing), *encode(pixels))
    height, width = pixels.shape[:2]
    annotator.open(project, task, width)
    annotator.choose("Thing", -2)
    annotator.take("key-point-tool")
    at = central_point(truths[0])
    assert at
    assert annotator.click(*at).ok
    annotator.accept()
    annotator.choose("Other", -1)
    annotator.take("rectangle-tool")
    assert annotator.draw_box(*tight_box(truths[1])).ok
    annotator.accept()
    annotator.submit()

    (annotation,) = studio.annotations(task)
    regions = annotation["result"]
    kinds = {"brush", "polygon"} if drawing == "both" else {drawing}
    assert {region["type"] for region in regions} == {f"{kind}labels" for kind in kinds}
    for label, truth in (("Thing", truths[0]), ("Other", truths[1])):
        mine = [region for region in regions if region["value"][region["type"]] == [label]]
        for kind, mask in saved_masks(mine, (height, width)).items():
            assert mask_iou(mask, truth) >= 0.9, (label, kind)
        assert {region["type"].removesuffix("labels") for region in mine} == kinds


def test_an_alt_click_takes_away_what_it_points_at(
    studio: LabelStudioServer,
    annotator: LabelingPage,
    connected: Callable[[str, str, bytes], tuple[int, int]],
) -> None:
    pixels, truths = drawn_scene(1)
    height, width = pixels.shape[:2]
    project, task = connected(config("brush"), *plain(pixels))
    annotator.open(project, task, width)
    at = central_point(truths[1])
    assert at
    x0, y0, *_ = tight_box(truths[1])
    away = (x0 + 12, y0 + 12)  # inside of the same shape
    annotator.choose("Thing", -2)
    annotator.take("key-point-tool")
    annotator.click(*at)
    annotator.choose("Thing", -2)  # it is let go with each region
    sent = annotator.click(*away, alt=True).request.post_data_json
    assert [prompt["is_positive"] for prompt in sent["context"]["result"]] == [True, False]
    annotator.accept()
    annotator.submit()

    (annotation,) = studio.annotations(task)
    mask = saved_masks(annotation["result"], (height, width))["brush"]
    assert mask[int(at[1]), int(at[0])]
    assert not mask[int(away[1]), int(away[0])]


def test_separate_labels_are_kept_with_brush_and_polygon(
    studio: LabelStudioServer,
    annotator: LabelingPage,
    connected: Callable[[str, str, bytes], tuple[int, int]],
) -> None:
    pixels, truths = drawn_scene(1)
    height, width = pixels.shape[:2]
    project, task = connected(SEPARATE, *rotated(pixels))
    annotator.open(project, task, width)
    annotator.choose("Other")
    annotator.take("key-point-tool")
    at = central_point(truths[2])
    assert at
    annotator.click(*at)
    annotator.accept()
    annotator.submit()

    (annotation,) = studio.annotations(task)
    result = annotation["result"]
    labels = {region["id"]: region["value"]["labels"] for region in result if region["type"] == "labels"}
    shapes = [region for region in result if region["type"] != "labels"]
    assert {region["type"] for region in shapes} == {"brush", "polygon"}
    assert labels == {region["id"]: ["Other"] for region in shapes}
    for kind, mask in saved_masks(shapes, (height, width)).items():
        assert mask_iou(mask, truths[2]) >= 0.9, kind


@pytest.mark.parametrize("encode", [plain, rotated])
def test_a_photograph_is_outlined_from_a_box(
    studio: LabelStudioServer,
    annotator: LabelingPage,
    connected: Callable[[str, str, bytes], tuple[int, int]],
    encode: Encode,
) -> None:
    photo = next(each for each in outlined_objects() if each.name == PHOTO)
    width = photo.mask.shape[1]
    project, task = connected(config("both"), *encode(photo.pixels))
    annotator.open(project, task, width)
    annotator.choose("Thing", -1)
    annotator.take("rectangle-tool")
    annotator.draw_box(*tight_box(photo.mask))
    annotator.accept()
    keep_screenshot(annotator.page, f"label-studio-{encode.__name__}")
    annotator.submit()

    (annotation,) = studio.annotations(task)
    masks = saved_masks(annotation["result"], photo.mask.shape)
    assert set(masks) == {"brush", "polygon"}
    assert mask_iou(masks["brush"], photo.mask) >= 0.9
    assert mask_iou(masks["polygon"], masks["brush"]) >= 0.95


def test_with_a_secret_the_annotations_still_arrive(
    studio: LabelStudioServer,
    client: LabelStudioClient,
    image_source: ImageSource,
    tmp_path: Path,
) -> None:
    project = studio.new_project("with a secret", config("brush"))
    task = studio.upload(project, *plain(drawn_scene(1)[0]))
    secret = "a secret of ours"
    with serving(tmp_path, CLICKMASK_TOKEN=secret) as server:
        said = list(connect(client, str(project), server.url, secret, image_source.identify))
        studio.api("POST", f"/api/tasks/{task}/annotations/", json={"result": []})
        assert not any(secret in sentence for sentence in said)
    events = [json.loads(event.body) for event in Inbox(tmp_path / "inbox.sqlite").events()]
    assert [event["annotation"]["task"] for event in events if event["action"] == "ANNOTATION_CREATED"] == [
        task
    ]


def test_personal_tokens_read_uploads_and_local_files(
    studio: LabelStudioServer, image_source: ImageSource
) -> None:
    studio.api(
        "POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": True}
    )
    personal = studio.api("POST", "/api/token/")["token"]
    client = LabelStudioClient(studio.url, personal)
    project = studio.new_project("files", config("brush"))
    pixels, _ = drawn_scene(2)
    folder = studio.files / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(plain(pixels)[1])
    storage = {"project": project, "path": str(folder), "use_blob_urls": True}
    studio.api("POST", "/api/storages/localfiles", json=storage)
    task = studio.upload(project, *plain(pixels))
    (uploaded,) = client.all_tasks(project)
    expected = image_source.identify_bytes(plain(pixels)[1])
    for uri in (uploaded["data"]["image"], "/data/local-files/?d=set/a.png"):
        assert image_source.identify(client.image_ref(task, uri)) == expected
