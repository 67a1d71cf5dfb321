"""One new file is all that a segmenter, a tool, an export or a network takes.

Each is a file in a temporary folder that stands for another one in the package, and nothing else changes.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from clickmask import plugins, segmenters
from clickmask.datasets.snapshot import snapshot
from clickmask.images.archive import ImageArchive
from clickmask.labels.submissions import ProjectDescribed
from clickmask.masks.rle import rle_to_mask
from clickmask.metrics.confusion import confusion_matrix, miou
from clickmask.models.labeller import open_labeller
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask_adapters import cli, commands, exports, imports, tools
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.server.failures import STATUS
from clickmask_adapters.settings import Settings
from support.drawn import disc
from support.drawn_projects import accept_drawings, drawn_picture
from support.labelled import PROJECT, brush, digest_of, noise, png, submit
from support.pictures import png_base64

SEGMENTER = '''
"""The object is the box of a prompt, or the rectangle round a click."""

import numpy as np

from clickmask.types import Prediction


class Boxes:
    name = "boxes"

    def encode(self, image):
        return np.zeros(image.size, bool)

    def decode(self, embedding, prompt):
        mask = embedding.copy()
        x0, y0, x1, y1 = (round(side) for side in prompt.box or (*prompt.foreground[0],) * 2)
        mask[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = True
        return [Prediction(mask, 0.5, self.name)]


def load(variant, host):
    return Boxes()
'''

FINDER = (
    SEGMENTER
    + """

from clickmask.plugins import Variant

VARIANTS = {"": Variant(labels=("thing",))}


def find(self, embedding):
    mask = embedding.copy()
    mask[10:20, 10:30] = True
    return [("thing", Prediction(mask, 0.9, self.name))]


