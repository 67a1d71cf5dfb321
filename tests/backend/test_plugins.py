from __future__ import annotations

import threading
from pathlib import Path

import pytest

from clickmask import plugins, segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.weights import WeightsFolder
from support.elsewhere import counted, in_thread
from support.waiting import until


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


def test_whoever_waits_for_a_plugin_to_be_loaded_waits_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from clickmask.segmenters import threshold

    begun, loaded, load = threading.Event(), threading.Event(), threshold.load

    def slowly(variant: str, host: object) -> object:
        begun.set()
        assert loaded.wait(30)
        return load(variant, host)

    monkeypatch.setattr(threshold, "load", slowly)
    catalogue = Catalogue(segmenters, WeightsFolder(Path("no weights")))
    with counted() as waiting:
        first = threading.Thread(target=catalogue.get, args=("threshold",))
        first.start()
        assert begun.wait(30)
        second = in_thread(lambda: catalogue.get("threshold"))
        until(lambda: waiting.now == 1)
        loaded.set()
        first.join(30)
        second.join(30)
    assert waiting.now == 0
    assert catalogue.get("threshold").name == "threshold"
