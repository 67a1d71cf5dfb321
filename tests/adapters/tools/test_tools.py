"""The contract of tools/__init__, as the two tools keep it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from clickmask.errors import Busy
from clickmask.types import ImageRef
from clickmask.workbench import Workbench
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools import Tool, _prelabel
from support.elsewhere import counted

SLOW = ("fastapi", "starlette", "cv2", "torch", "sqlalchemy", "requests", "urllib3", "numpy.testing")
ASK = """
import sys
from clickmask_adapters.tools import cvat, label_studio
from clickmask_adapters.settings import Settings
assert Settings().min_iou == 0.98
print(*(name for name in {slow} if name in sys.modules))
"""


@pytest.fixture
def tools(workbench: Workbench, tmp_path: Path) -> dict[str, Tool]:
    return Home(Settings(home=tmp_path), workbench).tools


def test_the_packages_are_imported_without_what_they_serve_with() -> None:
    """`clickmask --help` knows the tools, and has 0.3 s of CPU."""
    program = [sys.executable, "-c", ASK.format(slow=SLOW)]
    found = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
    assert found == []


def test_the_open_paths_are_those_that_the_tools_call(tools: dict[str, Tool]) -> None:
    assert tools["label_studio"].open_paths == {"/health", "/setup", "/predict", "/versions", "/webhook"}
    assert tools["cvat"].open_paths == {"/api/", "/webhooks/", "/"}
    assert tools["cvat"].signed_paths == {"/webhooks/cvat"}


def test_every_route_of_a_tool_is_open_or_signed(tools: dict[str, Tool], workbench: Workbench) -> None:
    """A labeling tool sends no secret: a route that nobody may call would never be reached."""
    for tool in tools.values():
        prefixes = tuple(path for path in tool.open_paths if path.endswith("/") and path != "/")
        for route in tool.router(workbench).routes:
            path = str(getattr(route, "path", ""))
            assert path in tool.open_paths | tool.signed_paths or path.startswith(prefixes or ("//",)), path


def test_each_tool_sees_clickmask_at_an_address_of_its_own(tools: dict[str, Tool]) -> None:
    assert tools["label_studio"].default_our_url == "http://127.0.0.1:9090"
    assert tools["cvat"].default_our_url == "http://nuclio.internal:8070"


def test_a_tool_that_is_not_configured_has_no_origin_but_labels_to_read(tools: dict[str, Tool]) -> None:
    for tool in tools.values():
        assert tool.origin is None
        assert tool.labels is tool.labels is not None


def test_a_model_that_is_busy_is_waited_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        asked = 0

        def prelabel(self, *given: object) -> list[object]:
            self.asked += 1
            if self.asked == 1:
                raise Busy("another image is being annotated", retry_after=3.0)
            return []

    paused: list[tuple[float, int]] = []
    with counted() as waiting:
        monkeypatch.setattr(_prelabel.time, "sleep", lambda seconds: paused.append((seconds, waiting.now)))
        model = cast("Workbench", Model())
        assert _prelabel.draw(model, lambda: ImageRef("digest:0"), "trained:a", "cvat", lambda *_: True) == []
    assert paused == [(3.0, 1)]
