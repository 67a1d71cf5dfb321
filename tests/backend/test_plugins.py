from __future__ import annotations

from pathlib import Path

import pytest

from clickmask import plugins, segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.weights import WeightsFolder


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution that brings two segmenters, one of them by a name of ours."""
    installed = tmp_path / "foreign-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[clickmask.segmenters]\nforeign = foreign_segmenter\ngrabcut = foreign_segmenter\n"
    )
    (tmp_path / "foreign_segmenter.py").write_text(
        "from types import SimpleNamespace\ndef load(variant, host): return SimpleNamespace(name='foreign')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_plugin_is_a_module_and_its_file_name_is_its_name() -> None:
    assert {"grabcut", "sam"} <= set(plugins.names(segmenters))
    assert plugins.load(segmenters, "grabcut").__name__ == "clickmask.segmenters.grabcut"
    with pytest.raises(KeyError):
        plugins.load(segmenters, "nothing")
    assert not any(name.startswith("_") for name in plugins.names(segmenters))


def test_another_package_brings_its_own_by_an_entry_point(foreign: Path) -> None:
    catalogue = Catalogue(segmenters, WeightsFolder(foreign / "weights"))
    assert "foreign" in {status.name for status in catalogue.statuses() if status.ready}
    assert catalogue.get("foreign").name == "foreign"


def test_ours_win_over_foreign_ones_of_the_same_name(foreign: Path) -> None:
    assert plugins.load(segmenters, "grabcut").__name__ == "clickmask.segmenters.grabcut"
    assert plugins.names(segmenters).count("grabcut") == 1
