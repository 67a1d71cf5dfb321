"""The page at / in Chromium, before the real server with its built-in segmenter."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pycocotools import mask as coco
from pycocotools.coco import COCO

from clickmask.masks.controls import Controls, smooth_mask
from clickmask.masks.regions import fill_pinholes, keep_parts, mask_box, mask_iou
from clickmask.types import Mask, Pixels
from support.clicking import (
    SHOWN,
    chromium,
    click_at,
    drag,
    in_photo,
    on_screen,
    open_sample,
    outline,
    wait_for_no_outline,
    wait_for_outline,
)
from support.scenes import drawn_scene
from support.served import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools 2.0.11
]

CUP = (275, 130)  # in the photo of the coffee
ORIENTATION = 0x0112  # EXIF


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("home")) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=[{}], ids=[""])
def page(browser: Browser, origin: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, which at the end must have written no error and asked no other server."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 760}, **request.param})
    page = context.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    errors: list[str] = []
    asked: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(origin)
    yield page
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((origin, f"blob:{origin}", "data:"))] == []


def figure(page: Page, name: str) -> str:
    return page.inner_text(f"#figure-{name}")


def points(page: Page) -> int:
    return int(figure(page, "points").replace(",", ""))


def drop(page: Page, name: str, kind: str, raw: bytes) -> None:
    """Drop a file on the page, as from the desktop."""
    transfer = page.evaluate_handle(
        """([name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            return transfer;
        }""",
        [name, kind, base64.b64encode(raw).decode()],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(SHOWN)


def saved(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def saved_mask(page: Page, folder: Path) -> Mask:
    found = json.loads(saved(page, "#save-json", folder).read_text())
    return coco.decode(found["annotations"][0]["segmentation"]).astype(bool)


def centre(mask: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def drawn_on_its_side(seed: int) -> tuple[bytes, list[Mask]]:
    """A scene saved lying on its side, with the EXIF tag that says how to turn it, and its upright truth."""
    pixels, masks = drawn_scene(seed)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    out = io.BytesIO()
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue(), masks


def png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_one_click_on_a_sample_draws_its_outline(page: Page) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    wait_for_outline(page)
    left, top = on_screen(page, *CUP)
    mask = page.locator("#mask").bounding_box()
    assert mask
    assert mask["x"] < left < mask["x"] + mask["width"]
    assert mask["y"] < top < mask["y"] + mask["height"]
    assert points(page) > 5
    assert float(figure(page, "iou")) >= 0.98
    assert figure(page, "time").endswith(" ms")
    assert page.get_attribute("#points .mark", "class") == "mark foreground"


def test_saved_answers_are_the_drawn_truth(page: Page, tmp_path: Path) -> None:
    pixels, masks = drawn_scene(3)
    drop(page, "drawn.png", "image/png", png(pixels))
    click_at(page, *centre(masks[0]))
    wait_for_outline(page)
    mask = saved_mask(page, tmp_path)
    assert mask_iou(mask, masks[0]) >= 0.9
    picture = np.asarray(Image.open(saved(page, "#save-mask", tmp_path)).convert("L"))
    assert np.array_equal(picture == 255, mask)
    dataset = COCO(str(tmp_path / "drawn.json"))
    (annotation,) = dataset.loadAnns(dataset.getAnnIds())
    assert dataset.imgs[1] == {"id": 1, "file_name": "drawn.png", "width": 320, "height": 240}
    assert annotation["area"] == mask.sum()
    x0, y0, x1, y1 = mask_box(mask) or (0, 0, 0, 0)
    assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert np.array_equal(dataset.annToMask(annotation).astype(bool), mask)


def test_a_photo_that_lies_on_its_side_is_shown_and_answered_upright(page: Page, tmp_path: Path) -> None:
    raw, masks = drawn_on_its_side(4)
    drop(page, "side.jpg", "image/jpeg", raw)
    assert figure(page, "size") == "320 × 240"
    x, y = centre(masks[1])
    click_at(page, x, y)
    wait_for_outline(page)
    mask = saved_mask(page, tmp_path)
    assert mask[int(y), int(x)]
    assert mask_iou(mask, masks[1]) >= 0.9


def test_a_dragged_box_outlines_what_is_in_it(page: Page, tmp_path: Path) -> None:
    pixels, masks = drawn_scene(5)
    drop(page, "drawn.png", "image/png", png(pixels))
    box = mask_box(masks[2])
    assert box
    drag(page, (box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4))
    wait_for_outline(page)
    assert page.get_attribute("#box", "visibility") == "visible"
    assert page.locator(".mark").count() == 0
    assert mask_iou(saved_mask(page, tmp_path), masks[2]) >= 0.9


def test_alt_click_and_right_click_mark_background_and_undo_takes_them_back(page: Page) -> None:
    open_sample(page, "coffee")
    prompts: list[Any] = []
    page.on("request", lambda sent: prompts.append(sent.post_data_json) if "/proposals" in sent.url else None)
    click_at(page, *CUP)
    first = wait_for_outline(page)
    page.keyboard.down("Alt")
    click_at(page, 275, 280)
    page.keyboard.up("Alt")
    expect(page.locator(".mark.background")).to_have_count(1)
    click_at(page, 60, 60, button="right")
    expect(page.locator(".mark.background")).to_have_count(2)
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    assert [len(sent["prompt"]["background"]) for sent in prompts] == [0, 1, 2]
    assert prompts[2]["prompt"]["background"][1] == pytest.approx([60, 60], abs=0.6)
    page.click("#undo")
    page.keyboard.press("Control+z")
    expect(page.locator(".mark")).to_have_count(1)
    expect(page.locator("#outline")).to_have_attribute("d", first)
    page.keyboard.press("Control+z")
    wait_for_no_outline(page)
    assert page.is_disabled("#undo")
    page.keyboard.press("Control+Shift+z")
    expect(page.locator("#outline")).to_have_attribute("d", first)


def test_escape_clears_and_can_be_undone(page: Page) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    first = wait_for_outline(page)
    page.keyboard.press("Escape")
    wait_for_no_outline(page)
    assert page.locator(".mark").count() == 0
    assert page.is_hidden("#mask")
    assert page.is_disabled("#save-json")
    page.keyboard.press("Control+z")
    expect(page.locator("#outline")).to_have_attribute("d", first)


def test_a_better_outline_has_more_points(page: Page) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    drawn = wait_for_outline(page)
    counts: dict[str, int] = {}
    for quality in ("0.9", "0.95", "0.98", "0.99", "1"):
        if not page.is_checked(f"input[name=quality][value='{quality}']"):
            page.check(f"input[name=quality][value='{quality}']", force=True)
            drawn = wait_for_outline(page, other_than=drawn)
        counts[quality] = points(page)
        assert float(figure(page, "iou")) >= float(quality)
    assert sorted(counts.values()) == list(counts.values())
    assert counts["1"] > 4 * counts["0.9"]


def test_the_mask_is_what_its_controls_ask_for(page: Page, tmp_path: Path) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    wait_for_outline(page)
    own = saved_mask(page, tmp_path)

    def expect_mask(expected: Mask) -> None:
        expect(page.locator("#figure-area")).to_have_text(f"{expected.sum():,} px")
        assert np.array_equal(saved_mask(page, tmp_path), expected)

    page.select_option("#smooth", "5")
    expect_mask(smooth_mask(own, 5))
    page.check("#one-part")
    page.check("#fill-holes")
    expect_mask(Controls(smooth=5, fill_holes=own.size, max_parts=1).apply(own))
    page.select_option("#smooth", "0")
    expect_mask(keep_parts(fill_pinholes(own, own.size), most=1))


def test_a_mask_of_the_page_or_of_a_file_is_gone_on_from(page: Page, tmp_path: Path) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    clicked = wait_for_outline(page)
    file = saved(page, "#save-json", tmp_path).rename(tmp_path / "own.json")
    own = coco.decode(json.loads(file.read_text())["annotations"][0]["segmentation"]).astype(bool)
    page.click("#refine")
    refined = wait_for_outline(page, other_than=clicked)
    expect(page.locator(".mark")).to_have_count(0)  # the mask stands for the clicks
    assert mask_iou(saved_mask(page, tmp_path), own) > 0.7
    page.click("#clear")
    wait_for_no_outline(page)
    page.set_input_files("#mask-file", file)
    assert wait_for_outline(page) == refined
    (tmp_path / "none.json").write_text('{"annotations": [{"segmentation": [[1, 2, 3, 4, 5, 6]]}]}')
    page.set_input_files("#mask-file", tmp_path / "none.json")
    page.wait_for_selector("#message:has-text('This is no COCO file with a mask')")


def test_background_alone_asks_for_the_object(page: Page) -> None:
    open_sample(page, "cat")
    click_at(page, 30, 30, button="right")
    page.wait_for_selector("#message:has-text('Now click on the object')")
    click_at(page, 150, 120)
    wait_for_outline(page)
    assert page.is_hidden("#message")


def test_everything_works_without_a_mouse(page: Page) -> None:
    page.focus("[data-sample='coffee.jpg']")
    page.keyboard.press("Enter")
    page.wait_for_selector(SHOWN)
    expect(page.locator("#stage")).to_be_focused()
    page.keyboard.press("ArrowUp")
    assert page.get_attribute("#crosshair", "visibility") == "visible"
    for _ in range(11):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    first = wait_for_outline(page)
    for _ in range(16):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Alt+Enter")
    expect(page.locator(".mark.background")).to_have_count(1)
    page.keyboard.press("Escape")
    wait_for_no_outline(page)
    page.keyboard.press("r")
    for key in ["ArrowUp"] * 20 + ["ArrowLeft"] * 20:
        page.keyboard.press(key)
    page.keyboard.press("r")
    assert wait_for_outline(page) != first
    page.keyboard.press("Tab")
    reached: list[str] = []
    for _ in range(30):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        page.keyboard.press("Tab")
    assert {"quality", "show-mask", "copy", "save-json", "save-mask", "undo", "zoom-in", "mode"} <= set(
        reached
    )


def test_zoom_keeps_the_place_under_the_pointer(page: Page) -> None:
    open_sample(page, "coffee")
    left, top = map(round, on_screen(page, *CUP))  # a pointer stands on whole pixels of the window
    before = in_photo(page, left, top)
    page.mouse.move(left, top)
    for _ in range(5):
        page.mouse.wheel(0, -120)
    expect(page.locator("#photo")).to_have_css("image-rendering", "pixelated")
    assert in_photo(page, left, top) == pytest.approx(before, abs=0.05)
    with page.expect_request("**/v1/proposals") as sent:
        page.mouse.click(left, top)
    assert sent.value.post_data_json["prompt"]["foreground"][0] == pytest.approx(before, abs=0.05)
    wait_for_outline(page)
    page.keyboard.press("0")
    assert on_screen(page, *before) == pytest.approx((left, top), abs=0.1)


def test_json_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_sample(page, "cat")
    click_at(page, 150, 120)
    wait_for_outline(page)
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["images"][0]["file_name"] == "cat.jpg"
    assert sum(len(part["outer"]) for part in copied["annotations"][0]["polygons"]) == points(page)


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": 380, "height": 780}}, {"color_scheme": "dark"}],
    ids=["narrow", "dark"],
    indirect=True,
)
def test_the_page_fits_a_phone_and_the_dark(page: Page, request: pytest.FixtureRequest) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    wait_for_outline(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    page_colour, text_colour = (sum(map(int, colour[4:-1].split(", "))) for colour in colours)
    assert (page_colour < text_colour) == ("dark" in request.node.callspec.id)


def test_status_tells_of_the_server_and_its_errors(page: Page, origin: str) -> None:
    refused = page.request.post(f"{origin}/v1/proposals", data={"image": {"digest": "00"}, "prompt": {}})
    assert refused.status >= 400
    page.goto(f"{origin}/status")
    expect(page.locator("#segmenters .ready").filter(has_text="default")).to_have_text("builtin (default)")
    first = page.locator("#errors li").first
    expect(first).to_contain_text(f"(POST /v1/proposals) · answered {refused.status}")
    assert "Traceback" not in first.inner_text()


def test_the_secret_given_to_the_browser_opens_the_page_and_its_requests(
    browser: Browser, tmp_path: Path
) -> None:
    with serving(tmp_path, CLICKMASK_TOKEN="open sesame") as server:
        stranger = browser.new_page()
        for path in ("/", "/static/playground.js", "/v1/segmenters"):
            assert stranger.request.get(f"{server.url}{path}").status == 401
        stranger.close()
        page = browser.new_page(http_credentials={"username": "clickmask", "password": "open sesame"})
        page.goto(server.url)
        open_sample(page, "cat")
        click_at(page, 150, 120)
        wait_for_outline(page)
        page.close()


@pytest.mark.skipif(
    "CLICKMASK_SCREENSHOTS" not in os.environ, reason="screenshots go to CLICKMASK_SCREENSHOTS"
)
def test_screenshot_of_the_page(page: Page) -> None:
    open_sample(page, "coffee")
    click_at(page, *CUP)
    wait_for_outline(page)
    assert outline(page)
    page.mouse.move(5, 5)
    page.screenshot(path=Path(os.environ["CLICKMASK_SCREENSHOTS"]) / "page.png")
