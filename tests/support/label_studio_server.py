"""A real Label Studio as a process of its own, with a fresh database, and its labelling UI.

The names of its elements are those of 1.23.2.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Page, Response

from support.label_studio_sdk_oracle import program

OPTIONS = ("--no-browser", "--internal-host", "127.0.0.1", "--enable-legacy-api-token")
IMAGE = ".lsf-image img[alt=image]"  # named as the tag is
EMAIL, PASSWORD = "annotator@example.com", "not a secret 1"


@dataclass(frozen=True)
class LabelStudioServer:
    url: str
    token: str
    files: Path  # the document root of local files

    def api(self, method: str, path: str, **request: Any) -> Any:
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Authorization": f"Token {self.token}"}
            answer = session.request(method, f"{self.url}{path}", headers=headers, timeout=60, **request)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def new_project(self, title: str, label_config: str) -> int:
        return self.api("POST", "/api/projects", json={"title": title, "label_config": label_config})["id"]

    def upload(self, project: int, name: str, image: bytes) -> int:
        """The id of the task made of an image file."""
        before = self._task_ids(project)
        self.api("POST", f"/api/projects/{project}/import", files={"file": (name, image)})
        (task,) = self._task_ids(project) - before
        return task

    def _task_ids(self, project: int) -> set[int]:
        found = self.api("GET", "/api/tasks", params={"project": project, "page_size": 100})
        return {task["id"] for task in found["tasks"]}

    def annotations(self, task: int) -> list[dict[str, Any]]:
        return self.api("GET", f"/api/tasks/{task}/annotations/")


@contextmanager
def label_studio(folder: Path) -> Iterator[LabelStudioServer]:
    """Start it, wait until it is healthy (30 to 60 s: it migrates its database), and end it."""
    executable = program("label-studio")
    files = folder / "files"
    files.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LabelStudioServer(f"http://127.0.0.1:{port}", secrets.token_hex(20), files)
    log = folder / "label-studio.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [executable, "start", *OPTIONS, "--port", str(port), "--data-dir", str(folder / "data")],
            env=_environment(server),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_healthy(server.url, process, log)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(server: LabelStudioServer) -> dict[str, str]:
    mine = {"PATH", "HOME", "LANG", "TMPDIR"}
    return {name: value for name, value in os.environ.items() if name in mine} | {
        "LABEL_STUDIO_USERNAME": EMAIL,
        "LABEL_STUDIO_PASSWORD": PASSWORD,
        "LABEL_STUDIO_USER_TOKEN": server.token,
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(server.files),
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "COLLECT_ANALYTICS": "0",
        "LATEST_VERSION_CHECK": "0",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 1200  # on a machine with much else to do
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if requests.get(f"{url}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise RuntimeError(f"Label Studio did not start:\n{log.read_text(errors='replace')[-3000:]}")


class LabelingPage:
    """One annotator at the labelling UI. Places are in pixels of the upright image."""

    def __init__(self, page: Page, server: LabelStudioServer) -> None:
        self.page, self._server = page, server
        self._width = 0
        page.set_default_timeout(30_000)

    def log_in(self) -> None:
        self.page.goto(f"{self._server.url}/user/login/", wait_until="domcontentloaded")
        self.page.fill("input[name=email]", EMAIL)
        self.page.fill("input[name=password]", PASSWORD)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda url: "/login" not in url, wait_until="commit")

    def open(self, project: int, task: int, width: int) -> None:
        """Show the task, whose image is `width` pixels wide, with Auto-Annotation switched on."""
        self.show(project, task, width)
        toggle = self.page.get_by_test_id("bottombar-auto-annotation-toggle")
        toggle.wait_for(state="attached")
        if not toggle.is_checked():
            self.page.get_by_text("Auto-Annotation", exact=True).click()

    def show(self, project: int, task: int, width: int) -> None:
        self._width = width
        address = f"{self._server.url}/projects/{project}/data?task={task}"
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.locator(".konvajs-content canvas").first.wait_for()
        self.page.wait_for_function(f"document.querySelector('{IMAGE}')?.naturalWidth === {width}")

    def choose(self, label: str, control: int = -1) -> None:
        """Choose a label, of the control that stands at this place among those that have it."""
        self.page.locator(".lsf-label", has_text=label).nth(control).click()

    def take(self, tool: str) -> None:
        """Take a smart tool: key-point-tool or rectangle-tool."""
        self.page.locator(f".lsf-toolbar__smart button[aria-label={tool}]").dispatch_event("click")

    def click(self, x: float, y: float, alt: bool = False) -> Response:
        """A click, with Alt one that says where the object is not; what the backend answered through it."""
        if alt:
            self.page.keyboard.down("Alt")
        with self.page.expect_response(_is_prompt) as answer:
            self.page.mouse.click(*self._on_screen(x, y))
        if alt:
            self.page.keyboard.up("Alt")
        return answer.value

    def draw_box(self, x0: float, y0: float, x1: float, y1: float) -> Response:
        self.page.mouse.move(*self._on_screen(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self._on_screen((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self._on_screen(x1, y1))
        with self.page.expect_response(_is_prompt) as answer:
            self.page.mouse.up()
        return answer.value

    def accept(self) -> None:
        """Accept all suggestions, which takes the prompts away."""
        button = self.page.get_by_test_id("bottombar-accept-suggestions-button")
        button.click()
        button.wait_for(state="detached")

    def submit(self) -> dict[str, Any]:
        with self.page.expect_response(
            lambda r: r.request.method == "POST" and "/annotations" in r.url
        ) as made:
            self.page.get_by_role("button", name="Submit").click()
        assert made.value.ok, made.value.text()
        return made.value.json()

    def _on_screen(self, x: float, y: float) -> tuple[float, float]:
        box = self.page.locator(IMAGE).bounding_box()  # the canvas is cut off where it is zoomed
        assert box
        scale = box["width"] / self._width
        return box["x"] + x * scale, box["y"] + y * scale


def _is_prompt(response: Response) -> bool:
    return "/interactive-annotating" in response.url
