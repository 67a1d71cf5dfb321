"""`clickmask export-model TOOL PROJECT`."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from clickmask.labels.submissions import ProjectDescribed
from clickmask.models.labeller import open_labeller
from clickmask_adapters.cli import app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import read_settings
from support.drawn import scene

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    home = Home(read_settings())
    home.store.describe_project(ProjectDescribed("label_studio", "7", "Cells", ("disc", "square")))
    home.close()
    return tmp_path / "home"


@pytest.fixture
def exported(home: Path, tmp_path: Path) -> Path:
    drafts: Any = pytest.importorskip("support.model_drafts")  # needs onnx
    opened = Home(read_settings())
    models = opened.models.of("label_studio", "7")
    models.promote(models.save(drafts.measured_draft(2.0)).id)
    opened.close()
    result = run("--out", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    return tmp_path / "model"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export-model", "label-studio", "7", *arguments])


def answers(python: str, folder: Path) -> np.ndarray:
    """The example's classes of the drawn scene, in the environment of `python`."""
    np.save(folder / "picture.npy", scene().pixels)
    subprocess.run([python, "-I", "example.py", "picture.npy", "classes.npy"], cwd=folder, check=True)
    return np.load(folder / "classes.npy")


def test_the_card_says_labels_measures_and_where_the_weights_came_from(exported: Path) -> None:
    card = json.loads((exported / "model.json").read_text())
    assert card["classes"]["0"] == "background"
    assert len(card["classes"]) > 1
    assert len(card["dataset"]) == 64
    assert card["measures"]["split"]
    text = (exported / "README.md").read_text()
    for told in (card["version"], card["dataset"], *card["classes"].values()):
        assert told in text
    assert sorted(path.name for path in exported.iterdir() if path.name[0] != ".") == [
        *("README.md", "example.py", "model.json", "network.onnx")
    ]


def test_the_example_gives_what_the_server_gives(exported: Path) -> None:
    served = open_labeller(exported / "network.onnx").predict(scene().pixels).classes
    assert np.array_equal(answers(sys.executable, exported), served)


@pytest.mark.slow
def test_the_example_needs_nothing_but_onnxruntime(exported: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    subprocess.run([python, *install, "onnxruntime"], check=True)
    served = open_labeller(exported / "network.onnx").predict(scene().pixels).classes
    assert np.array_equal(answers(python, exported), served)


def test_a_project_without_a_model_is_told_how_to_get_one(home: Path, tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "model"))
    assert (result.exit_code, result.stderr) == (
        1,
        "no model of this project is served yet: `clickmask train` makes one\n",
    )
    assert not (tmp_path / "model").exists()
