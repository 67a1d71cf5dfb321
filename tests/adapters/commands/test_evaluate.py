"""`clickmask evaluate` over a drawn dataset."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clickmask.inference.weights import WeightsFolder
from clickmask_adapters.cli import app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.coco_folders import write_dataset
from support.scenes import drawn_scene


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("drawn set"), [drawn_scene(0), drawn_scene(1)])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLICKMASK_SEGMENTER", raising=False)


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_segmenters_are_compared_side_by_side_in_table_file_and_plot(dataset: Path, tmp_path: Path) -> None:
    numbers, plot = tmp_path / "numbers.json", tmp_path / "plot.svg"
    result = evaluate(
        "grabcut", "contours", dataset, "--clicks", 2, "--objects", 4, "--json", numbers, "--plot", plot
    )
    assert result.exit_code == 0, result.output
    table = result.output.partition("less grabcut")[0]
    rows = {line[:14].strip(): line[14:].split() for line in table.splitlines()}
    content = json.loads(numbers.read_text())
    assert content["annotations"] == "annotations.json"
    assert content["clicks"] == 2
    assert list(content["segmenters"]) == ["grabcut", "contours"]
    for column, name in enumerate(("grabcut", "contours")):
        found = content["segmenters"][name]
        assert found["objects"] == 4
        assert float(rows["mIoU @2"][column]) == pytest.approx(found["miou"][1], abs=6e-4)
        assert float(rows["mIoU by box"][column]) == pytest.approx(found["box_miou"], abs=6e-4)
        assert float(rows["NoC @90"][column]) == pytest.approx(found["noc"]["90"], abs=6e-3)
        assert int(rows["never at 85"][column]) == found["failures"]["85"]
        assert sum(each["objects"] for each in found["categories"].values()) == 4
        low, high = found["intervals"][1]
        assert low <= found["miou"][1] <= high
    assert f"{low:.2f} to {high:.2f}" in result.output
    assert "less grabcut" in result.output
    assert content["segmenters"]["grabcut"]["miou"][0] > 0.9, "flat shapes are easy"
    assert plot.read_text().count("<svg") == 1


def test_without_a_name_the_default_segmenter_is_evaluated(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKMASK_SEGMENTER", "contours")
    result = evaluate(dataset, "--clicks", 1, "--objects", 1)
    assert result.exit_code == 0, result.output
    assert "contours" in result.output
    assert "1 objects of annotations.json" in result.output


def test_all_takes_every_segmenter_that_is_ready(dataset: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    result = evaluate(dataset, "--all", "--clicks", 1, "--objects", 1, "--json", numbers)
    assert result.exit_code == 0, result.output
    names = set(json.loads(numbers.read_text())["segmenters"])
    assert names >= {"grabcut", "contours", "threshold", "region_growing"}
    assert "sam:vit_b" not in names, "it has no weights here"


def test_what_serve_answers_without_torch_is_evaluated_without_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 4ea8372 the command's segmenters had no runtimes, and `sam:vit_b` asked for torch."""
    pytest.importorskip("torch")
    from support.checkpoints import TINY, weights_of, write_checkpoint

    weights = weights_of(write_checkpoint(tmp_path / "tiny.pth", TINY))
    monkeypatch.setattr(Home, "weights", weights)
    assert Home(Settings()).segmenters.export("sam:vit_b", lambda share, what: None)
    monkeypatch.setattr(Home, "weights", WeightsFolder(tmp_path / "none", checkpoints=weights.checkpoints))
    monkeypatch.setitem(sys.modules, "torch", None)
    result = evaluate("sam:vit_b", dataset, "--clicks", 1, "--objects", 1)
    assert result.exit_code == 0, result.output
    assert "1 objects of annotations.json" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["grabcut", "--all"], "name none beside it"),
        (["nothing"], "there is no segmenter 'nothing'"),
        (["sam:vit_b"], "sam:vit_b cannot run"),
        (["grabcut", "--plot", "plot.xyz"], "no plot is written to plot.xyz"),
        (["grabcut", "--control", "sharp=1"], "there is no control 'sharp'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_before_anything_is_tried(
    dataset: Path, arguments: list[str], sentence: str
) -> None:
    result = evaluate(*arguments, dataset)
    assert result.exit_code == 1
    assert sentence in result.output
    assert "mIoU" not in result.output


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    result = evaluate("grabcut", tmp_path)
    assert result.exit_code == 1
    assert "has no COCO annotation file" in result.output


def test_pictures_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [drawn_scene(0), drawn_scene(1)])
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    result = evaluate("contours", dataset, "--clicks", 1)
    assert "3 objects of annotations.json; left out: 3 whose picture cannot be read" in result.output
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    result = evaluate("contours", dataset, "--clicks", 1)
    assert result.exit_code == 1
    assert "none of the pictures can be read" in result.output


def test_a_plot_without_matplotlib_is_refused_with_what_to_install(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    result = evaluate("grabcut", dataset, "--plot", "plot.png")
    assert result.exit_code == 1
    assert "pip install 'clickmask[plot]'" in result.output


def test_one_category_needs_no_table_of_categories(tmp_path: Path) -> None:
    pixels, masks = drawn_scene(0)
    write_dataset(tmp_path, [(pixels, masks[:1])])
    assert "kind 1" not in evaluate("contours", tmp_path, "--clicks", 12).output
