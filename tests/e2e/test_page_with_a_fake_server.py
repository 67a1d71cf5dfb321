"""The page in Chromium before a server that can be told how to behave: slow, busy, forgetful, locked."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, expect
from pycocotools import mask as coco

from clickmask_adapters import web
from support.clicking import chromium, click_at, open_sample, outline, wait_for_outline

pytestmark = pytest.mark.slow


class FakeServer:
    """Answers a disc of radius 30 around the last foreground point; `proposals` times, ever smaller."""

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}
        self.asked: list[dict[str, Any]] = []
        self.uploads = 0
        self.token: str | None = None
        self.busy = 0
        self.delays: list[float] = []
        self.proposals = 1
        self.refusal: tuple[int, str] | None = None
        self.wider = 0  # pixels by which it misjudges photos
        self.app = FastAPI()
        self.app.include_router(web.router())
        self.app.middleware("http")(self.guard)
        self.app.post("/v1/images")(self.images)
        self.app.post("/v1/proposals")(self.propose)
        self.app.get("/v1/segmenters")(self.segmenters)
        self.app.get("/v1/status")(self.status)

    async def guard(self, request: Request, call_next: Any) -> Any:
        locked = self.token is not None and request.url.path.startswith("/v1/")
        if locked and request.headers.get("Authorization") != f"Token {self.token}":
            return JSONResponse({"error": "the token is missing or wrong"}, 401)
        return await call_next(request)

    def size_of(self, image: dict[str, str]) -> tuple[str, tuple[int, int]] | None:
        if "digest" in image:
            size = self.sizes.get(image["digest"])
            return (image["digest"], size) if size else None
        self.uploads += 1
        raw = base64.b64decode(image["data"])
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
        digest = hashlib.sha256(raw).hexdigest()
        self.sizes[digest] = (upright.height, upright.width)
        return digest, self.sizes[digest]

    def images(self, body: dict[str, Any]) -> Any:
        if self.refusal:
            return JSONResponse({"error": self.refusal[1]}, self.refusal[0])
        known = self.size_of(body["image"])
        if known is None:
            return JSONResponse({"error": "send the image again"}, 410)
        digest, (height, width) = known
        return {"digest": digest, "width": width + self.wider, "height": height}

    def propose(self, body: dict[str, Any]) -> Any:
        self.asked.append(body)
        if self.delays:
            time.sleep(self.delays.pop(0))
        if self.busy:
            self.busy -= 1
            return JSONResponse({"error": "all places are taken"}, 503, {"Retry-After": "1"})
        known = self.size_of(body["image"])
        if known is None:
            return JSONResponse({"error": "send the image again"}, 410)
        digest, (height, width) = known
        x, y = (body["prompt"]["foreground"] or [[body["prompt"]["box"][0], body["prompt"]["box"][1]]])[-1]
        rows, columns = np.mgrid[:height, :width] + 0.5
        answers = [
            self.disc(np.hypot(columns - x, rows - y) < 30 - 8 * n, (x, y), 30 - 8 * n, body["min_iou"])
            for n in range(self.proposals)
        ]
        for n, one in enumerate(answers):
            one["id"], one["score"] = f"p{n}", 0.9 - 0.1 * n
        image = {"digest": digest, "width": width, "height": height}
        return {"image": image, "segmenter": "fake", "proposals": answers}

    @staticmethod
    def disc(mask: Any, at: tuple[float, float], radius: float, min_iou: float) -> dict[str, Any]:
        rle: Any = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        sides = {0.9: 6, 0.95: 8, 0.98: 12, 0.99: 16, 1: 60}[min_iou]
        turns = np.linspace(0, 2 * np.pi, sides, endpoint=False)
        ring = np.stack([at[0] + radius * np.cos(turns), at[1] + radius * np.sin(turns)], axis=1)
        left, top, width, height = coco.toBbox(rle).tolist()
        return {
            "area": int(mask.sum()),
            "box": [left, top, left + width, top + height],
            "rle": {"size": rle["size"], "counts": rle["counts"].decode()},
            "polygons": [{"outer": ring.round(2).tolist(), "holes": []}],
            "iou": min_iou,
            "points": sides,
        }

    def segmenters(self) -> Any:
        names = [{"name": "fake", "ready": True, "reason": ""}]
        return {
            "default": "fake",
            "segmenters": [*names, {"name": "sam", "ready": False, "reason": "no weights"}],
        }

    def status(self) -> Any:
        aside = [
            {"event": 12, "tool": "label_studio", "reason": "<i>task 7</i> shows no image", "at": 1.0}
            | {"attempts": 1, "retry_at": None},
            {"event": 11, "tool": "cvat", "reason": "CVAT does not answer", "at": 1.0}
            | {"attempts": 2, "retry_at": 2.0},
        ]
        kept = {"images": 1, "bytes": 5 * 2**10, "capacity": 2**30, "refused": 4}
        intake = {"waiting": 3, "set_aside": 2, "newest_set_aside": aside, "kept_images": kept}
        error = {"at": "2026-01-02T03:04:05+00:00", "method": "POST", "path": "/predict", "status": 502}
        return {
            "version": "0.1",
            "segmenter": "fake",
            "uptime_s": 4000,
            "cache": {"bytes": 3 << 20, "capacity": 1 << 30, "entries": 1, "hits": 3, "misses": 1}
            | {"disk": {"bytes": 2 << 20, "capacity": 10 << 30, "entries": 7, "hits": 0, "evicted": 3}},
            "queue": {"waiting": 0, "capacity": 64},
            "intake": intake,
            "inbox": 7,
            "turned_away": {"wrong_secret": 1200, "<i>new</i>": 1},
            "troubles": {
                "now": ["events wait in the inbox: <i>no room</i>"],
                "damaged": [{"name": "a", "kept_as": "b", "at": 1.0, "sentence": "a was set aside as b"}],
                "reader_failures": 1,
            },
            "errors": [error | {"error": "<b>the image</b> could not be fetched"}],
        }


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
def origin(fake: FakeServer) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(fake.app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, origin: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(origin)
    yield page
    context.close()


def open_cat(page: Page) -> None:
    open_sample(page, "cat")


MASKS = {
    "drawn": np.hypot(*(np.mgrid[:37, :53] - 20)) < 15,
    "empty": np.zeros((7, 5), bool),
    "full": np.ones((7, 5), bool),
    "one pixel in the corner": np.eye(9, 6, dtype=bool) & (np.arange(6) == 5),
    "a column over two": np.arange(35).reshape(5, 7).T % 11 > 6,
    "noise": np.random.default_rng(5).random((61, 43)) < 0.4,
    "large": np.hypot(*(np.mgrid[:2000, :1500] - 700)) < 600,
}


@pytest.mark.parametrize("name", MASKS)
def test_rle_of_pycocotools_decodes_to_the_same_mask(page: Page, name: str) -> None:
    mask = MASKS[name]
    rle: Any = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    found = page.evaluate(
        """async (rle) => {
            const { maskInBox } = await import("/static/rle.js");
            const mask = maskInBox(rle);
            let text = "";
            for (const bit of mask.bits) text += bit;
            return { ...mask, bits: text };
        }""",
        rle,
    )
    box = coco.toBbox(rle).astype(int).tolist()
    assert [found["x"], found["y"], found["width"], found["height"]] == box
    decoded = np.zeros(mask.shape, bool)
    bits = np.frombuffer(found["bits"].encode(), np.uint8) == ord("1")
    left, top, width, height = box
    decoded[top : top + height, left : left + width] = bits.reshape(height, width)
    assert np.array_equal(decoded, mask)


def test_the_photo_travels_once_and_again_only_if_the_server_forgot_it(page: Page, fake: FakeServer) -> None:
    open_cat(page)
    click_at(page, 100, 100)
    first = wait_for_outline(page)
    click_at(page, 120, 100)
    second = wait_for_outline(page, other_than=first)
    assert fake.uploads == 1
    fake.sizes.clear()
    click_at(page, 300, 200)
    wait_for_outline(page, other_than=second)
    assert fake.uploads == 2
    assert all("digest" in body["image"] for body in fake.asked)


def test_only_the_answer_to_the_last_click_is_drawn(page: Page, fake: FakeServer) -> None:
    open_cat(page)
    fake.delays = [1.0, 0.0]
    click_at(page, 60, 60)
    page.wait_for_timeout(100)
    click_at(page, 300, 200)
    page.wait_for_timeout(1500)
    assert [len(body["prompt"]["foreground"]) for body in fake.asked] == [1, 2]
    start = float(outline(page)[1:].split()[0])
    assert start == pytest.approx(300 + 30, abs=2)
    assert page.is_hidden("#message")


def test_a_busy_server_is_asked_again_by_itself(page: Page, fake: FakeServer) -> None:
    open_cat(page)
    fake.busy = 1
    click_at(page, 100, 100)
    page.wait_for_selector("#message:has-text('The server is busy. Trying again in 1 s')")
    wait_for_outline(page)
    assert page.is_hidden("#message")


def test_an_unreachable_server_is_named_and_can_be_asked_again(page: Page) -> None:
    open_cat(page)
    page.wait_for_timeout(200)
    page.context.set_offline(True)
    click_at(page, 100, 100)
    page.wait_for_selector("#message:has-text('The server does not answer')")
    page.context.set_offline(False)
    if page.is_visible("#again"):
        page.click("#again")
    wait_for_outline(page)


def test_the_token_is_asked_for_once_and_kept_for_the_tab(page: Page, fake: FakeServer, origin: str) -> None:
    fake.token = "open sesame"
    page.goto(origin)
    page.wait_for_selector("#login[open]")
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#login[open]")
    page.fill("#token", "open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#segmenter option")).to_have_count(2)
    open_cat(page)
    click_at(page, 100, 100)
    wait_for_outline(page)
    assert page.evaluate("Object.values(sessionStorage)") == ["open sesame"]
    assert page.evaluate("localStorage.length") == 0


def test_keys_switch_between_several_proposals(page: Page, fake: FakeServer) -> None:
    fake.proposals = 3
    open_cat(page)
    click_at(page, 100, 100)
    wait_for_outline(page)
    areas = [page.inner_text("#figure-area")]
    for key in "23":
        page.keyboard.press(key)
        areas.append(page.inner_text("#figure-area"))
    assert len(set(areas)) == 3
    assert page.is_checked("#candidate-list label:nth-child(3) input")
    page.keyboard.press("4")
    assert page.inner_text("#figure-area") == areas[2]


def test_another_quality_keeps_the_chosen_proposal_and_another_click_does_not(
    page: Page, fake: FakeServer
) -> None:
    fake.proposals = 3
    open_cat(page)
    click_at(page, 100, 100)
    first = wait_for_outline(page)
    page.keyboard.press("2")
    chosen = wait_for_outline(page, other_than=first)
    page.check("input[name=quality][value='0.9']", force=True)
    finer = wait_for_outline(page, other_than=chosen)
    assert page.is_checked("#candidate-list label:nth-child(2) input")
    click_at(page, 200, 100)
    wait_for_outline(page, other_than=finer)
    assert page.is_checked("#candidate-list label:nth-child(1) input")


def test_a_refused_photo_is_told_in_the_words_of_the_server(page: Page, fake: FakeServer) -> None:
    fake.refusal = (413, "a request has at most 1 MiB")
    open_cat(page)
    expect(page.locator("#message-text")).to_have_text("A request has at most 1 MiB.")
    fake.refusal = None
    page.click("#again")
    expect(page.locator("#message")).to_be_hidden()
    click_at(page, 100, 100)
    wait_for_outline(page)


def test_a_server_that_sees_another_size_is_not_clicked_on(page: Page, fake: FakeServer) -> None:
    fake.wider = 1
    open_cat(page)
    expect(page.locator("#message-text")).to_contain_text(
        "sees 452 × 300 pixels where the browser shows 451 × 300"
    )
    click_at(page, 100, 100)
    expect(page.locator(".mark")).to_have_count(1)
    assert fake.asked == []


def test_segmenters_that_are_not_ready_cannot_be_chosen(page: Page) -> None:
    page.wait_for_selector("#segmenter option", state="attached")
    options = page.eval_on_selector_all("#segmenter option", "all => all.map(o => [o.text, o.disabled])")
    assert options == [["fake", False], ["sam (not ready)", True]]


def test_a_file_that_is_no_picture_is_refused_in_words(page: Page) -> None:
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.wait_for_selector("#refusal:has-text('cannot show “notes.txt”')")
    assert page.get_attribute("body", "data-photo") == "none"


def test_status_shows_the_last_errors_as_text(page: Page, origin: str) -> None:
    page.goto(f"{origin}/status")
    page.wait_for_selector("#errors li")
    assert "<b>the image</b> could not be fetched." in page.inner_text("#errors")
    assert "Label Studio asked for a mask (POST /predict)" in page.inner_text("#errors")
    assert page.inner_text("#uptime") == "fake by default, up for 1 h 6 min"
    assert "No weights." in page.inner_text("#segmenters")
    assert page.inner_text("#cache") == "3 MiB of 1 GiB"
    assert page.inner_text("#cache-note").endswith(
        "On disk: 7 photos, 2 MiB of 10 GiB, 3 went to leave room on it"
    )


def test_status_counts_what_was_turned_away(page: Page, origin: str) -> None:
    page.goto(f"{origin}/status")
    lines = page.locator("#turned-away li")
    expect(lines).to_have_text(["1,200 requests with a wrong secret", "1 <i>new</i>"])


def test_status_shows_the_labels_that_could_not_be_taken_in(page: Page, origin: str) -> None:
    page.goto(f"{origin}/status")
    page.wait_for_selector("#aside li")
    now, damaged = page.locator("#troubles li").all_inner_texts()
    assert now.startswith("Events wait in the inbox: <i>no room</i>.")
    assert damaged.startswith("A was set aside as b.")
    first, second = page.locator("#aside li").all_inner_texts()
    assert first.startswith("<i>task 7</i> shows no image.")
    assert "event 12 of label studio" in first
    assert first.endswith("given up until a restart")
    assert "tried 2 times, again" in second
    assert page.inner_text("#inbox-note") == (
        "3 still to be read, 2 set aside; 1 labelled photo kept, 5 KiB of 1 GiB, 4 found no room"
    )
