"""The shell for label-studio-ml: its version 2 as a fake, its 1.0.9 for real."""

from __future__ import annotations

import base64
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import orjson
import pytest
import requests

import clickmask
import clickmask_adapters
from clickmask.ingest.inbox import Inbox
from clickmask.workbench import Workbench
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.routes import Backend
from support import CONTRACTS, drawn
from support.fakes import DrawnAnnotator

NAME = "clickmask_adapters.tools.label_studio.ml_backend"
RECORDED = CONTRACTS / "label_studio"


def recorded(number: str) -> Any:
    (path,) = RECORDED.glob(f"{number}_*.json")
    return orjson.loads(path.read_bytes())["request"]["body"]


CONFIG = recorded("06")["label_config"]


class AnswerException(Exception):
    def __init__(self, status: int, msg: str = "", result: Any = None) -> None:
        super().__init__(msg)
        self.status, self.msg, self.result = status, msg, result


class VersionTwo:
    """What label-studio-ml's version 2 gives a model, its cache included."""

    cache: dict[tuple[str, str], str]

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.model_version:
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None: ...

    def get(self, key: str) -> str | None:
        return self.cache.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        self.cache[self.project_id, key] = value

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")

    @property
    def model_version(self) -> str | None:
        return self.get("model_version")


@pytest.fixture
def ml_backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    VersionTwo.cache = {}
    modules: dict[str, dict[str, Any]] = {
        "flask": {},
        "label_studio_ml": {},
        "label_studio_ml.exceptions": {"AnswerException": AnswerException},
        "label_studio_ml.model": {"LabelStudioMLBase": VersionTwo},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    module = importlib.import_module(NAME)
    monkeypatch.delitem(sys.modules, NAME)
    return module


@pytest.fixture
def model(ml_backend: ModuleType, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Any:
    opened = Backend(workbench, LabelStudioClient(None, None), 0.98)
    monkeypatch.setattr(ml_backend, "opened", lambda: opened)
    return ml_backend.ClickmaskModel("1", CONFIG)


def click() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tasks and context of a recorded click, the image inside."""
    body = recorded("06")
    _, png = cv2.imencode(".png", np.full((480, 640, 3), 90, np.uint8))
    uri = "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()
    body["tasks"][0]["data"] = {"image": uri}
    return body["tasks"], body["params"]["context"]


def _scene() -> str:
    _, png = cv2.imencode(".png", drawn.scene().pixels[..., ::-1])
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


def test_nothing_of_clickmask_imports_the_shell() -> None:
    for folder in (clickmask.__path__, clickmask_adapters.__path__):
        for path in Path(folder[0]).rglob("*.py"):
            assert path.name == "ml_backend.py" or "ml_backend" not in path.read_text(), path


def test_version_two_answers_a_click_with_plain_json(model: Any) -> None:
    tasks, context = click()
    (answer,) = model.predict(tasks, context=context, login=None, password=None)
    assert [region["type"] for region in answer["result"]] == ["brushlabels", "polygonlabels"]
    assert (answer["score"], answer["model_version"]) == (0.75, "disc")
    orjson.dumps(answer)  # no arrays are left


@pytest.mark.parametrize("context", [None, {}])
def test_version_two_prepares_the_image_of_an_opened_task(
    model: Any, context: dict[str, Any] | None, workbench: Workbench
) -> None:
    assert model.predict(click()[0], context=context) == []
    until = time.monotonic() + 10
    while not workbench.cache_status().entries and time.monotonic() < until:
        time.sleep(0.01)
    assert workbench.cache_status().entries == 1


def test_version_two_gives_what_the_projects_model_finds(
    model: Any, ml_backend: ModuleType, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, _ = click()
    tasks[0]["data"]["image"] = _scene()
    monkeypatch.setattr(workbench, "trained_annotator", lambda tool, project: ("drawn", "unet 0001"))
    config = CONFIG.replace("Car", next(iter(DrawnAnnotator.labels)))
    shell = ml_backend.ClickmaskModel("1", config)
    assert shell.model_version == "disc, unet 0001"
    (found,) = shell.predict(tasks, context=None)
    assert (found["model_version"], len(found["result"]), found["score"]) == ("disc, unet 0001", 1, 0.9)
    orjson.dumps(found)  # no arrays are left


def test_version_two_is_told_the_projects_segmenter(
    model: Any, ml_backend: ModuleType, workbench: Workbench
) -> None:
    assert model.model_version == "disc"
    workbench.set_project("label_studio", "1", "grabcut")
    assert ml_backend.ClickmaskModel("1", CONFIG).model_version == "grabcut"
    assert ml_backend.ClickmaskModel("2", CONFIG).model_version == "disc"


def test_an_error_is_a_status_and_a_sentence(model: Any) -> None:
    tasks, context = click()
    context["result"][0]["value"]["x"] = "no"
    with pytest.raises(AnswerException) as caught:
        model.predict(tasks, context=context)
    assert (caught.value.status, caught.value.msg) == (422, "x 'no' is no finite number")


def test_version_two_keeps_events_whole(model: Any, inbox: Inbox) -> None:
    event = recorded("13")
    action = event.pop("action")
    model.fit(action, event)
    (kept,) = inbox.events()
    assert orjson.loads(kept.body) == recorded("13")
    assert kept.source == "label_studio"


def test_requests_at_the_same_time_open_one_workbench(
    ml_backend: ModuleType, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Workbench] = []

    def open_slowly(settings: Settings) -> Home:
        time.sleep(0.05)
        opened.append(workbench)
        return Home(settings, workbench)

    monkeypatch.setattr(ml_backend, "Home", open_slowly)
    monkeypatch.setattr(ml_backend.atexit, "register", lambda _: None)
    threads = [threading.Thread(target=ml_backend.opened) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """The address of `label-studio-ml start`, of a backend that `label-studio-ml init` made."""
    venv = os.environ.get("CLICKMASK_TEST_LABEL_STUDIO_ML")
    program = Path(venv or ".venv-ls-ml") / "bin" / "label-studio-ml"
    if not program.exists():
        pytest.fail(
            f"there is no {program}: `make test-slow` installs label-studio-ml 1.0.9, or name its virtual "
            "environment in CLICKMASK_TEST_LABEL_STUDIO_ML"
        )
    environment = os.environ | {
        "PATH": f"{program.absolute().parent}:{os.environ['PATH']}",  # it runs `python`
        "CLICKMASK_HOME": str(folder / "home"),
    }
    (folder / "model.py").write_text(f"from {NAME} import ClickmaskModel\n")
    init = [program.absolute(), "init", "backend", "--script", "model.py:ClickmaskModel"]
    subprocess.run(init, cwd=folder, env=environment, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    start = [program.absolute(), "start", "backend", "--host", "127.0.0.1", "--port", port]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            start, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # what it started is in its group
        process.wait(20)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    pytest.fail(f"label-studio-ml did not start:\n{log.read_text()[-3000:]}")


def _post(url: str, body: Any) -> requests.Response:
    return requests.post(url, json=body, timeout=60)


@pytest.mark.slow
def test_label_studio_ml_serves_a_prediction_over_http(tmp_path: Path) -> None:
    with started(tmp_path) as url:
        assert _post(f"{url}/setup", recorded("02")).json() == {"model_version": "INITIAL"}
        asked = recorded("06")
        asked["tasks"], asked["params"]["context"] = click()
        answer = _post(f"{url}/predict", asked)
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["results"]
        assert found["model_version"] == "builtin"
        assert {region["type"] for region in found["result"]} <= {"brushlabels", "polygonlabels"}

        other = recorded("02") | {"project": "2.1795370196", "schema": "<View/>"}
        assert _post(f"{url}/setup", other).ok  # of another project, with another label config
        assert _post(f"{url}/predict", asked).json()["results"][0]["score"] == found["score"]

        opening = recorded("04")
        opening["tasks"] = asked["tasks"]
        assert _post(f"{url}/predict", opening).json()["results"] == []

        asked["params"]["context"]["result"][0]["value"]["x"] = "no"
        refused = _post(f"{url}/predict", asked)
        assert (refused.status_code, refused.json()["detail"]) == (422, "x 'no' is no finite number")
        assert "Traceback" not in refused.text

        assert _post(f"{url}/webhook", recorded("13")).status_code == 201
        assert requests.get(f"{url}/health", timeout=5).json()["status"] == "UP"
