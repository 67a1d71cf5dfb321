"""What annotators submit to a real Label Studio is what clickmask holds, mask by mask.

Label Studio's side is read over its REST API and drawn by others: brushes by its own SDK, polygons and
rectangles by shapely, ellipses by their equation.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import shapely
from PIL import Image
from playwright.sync_api import Page

from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store
from clickmask.types import Mask, Pixels, Point, Size
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect
from clickmask_adapters.tools.label_studio.shapes import mask_to_bit_mask
from support import drawn
from support.clicking import chromium
from support.label_studio_sdk_oracle import decode_rle, mask2rle
from support.label_studio_server import IMAGE, LabelingPage, LabelStudioServer
from support.scenes import drawn_scene
from support.served import Server
from support.waiting import until

pytestmark = pytest.mark.slow

TOOL = "label_studio"
ORIENTATION, TURN_RIGHT = 0x0112, 6  # EXIF: shown turned by 90 degrees clockwise
KINDS = {
    "Brush": "Painted",
    "Polygon": "Outlined",
    "Rectangle": "Boxed",
    "Ellipse": "Round",
    "Bitmask": "Bits",
}
XML = (
    '<View><Image name="image" value="$image" zoom="true" rotateControl="true"/>'
    + "".join(
        f'<{kind}Labels name="{kind.lower()}" toName="image"><Label value="{label}"/></{kind}Labels>'
        for kind, label in KINDS.items()
    )
    + "</View>"
)
SIZE = (240, 320)

Key = tuple[str, str, str, str]  # task, annotation, region, category
Masks = dict[Key, Mask]


def png(pixels: Pixels) -> tuple[str, bytes]:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    return "plain.png", stored.getvalue()


def phone_jpeg(pixels: Pixels) -> tuple[str, bytes]:
    """Stored on its side, as a phone writes it."""
    stored, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    Image.fromarray(np.rot90(pixels)).save(stored, "JPEG", quality=95, exif=exif)
    return "phone.jpg", stored.getvalue()


def region(kind: str, name: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "type": f"{kind.lower()}labels",
        "from_name": kind.lower(),
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {f"{kind.lower()}labels": [KINDS[kind]], **value},
    } | more


def one_of_each() -> list[dict[str, Any]]:
    painted = drawn.ring(SIZE, (80.0, 60.0), 40.0, 15.0)
    rgba = mask2rle(painted.astype(np.uint8) * 255)
    bits = mask_to_bit_mask(drawn.disc(SIZE, (250.3, 60.2), 35.0))
    ellipse = {"x": 30.3, "y": 70.1, "radiusX": 18.2, "radiusY": 9.7, "rotation": 25}
    return [
        region("Brush", "brush", {"format": "rle", "rle": rgba}),
        region("Bitmask", "bits", {"imageDataURL": bits}),
        region("Polygon", "ring", {"points": [[50.1, 60.3], [80.7, 62.2], [66.6, 95.5]], "closed": True}),
        region("Rectangle", "box", {"x": 3.3, "y": 4.4, "width": 20.2, "height": 10.1, "rotation": 0}),
        region(
            "Rectangle", "turned", {"x": 60.3, "y": 30.7, "width": 22.1, "height": 17.3, "rotation": 33.3}
        ),
        region("Ellipse", "round", ellipse, image_rotation=90),
    ]


def inside(shape: shapely.Polygon, size: Size) -> Mask:
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return shapely.contains_xy(shape, columns, rows)


def shown(result: dict[str, Any]) -> Mask:
    """The pixels of a region that Label Studio holds, by its own words and others' code."""
    size, value = (result["original_height"], result["original_width"]), result["value"]
    kind, scale = result["type"].removesuffix("labels"), np.array([size[1], size[0]]) / 100
    if kind == "brush":
        return decode_rle(value["rle"]).reshape(*size, 4)[:, :, 3] >= 128
    if kind == "bitmask":
        stored = base64.b64decode(value["imageDataURL"].partition(",")[2])
        return np.array(Image.open(io.BytesIO(stored)))[:, :, 3] >= 128
    if kind == "polygon":
        return inside(shapely.Polygon(np.array(value["points"]) * scale), size)
    corner = np.array([value["x"], value["y"]]) * scale
    angle = np.deg2rad(value["rotation"])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if kind == "rectangle":
        sides = np.array([value["width"], value["height"]]) * scale
        return inside(
            shapely.Polygon([corner + turn @ (sides * at) for at in ((0, 0), (1, 0), (1, 1), (0, 1))]), size
        )
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    along = np.stack([columns - corner[0], rows - corner[1]], axis=-1) @ turn
    across = np.array([value["radiusX"], value["radiusY"]]) * scale
    return ((along / across) ** 2).sum(axis=-1) <= 1