Boxes.find = find
"""
)
WRONG = SEGMENTER.replace("boxes", "wrong").replace("Prediction(mask,", "Prediction(mask.T,")

TOOL = '''
"""Hears of clicks in plain text."""

from fastapi import APIRouter

from clickmask.types import ImageRef, Prompt
from clickmask_adapters.tools import Tool


class Plain(Tool):
    name = "plain"

    def router(self, workbench):
        routes = APIRouter()

        @routes.get("/plain")
        def area(uri: str, x: float, y: float) -> int:
            proposals = workbench.propose(ImageRef(uri), Prompt(((x, y),)), tool=self.name)
            return int(proposals[0].prediction.mask.sum())

        return routes


def create(home):
    return Plain()
'''

EXPORT = '''
"""A line of text an image: its name, and how many labels it has."""

from clickmask_adapters.exports import _folder


def write(dataset, folder):
    with _folder.replacing(folder) as new:
        lines = [f"{sample.image} {len(sample.labels)}" for sample in dataset.samples]
        (new / "counts.txt").write_text("\\n".join(lines))
    return folder / "counts.txt"


def losses(dataset):
    return ["shapes are lost"]
'''

IMPORT = '''
"""Pictures with a disc in the middle."""

from functools import partial

from clickmask.ingest.imports import ImportedDataset, ImportedImage, ImportedLabel
from clickmask.labels.geometry import Ellipse


def read(place):
    images = [partial(picture, path) for path in sorted(place.iterdir())]
    return ImportedDataset("discs", made_at=0.0, categories=("disc",), images=images)


def picture(path):
    return ImportedImage(path, path.name, [ImportedLabel("disc", Ellipse((32, 24), (10, 10)))])
'''

NETWORK = '''
"""Two convolutions: a pixel is labelled by the colours round it."""

from torch import nn

NAME = "Two convolutions"
STRIDE = 1  # the sides that it is given are multiples of it


def build(classes, encoder):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, classes, 3, padding=1)
    )
'''

Adds = Callable[[ModuleType, str, str], None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adds:
    """A file of this name and text, as if it lay in the folder of the package."""

    def file(package: ModuleType, name: str, text: str) -> None:
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        importlib.invalidate_caches()

    return file


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], TestClient]]:
    """The whole server, with this default segmenter."""
    clients: list[TestClient] = []

    def start(segmenter: str) -> TestClient:
        home = Home(Settings(home=tmp_path / "home", segmenter=segmenter))
        client = TestClient(create_app(home), "http://127.0.0.1:9090", client=("127.0.0.1", 5000))
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def click(client: TestClient, **asked: Any) -> Any:
    prompt = {"foreground": [[40, 30]]}
    return client.post("/v1/proposals", json={"image": {"data": png_base64(7)}, "prompt": prompt, **asked})


def test_a_segmenter_is_one_file(add: Adds, serve: Callable[[str], TestClient]) -> None:
    add(segmenters, "boxes", SEGMENTER)
    client = serve("grabcut")
    listed = {each["name"]: each for each in client.get("/v1/segmenters").json()["segmenters"]}
    assert listed["boxes"]["ready"]
    answer = click(client, segmenter="boxes").json()
    shown = CliRunner().invoke(cli.app, ["segmenters", "--all"]).output
    assert re.search(r"^boxes +points, box +1 +yes$", shown, re.MULTILINE), "it says nothing of itself"
    expected = np.zeros((60, 80), bool)
    expected[28:32, 38:42] = True
    (proposal,) = answer["proposals"]
    assert (rle_to_mask(proposal["rle"]) == expected).all()


def test_a_segmenter_that_needs_no_prompt_is_an_annotator_too(
    add: Adds, serve: Callable[[str], TestClient]
) -> None:
    add(segmenters, "boxes", FINDER)
    client = serve("grabcut")
    listed = {each["name"]: each for each in client.get("/v1/annotators").json()["annotators"]}
    assert (listed["unprompted:boxes"]["ready"], listed["unprompted:boxes"]["labels"]) == (True, ["thing"])
    body = {"image": {"data": png_base64(7)}, "annotator": "unprompted:boxes"}
    (found,) = client.post("/v1/annotations", json=body).json()["objects"]
    assert (found["label"], found["area"], found["box"]) == ("thing", 200, [10, 10, 30, 20])
    assert "clickmask-detect-unprompted-boxes" in client.get("/api/functions").json()


def test_a_segmenter_that_gives_another_mask_answers_with_a_sentence(
    add: Adds, serve: Callable[[str], TestClient]
) -> None:
    add(segmenters, "wrong", WRONG)
    answer = click(serve("wrong"))
    assert answer.status_code == 500
    assert answer.json() == {"error": "wrong gave a mask of shape (80, 60) and type bool for the 80x60 image"}


def test_a_tool_is_one_file(add: Adds, serve: Callable[[str], TestClient]) -> None:
    add(segmenters, "boxes", SEGMENTER)
    add(tools, "plain", TOOL)
    uri = f"data:image/png;base64,{png_base64(7)}"
    client = serve("boxes")
    answer = client.get("/plain", params={"uri": uri, "x": 40, "y": 30})
    assert (answer.status_code, answer.json()) == (200, 16)
    described = client.get("/v1/openapi.json").json()
    assert {"name": "plain", "description": "Hears of clicks in plain text."} in described["tags"]
    operation = described["paths"]["/plain"]["get"]
    assert operation["tags"] == ["plain"]
    errors = {int(status) for status in operation["responses"]} - {200}
    assert errors >= {401, 421, *STATUS.values()}


def test_an_export_is_one_file(add: Adds, serve: Callable[[str], TestClient], tmp_path: Path) -> None:
    add(exports, "counts", EXPORT)
    client = serve("grabcut")
    home = Home(Settings(home=tmp_path / "home"))
    home.store.describe_project(ProjectDescribed("label_studio", "7", "cells", ("cell",)))
    submit(home.store, "a", {"x": ("cell", brush(disc()))}, task="1")
    home.archive.keep(digest_of("a"), png(noise(97)))
    home.close()
    answer = client.get("/v1/projects/label_studio/7/export/counts")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as zipped:
        counted = zipped.read("counts.txt").decode()
    assert counted.endswith(" 1")
    arguments = ["export", "counts", "label-studio", "7", "--out", str(tmp_path / "out")]
    environment = {"CLICKMASK_HOME": str(tmp_path / "home")}
    written = CliRunner().invoke(cli.app, arguments, env=environment)
    assert (tmp_path / "out" / "counts.txt").read_text() == counted, written.output
    assert "shapes are lost" in written.output


def test_an_import_is_one_file(add: Adds, tmp_path: Path) -> None:
    add(imports, "discs", IMPORT)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(png(noise(97)))
    arguments = ["import", "discs", str(tmp_path / "set"), "page", "cells"]
    environment = {"CLICKMASK_HOME": str(tmp_path / "home")}
    taken = CliRunner().invoke(cli.app, arguments, env=environment)
    assert taken.output == "1 images with 1 labels taken in, 0 known already\n"


def test_a_broken_tool_and_a_broken_export_take_no_other_with_them(
    add: Adds, serve: Callable[[str], TestClient], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tools, "broken", "import no_such_package")
    add(exports, "broken", "1 / 0")
    add(imports, "broken", "1 / 0")
    assert serve("grabcut").get("/health").status_code == 200
    assert "the tool broken is broken and left out" in caplog.text
    environment = {"CLICKMASK_HOME": str(tmp_path / "home")}

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, arguments, env=environment)

    helped = run("export", "--help").output
    assert "coco" in helped and "broken" not in helped
    refused = run("export", "broken", "label-studio", "7", "--out", "d")
    assert refused.exit_code == 1
    assert "the export broken is broken (ZeroDivisionError)" in refused.output
    assert "the tool broken is broken" in run("pull", "broken", "1").output
    assert "the import broken is broken" in run("import", "broken", str(tmp_path), "cvat", "1").output


def test_broken_commands_take_no_other_with_them(add: Adds, capsys: pytest.CaptureFixture[str]) -> None:
    add(commands, "halved", "def half(:")
    add(commands, "missing", "import no_such\n\n@cli.command()\ndef absent():\n    'Nothing.'")
    listed = CliRunner().invoke(cli.app, ["--help"])
    assert listed.exit_code == 0 and "segmenters" in listed.stdout
    assert "the commands of halved are broken (SyntaxError: " in capsys.readouterr().err
    refused = CliRunner().invoke(cli.app, ["absent"])
    assert refused.exit_code == 1
    assert "the command absent is broken (ModuleNotFoundError: No module named 'no_such')" in refused.stderr


def test_a_project_trains_the_network_that_the_settings_name(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CLICKMASK_NETWORK", "two_convolutions")
        patched.setenv("CLICKMASK_ENCODER", str(tmp_path / "mine.safetensors"))
        patched.setenv("CLICKMASK_DEVICE", "mps")
        home = Home(Settings(home=tmp_path / "home"))
    supervisor = home.supervisor(lambda: 0)
    config = supervisor._config
    assert (config.network, config.device) == ("two_convolutions", "mps")
    assert config.encoder == str(tmp_path / "mine.safetensors")
    supervisor.start()
    supervisor.close()
    home.close()


def test_a_network_is_one_file(add: Adds, store: Store, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    networks = importlib.import_module("clickmask.training.networks")
    train = importlib.import_module("clickmask.training.train")
    config = importlib.import_module("clickmask.training.fit").TrainingConfig
    add(networks, "two_convolutions", NETWORK)
    assert "two_convolutions" in plugins.names(networks)
    archive = ImageArchive(tmp_path / "images", 2**24, lambda digest: True)
    accept_drawings(store, archive, 18)
    dataset = snapshot(store, "label_studio", PROJECT, archive)
    models = ProjectModels(tmp_path / "models").of("label_studio", PROJECT)
    quick = config(steps=60, side=64, crops=4, validate_every=20, rate=2e-2)
    trained = train.train(dataset, models, quick, tmp_path / "a.pt", network="two_convolutions")
    assert trained is not None
    assert models.served() == trained.version
    pixels, masks = drawn_picture(100)
    truth = masks["disc"] + 2 * masks["square"].astype(np.uint8)
    found = open_labeller(trained.version.network).predict(pixels).classes
    assert miou(confusion_matrix(truth, found, 3)) > 0.6
