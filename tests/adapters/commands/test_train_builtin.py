"""`clickmask train-builtin`, without the training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from typer.testing import CliRunner

import clickmask.training.click.train as training
from clickmask_adapters.cli import app
from clickmask_adapters.commands import train_builtin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the training was called with."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(training, "train", lambda *given, **named: calls.append((given, named)))
    return calls


def test_the_options_reach_the_training(tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    arguments = ["train-builtin", "--data", tmp_path, "--to", tmp_path / "run", "--steps", 7, "--seed", 3]
    result = CliRunner().invoke(app, [str(each) for each in [*arguments, "--tiers", "A", "--device", "cpu"]])
    assert result.exit_code == 0, result.output
    (((data, folder, plan), named),) = asked
    assert (data, folder) == (tmp_path, tmp_path / "run")
    assert (plan.steps, plan.seed) == (7, 3)
    assert (named["tiers"], named["device"]) == (("A",), "cpu")
    assert "encoder.onnx" in result.output


def test_a_missing_folder_is_said_in_a_sentence(tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    result = CliRunner().invoke(app, ["train-builtin", "--data", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "there is no folder" in result.output
    assert not asked


def test_a_missing_torch_is_said_in_a_sentence(
    tmp_path: Path, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest)
    )
    result = CliRunner().invoke(app, ["train-builtin", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "needs the package torch" in result.output
    assert not asked


def test_imagenet_weights_are_found_in_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_builtin, "IMAGENET", "an_encoder_that_is_not_installed")
    assert train_builtin.imagenet_weights() is None
    models = tmp_path / "an_encoder" / "models"
    models.mkdir(parents=True)
    (tmp_path / "an_encoder" / "__init__.py").touch()
    (models / "lite2.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(train_builtin, "IMAGENET", "an_encoder")
    assert train_builtin.imagenet_weights() == models / "lite2.pth"