def held_by_label_studio(studio: LabelStudioServer, project: int) -> Masks:
    found: Masks = {}
    tasks = studio.api("GET", "/api/tasks", params={"project": project, "page_size": 100})["tasks"]
    for task in tasks:
        for annotation in studio.annotations(task["id"]):
            for result in annotation["result"]:
                label = result["value"][result["type"]][0]
                found[str(task["id"]), str(annotation["id"]), result["id"], label] = shown(result)
    return found


def held_by_clickmask(url: str, project: int, all_annotations: bool = True) -> Masks:
    asked = {"all_annotations": all_annotations}
    answer = requests.get(f"{url}/v1/projects/{TOOL}/{project}/labels", params=asked, timeout=30)
    if answer.status_code == 404:
        return {}
    assert answer.ok, answer.text
    return {
        (label["task"], label["annotation"], label["region"], label["category"]): rle_to_mask(label["rle"])
        for label in answer.json()["labels"]
    }


def same(one: Masks, other: Masks) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


class Clickmask:
    """One that can be killed and started again at the same address."""

    def __init__(self, home: Path, studio: LabelStudioServer) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self.home = home
        self.environment = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.token}
        self.start()

    def start(self) -> None:
        self.server = Server(self.home, self.environment, ["--port", self._port])
        self.url = self.server.url

    def kill(self) -> None:
        self.server.stop(signal.SIGKILL)

    def status(self) -> dict[str, Any]:
        return requests.get(f"{self.url}/v1/status", timeout=10).json()["intake"]

    def read_all(self) -> None:
        until(lambda: self.status()["waiting"] == 0, 60)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clickmask_adapters.cli", *arguments],
            env={**os.environ, **self.environment, "CLICKMASK_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def clickmask(studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clickmask]:
    running = Clickmask(tmp_path_factory.mktemp("home"), studio)
    yield running
    running.server.stop()


@pytest.fixture
def connected(studio: LabelStudioServer, clickmask: Clickmask) -> Callable[[], int]:
    def make() -> int:
        project = studio.new_project("accepted labels", XML)
        images = ImageSource(Fetcher(trusted_origins=[studio.url]))
        client = LabelStudioClient(studio.url, studio.token)
        list(connect(client, str(project), clickmask.url, None, images.identify))
        return project

    return make


def annotate(studio: LabelStudioServer, task: int, *regions: dict[str, Any], **more: Any) -> int:
    return studio.api("POST", f"/api/tasks/{task}/annotations/", json={"result": list(regions), **more})["id"]


def test_labels_follow_what_label_studio_holds_through_a_project_s_life(
    studio: LabelStudioServer, clickmask: Clickmask, connected: Callable[[], int]
) -> None:
    def agree() -> int:
        clickmask.read_all()
        theirs = held_by_label_studio(studio, project)
        assert same(theirs, held_by_clickmask(clickmask.url, project))
        return len(theirs)

    project = connected()
    pixels, _ = drawn_scene(1)
    assert pixels.shape[:2] == SIZE
    plain, phone, third = (studio.upload(project, *encode(pixels)) for encode in (png, phone_jpeg, png))
    first = annotate(studio, plain, *one_of_each())
    upright = annotate(studio, phone, *one_of_each())
    assert agree() == 12
    (image,) = (
        each
        for each in Store(clickmask.home / "store.sqlite").images(TOOL, str(project))
        if each.task == str(phone)
    )
    assert (image.name, image.size) == ("phone.jpg", SIZE)

    changed = [region("Rectangle", "box", {"x": 5, "y": 5, "width": 40.1, "height": 20.2, "rotation": 0})]
    studio.api("PATCH", f"/api/annotations/{first}/", json={"result": changed + one_of_each()[:2]})
    assert agree() == 9

    other = studio.api("POST", "/api/users/", json={"email": "second@example.com", "username": "second"})[
        "id"
    ]
    second = annotate(studio, plain, *one_of_each()[2:4], completed_by=other)
    assert agree() == 11
    newest = {
        annotation
        for task, annotation, *_ in held_by_clickmask(clickmask.url, project, False)
        if task == str(plain)
    }
    assert newest == {str(second)}
    studio.api("PATCH", f"/api/annotations/{first}/", json={"ground_truth": True})
    clickmask.read_all()
    truth = {
        annotation
        for task, annotation, *_ in held_by_clickmask(clickmask.url, project, False)
        if task == str(plain)
    }
    assert truth == {str(first)}

    skipped = annotate(studio, third, *one_of_each()[:1], was_cancelled=True)
    assert agree() == 11
    studio.api("PATCH", f"/api/annotations/{skipped}/", json={"was_cancelled": False})
    assert agree() == 12
    clickmask.kill()
    clickmask.start()
    assert agree() == 12

    studio.api("DELETE", f"/api/annotations/{second}/")
    assert agree() == 10
    studio.api("DELETE", f"/api/tasks/{phone}/")
    assert agree() == 4
    assert str(upright) not in {annotation for _, annotation, *_ in held_by_clickmask(clickmask.url, project)}
    assert clickmask.status()["set_aside"] == 0
    (listed,) = (
        each
        for each in requests.get(f"{clickmask.url}/v1/projects", timeout=10).json()["projects"]
        if each["project"] == str(project)
    )
    assert (listed["title"], listed["labels"], listed["categories"]) == (
        "accepted labels",
        4,
        list(KINDS.values()),
    )


def test_what_happened_while_clickmask_was_away_is_pulled(
    studio: LabelStudioServer, clickmask: Clickmask, connected: Callable[[], int]
) -> None:
    project = connected()
    pixels, _ = drawn_scene(1)
    first, second, third = (studio.upload(project, *png(pixels)) for _ in range(3))
    gone = annotate(studio, first, *one_of_each()[:2])
    annotate(studio, second, *one_of_each()[3:])
    clickmask.read_all()
    assert len(held_by_clickmask(clickmask.url, project)) == 5

    clickmask.kill()
    studio.api("DELETE", f"/api/annotations/{gone}/")
    studio.api("DELETE", f"/api/tasks/{second}/")
    annotate(studio, first, *one_of_each()[2:])
    annotate(studio, third, *one_of_each())
    clickmask.start()
    clickmask.read_all()
    assert not same(held_by_label_studio(studio, project), held_by_clickmask(clickmask.url, project))

    pulled = clickmask.run("pull", "label-studio", str(project))
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == "2 taken in, 0 known already, 2 gone, 0 left out\n"
    theirs = held_by_label_studio(studio, project)
    assert len(theirs) == 10
    assert same(theirs, held_by_clickmask(clickmask.url, project))
    again = clickmask.run("pull", "label-studio", str(project))
    assert again.stdout == "0 taken in, 2 known already, 0 gone, 0 left out\n"


def test_bulk_annotations_from_predictions_arrive(
    studio: LabelStudioServer, clickmask: Clickmask, connected: Callable[[], int]
) -> None:
    project = connected()
    tasks = [studio.upload(project, *png(drawn_scene(1)[0])) for _ in range(2)]
    for task in tasks:
        made = {"task": task, "result": one_of_each(), "model_version": "bulk"}
        studio.api("POST", "/api/predictions/", json=made)
    chosen = {"selectedItems": {"all": True, "excluded": []}, "ordering": [], "model_version": "bulk"}
    action = {"id": "predictions_to_annotations", "project": project}
    studio.api("POST", "/api/dm/actions", params=action, json=chosen)
    clickmask.read_all()
    theirs = held_by_label_studio(studio, project)
    assert len(theirs) == 12
    assert same(theirs, held_by_clickmask(clickmask.url, project))


class Drawing:
    """An annotator with the UI's own tools, the image turned clockwise `turns` times by its rotate tool."""

    def __init__(self, page: Page, turns: int) -> None:
        self._page = page
        self._turns = turns
        for _ in range(turns):
            before = page.locator(IMAGE).get_attribute("style")
            page.locator("[aria-label=rotate-right]").click()
            until(lambda before=before: page.locator(IMAGE).get_attribute("style") != before)

    def choose(self, label: str) -> None:
        self._page.keyboard.press("u")  # lets the last region go
        self._page.locator(".lsf-label", has_text=label).first.click()

    def drag(self, *points: Point) -> None:
        places = [self._on_screen(*point) for point in points]
        self._page.mouse.move(*places[0])
        self._page.mouse.down()
        for (x0, y0), (x1, y1) in itertools.pairwise(places):
            self._page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2)
            self._page.mouse.move(x1, y1)
        self._page.mouse.up()
        self._page.wait_for_timeout(300)

    def click(self, *points: Point) -> None:
        for point in points:
            self._page.mouse.click(*self._on_screen(*point))
            self._page.wait_for_timeout(300)  # two clicks at once are a double click

    def _on_screen(self, x: float, y: float) -> Point:
        box = self._page.locator(IMAGE).bounding_box()
        assert box
        height, width = SIZE
        u, v = [(x / width, y / height), (1 - y / height, x / width)][self._turns % 2]
        if self._turns >= 2:
            u, v = 1 - u, 1 - v
        return box["x"] + u * box["width"], box["y"] + v * box["height"]


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("encode", [png, phone_jpeg])
def test_what_is_drawn_in_the_ui_is_where_it_was_drawn(
    studio: LabelStudioServer,
    clickmask: Clickmask,
    connected: Callable[[], int],
    encode: Callable[[Pixels], tuple[str, bytes]],
    turns: int,
) -> None:
    project = connected()
    task = studio.upload(project, *encode(drawn_scene(1)[0]))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1700})
        labeling = LabelingPage(page, studio)
        labeling.log_in()
        labeling.show(project, task, SIZE[1])
        annotator = Drawing(page, turns)
        annotator.choose("Boxed")
        annotator.drag((20, 30), (60, 50))
        annotator.choose("Round")
        annotator.drag((100, 40), (140, 60))  # from its centre
        annotator.choose("Outlined")
        annotator.click((180, 30), (220, 34), (200, 70), (180, 30))
        annotator.choose("Painted")
        annotator.drag((30, 120), (90, 120), (90, 150))
        annotator.choose("Bits")
        annotator.drag((130, 120), (190, 120), (190, 150))
        labeling.submit()
    clickmask.read_all()
    ours = held_by_clickmask(clickmask.url, project)
    assert same(held_by_label_studio(studio, project), ours)
    masks = {category: mask for *_, category, mask in ((*key, mask) for key, mask in ours.items())}
    assert masks.keys() == set(KINDS.values())
    expected = {
        "Boxed": (drawn.rectangle(SIZE, (20, 30, 60, 50)), 0.93),
        "Round": (drawn.ellipse(SIZE, (100, 40), (40, 20)), 0.93),
        "Outlined": (inside(shapely.Polygon([(180, 30), (220, 34), (200, 70)]), SIZE), 0.93),
    }
    for category, (truth, least) in expected.items():
        found = masks[category]
        assert (found & truth).sum() / (found | truth).sum() >= least, category
    for category, stroke in {
        "Painted": [(30, 120), (90, 120), (90, 150)],
        "Bits": [(130, 120), (190, 120), (190, 150)],
    }.items():
        assert all(masks[category][int(y), int(x)] for x, y in stroke)
        thick = shapely.LineString(stroke).buffer(20)
        assert not (masks[category] & ~inside(thick, SIZE)).any()
