"""The page in Chromium: opening a photo on it and pointing at places of the photo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

SHOWN = "body[data-photo=shown]"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = (  # of its own accord Chromium asks for updates, and as root it has no sandbox
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-quic", "--no-first-run"),
)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def open_sample(page: Page, name: str) -> None:
    page.click(f"[data-sample='{name}.jpg']")
    page.wait_for_selector(SHOWN)


def on_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where the place (x, y) of the photo is in the window."""
    photo = page.locator("#photo").bounding_box()
    assert photo
    scale = photo["width"] / page.evaluate("document.getElementById('photo').naturalWidth")
    return photo["x"] + x * scale, photo["y"] + y * scale


def in_photo(page: Page, left: float, top: float) -> tuple[float, float]:
    """Which place of the photo is at (left, top) of the window."""
    x0, y0 = on_screen(page, 0, 0)
    x1, y1 = on_screen(page, 1, 1)
    return (left - x0) / (x1 - x0), (top - y0) / (y1 - y0)


def click_at(page: Page, x: float, y: float, **options: Any) -> None:
    page.mouse.click(*on_screen(page, x, y), **options)


def drag(page: Page, box: tuple[float, float, float, float]) -> None:
    page.mouse.move(*on_screen(page, *box[:2]))
    page.mouse.down()
    page.mouse.move(*on_screen(page, *box[2:]), steps=4)
    page.mouse.up()


def outline(page: Page) -> str:
    return page.get_attribute("#outline", "d") or ""


def wait_for_outline(page: Page, other_than: str = "") -> str:
    """The outline that is drawn, as soon as there is one and it is another."""
    drawn = page.locator("#outline")
    expect(drawn).to_have_attribute("d", re.compile("^M"))
    expect(drawn).not_to_have_attribute("d", other_than)
    return outline(page)


def wait_for_no_outline(page: Page) -> None:
    expect(page.locator("#outline")).to_have_attribute("d", "")
