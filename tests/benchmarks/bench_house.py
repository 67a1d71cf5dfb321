"""How much a reader reads: lines, files, and the files that each journey runs through."""

from __future__ import annotations

import ast
import collections
import re
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi.testclient import TestClient
from pydantic import SecretStr
from typer.testing import CliRunner

import clickmask
import clickmask_adapters
from benchmarks.goals import Section
from clickmask_adapters import cli
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.label_studio_standin import TOKEN, LabelStudioStandin, label_studio_standin, rectangle
from support.pictures import SIZE
from support.waiting import until

ROOTS = [Path(package.__file__ or "").parent for package in (clickmask, clickmask_adapters)]
CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Road"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Road"/></KeyPointLabels></View>"""


class Journey:
    """The files whose functions run while it is `followed`."""

    def __init__(self, *others: str) -> None:
        self.files: set[str] = set()
        self._others = others  # threads that are at work anyway
        self._recording = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        runs = self._recording and event == "call" and frame.f_code.co_name != "<module>"
        if runs and threading.current_thread().name not in self._others:
            self.files.add(frame.f_code.co_filename)

    @contextmanager
    def followed(self) -> Generator[None]:
        self._recording = True
        yield
        self._recording = False

    def row(self, name: str, read: list[Path]) -> str:
        """As a row of the table: the files to read and all that run, with their lines, and which they are."""
        ours = {Path(file): root for file in self.files for root in ROOTS if Path(file).is_relative_to(root)}
        assert set(read) <= ours.keys(), f"{name}: {set(read) - ours.keys()} does not run in it"
        counts = f"{len(read)} | {_lines(read):,} | {len(ours)} | {_lines(ours):,}"
        listed = ", ".join(sorted(str(path.relative_to(root.parent)) for path, root in ours.items()))
        return f"| {name} | {counts} | {listed} |"


def _lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def to_read() -> list[list[Path]]:
    """The files that the guide's page on the architecture tells to open for each journey."""
    page = (ROOTS[1] / "docs" / "architecture.md").read_text()
    found: list[list[Path]] = []
    for listed in re.findall(r"open in this order:(.*?)\.\n", page, re.DOTALL):
        names = re.findall(r"`([\w/]+\.py)`", listed)
        found.append([next(root / name for root in ROOTS if (root / name).exists()) for name in names])
    return found


def clicked(studio: LabelStudioStandin) -> dict[str, Any]:
    """A smart click on task 7, as Label Studio 1.23.2 sends it."""
    height, width = SIZE
    point = {
        "id": "point",
        "type": "keypointlabels",
        "from_name": "point",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "is_positive": True,
        "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Road"]},
    }
    return {
        "tasks": [{"id": 7, "data": studio.tasks[7]["data"]}],
        "project": "3.1795370196",
        "label_config": CONFIG,
        "params": {"context": {"result": [point]}},
    }


def journeys() -> dict[str, Journey]:
    """A click from Label Studio, a label that it accepts, an export of it."""
    click, label, export = Journey("inbox-reader", "trainings"), Journey("trainings"), Journey()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        for journey in (click, label, export):
            journey(frame, event, argument)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        with tempfile.TemporaryDirectory() as folder, label_studio_standin() as studio:
            settings = Settings(
                home=Path(folder), label_studio_url=studio.url, label_studio_api_key=SecretStr(TOKEN)
            )
            app = create_app(Home(settings))
            with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
                studio.add_task(7)
                accepted = studio.event(
                    "ANNOTATION_CREATED", studio.annotation(7, rectangle("r", 50, "Road"))
                )
                with click.followed():
                    answer = client.post("/predict", json=clicked(studio))
                assert answer.status_code == 200, answer.text
                with label.followed():
                    client.post("/webhook", json=accepted).raise_for_status()
                    until(lambda: bool(client.get("/v1/projects").json()["projects"]))
            environment = {"CLICKMASK_HOME": folder}
            out = str(Path(folder) / "out")
            with export.followed():
                result = CliRunner().invoke(
                    cli.app, ["export", "coco", "label-studio", "3", "--out", out], env=environment
                )
            assert result.exit_code == 0, result.output
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return {"a click from Label Studio": click, "an accepted label": label, "an export": export}


def tiny_functions() -> list[str]:
    """Private functions of at most four lines that have one caller."""
    texts = {path: path.read_text() for root in ROOTS for path in root.rglob("*.py")}
    words = collections.Counter(word for text in texts.values() for word in re.findall(r"\w+", text))
    return [
        f"{path.stem}.{node.name}"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and re.match("_[^_]", node.name)
        and (node.end_lineno or 0) - node.lineno < 4
        and words[node.name] == 2
    ]


def main() -> Section:
    files = [path for root in ROOTS for path in root.rglob("*.py")]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    tiny = tiny_functions()
    text = [
        f"{lines:,} lines of Python in {len(files)} files are in the wheel;",
        f"{len(list(ROOTS[0].glob('*.py')))} files lie directly in the core.",
        f"{len(tiny)} private functions of at most four lines have one caller.",
        "To read: the files that docs/architecture.md tells to open for a journey.",
        "Run: all whose functions run in it.",
        "",
        "| journey | to read | their lines | run | their lines | |",
        "|---|---:|---:|---:|---:|---|",
        *(each.row(name, read) for (name, each), read in zip(journeys().items(), to_read(), strict=True)),
    ]
    return Section("\n".join(text))


if __name__ == "__main__":
    print(main().text)
