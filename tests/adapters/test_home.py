"""One process is wired once: what stands here failed while every surface made its own parts."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from clickmask.errors import Conflict, ImageUnavailable, NotReady, Refused
from clickmask.images.archive import ImageArchive
from clickmask.images.source import ImageSource
from clickmask.ingest.apply import LabelSource, Page
from clickmask.labels.submissions import ProjectDescribed, Submission
from clickmask.models.versions import ProjectModels
from clickmask.types import ImageRef
from clickmask.workbench import Workbench
from clickmask_adapters import home as home_module
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools import Tool
from support.accepting import TOOL, FakeTool, box, event, submitted
from support.pictures import png_base64, png_data_uri
from support.waiting import until


class Labels(FakeTool):
    """A tool that still has what it once announced."""

    def __init__(self, *submissions: Submission) -> None:
        super().__init__()
        self._submissions = submissions

    def pull(self, project: str, position: str | None = None) -> Iterator[Page]:
        yield Page(self._submissions, None, 0)

    def gone(self, annotations: object, project: str) -> Iterator[Any]:
        yield from ()


class OneTool(Tool):
    name = TOOL

    def __init__(self, labels: LabelSource | None = None, origin: str | None = "http://fake") -> None:
        self._labels, self._origin = labels, origin

    @property
    def origin(self) -> str | None:
        return self._origin

    @property
    def labels(self) -> LabelSource | None:
        return self._labels

    def router(self, workbench: Workbench) -> APIRouter:
        return APIRouter()


def home_with(tool: Tool, folder: Path, **settings: Any) -> Home:
    home = Home(Settings(home=folder, segmenter="contours", **settings))
    vars(home)["tools"] = {tool.name: tool}
    return home


def client_of(home: Home) -> TestClient:
    return TestClient(create_app(home), "http://127.0.0.1:9090", client=("127.0.0.1", 5000))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_cap_of_kept_images_holds_over_webhooks_and_fetching_again(tmp_path: Path) -> None:
    """At 4ea8372 the reader's archive and the trainings' counted apart, and kept twice the cap."""
    first = submitted(box(), task="1", annotation="1")
    second = submitted(box(), task="2", annotation="2", address=png_data_uri(200))
    size = len(png_base64()) * 3 // 4
    home = home_with(OneTool(Labels(first, second)), tmp_path, kept_bytes=size + size // 2)
    with client_of(home) as client:
        described = ProjectDescribed(TOOL, "1", "grey", ("cat",))
        home.workbench.keep_event(TOOL, event(described, first, second))
        until(lambda: client.get("/v1/projects/fake/1/labels").json().get("total") == 2)
        one = bytes_in(tmp_path / "images")
        assert 0 < one <= home.settings.kept_bytes
        home.workbench.supervisor._fetch(TOOL, "1", lambda: False)
        assert bytes_in(tmp_path / "images") == one
        assert client.get("/v1/projects/fake/1/stats").status_code == 200
        assert home.archive.status().bytes == one


def test_a_server_makes_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4ea8372: three archives, two image sources and two sets of models."""
    made: list[str] = []

    def counting(kind: type[Any]) -> Any:
        def make(*arguments: Any, **options: Any) -> Any:
            made.append(kind.__name__)
            return kind(*arguments, **options)

        return make

    for kind in (ImageArchive, ImageSource, ProjectModels):
        monkeypatch.setattr(home_module, kind.__name__, counting(kind))
    home = home_with(OneTool(Labels()), tmp_path)
    with client_of(home) as client:
        body = {"image": {"data": png_base64()}, "prompt": {"foreground": [[40, 30]]}}
        assert client.post("/v1/proposals", json=body).status_code == 200
        home.workbench.keep_event(TOOL, event(submitted(box())))
        until(lambda: client.get("/v1/projects/fake/1/labels").json().get("total") == 1)
        assert client.get("/v1/projects/fake/1/export/coco").status_code == 200
        assert client.get("/v1/projects/fake/1/versions").status_code == 200
    assert sorted(made) == ["ImageArchive", "ImageSource", "ProjectModels"]


def test_a_part_is_made_once_whichever_thread_asks_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def slowly(*arguments: Any) -> object:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return object()

    monkeypatch.setattr(home_module, "ProjectModels", slowly)
    home = Home(Settings(home=tmp_path))
    together = threading.Barrier(8)

    def ask() -> int:
        together.wait(10)
        return id(home.models)

    with ThreadPoolExecutor(8) as pool:
        assert len({each.result() for each in [pool.submit(ask) for _ in range(8)]}) == 1
    assert len(made) == 1


def test_images_may_come_from_the_address_of_any_tool_that_is_installed(tmp_path: Path) -> None:
    image = ImageRef("http://127.0.0.1:1/picture.png")  # a private address, and nobody there
    with pytest.raises(Refused):
        home_with(OneTool(origin=None), tmp_path).images.identify(image)
    with pytest.raises(ImageUnavailable):
        home_with(OneTool(origin="http://127.0.0.1:1"), tmp_path).images.identify(image)


def test_a_home_closes_what_was_made_and_makes_nothing_to_close_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(Settings(home=tmp_path / "home"))
    home.close()
    assert not (tmp_path / "home").exists()
    closed: list[str] = []
    for name in ("store", "inbox", "embeddings"):
        part = getattr(home, name)
        monkeypatch.setattr(part, "close", lambda name=name, close=part.close: (closed.append(name), close()))
    home.close()
    assert closed == ["embeddings", "store", "inbox"]


def test_a_server_that_cannot_start_leaves_nothing_running(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    home = Home(Settings(home=tmp_path, segmenter="sam:vit_b"))
    with pytest.raises(NotReady):
        create_app(home)
    home.close()
    assert set(threading.enumerate()) <= before


def test_a_home_is_held_by_one_server(tmp_path: Path) -> None:
    home = Home(Settings(home=tmp_path / "home"))
    with home.held(), pytest.raises(Conflict, match="another server works in"), home.held():
        pass
    with home.held():
        pass


def test_a_home_whose_file_system_has_no_locks_is_served_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("clickmask_adapters.home.files.lock", no_locks)
    caplog.set_level("INFO")
    with Home(Settings(home=tmp_path / "home")).held():
        assert "not locked against a second server: No locks available" in caplog.text
