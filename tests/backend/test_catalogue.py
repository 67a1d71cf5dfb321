from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from clickmask.catalogue import Catalogue, SegmenterStatus
from clickmask.errors import SegmenterNotReady, UnknownSegmenter

PLUGINS = {
    "plain": "def load(variant): return object()",
    "sized": "VARIANTS = ('large', 'small')\ndef load(variant): return variant",
    "unready": "def missing(variant): return 'no weights here'\ndef load(variant): raise AssertionError",
    "bereft": "import a_package_that_nobody_has",
    "_private": "raise AssertionError",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = f"plugins_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    for plugin, text in PLUGINS.items():
        (folder / f"{plugin}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


def test_every_module_of_the_folder_is_listed_with_its_variants_and_its_state(package: ModuleType) -> None:
    assert Catalogue(package).statuses() == [
        SegmenterStatus("bereft", False, "it needs the package a_package_that_nobody_has"),
        SegmenterStatus("plain", True, ""),
        SegmenterStatus("sized:large", True, ""),
        SegmenterStatus("sized:small", True, ""),
        SegmenterStatus("unready", False, "no weights here"),
    ]


def test_a_segmenter_is_loaded_once(package: ModuleType) -> None:
    catalogue = Catalogue(package)
    assert catalogue.get("plain") is catalogue.get("plain")
    assert catalogue.get("sized:small") == "small"


@pytest.mark.parametrize("name", ["nothing", "plain:huge", "sized", "sized:huge", "", "_private", "../plain"])
def test_names_that_are_not_installed_are_refused_with_those_that_are(package: ModuleType, name: str) -> None:
    with pytest.raises(UnknownSegmenter, match=r"installed: .*plain|it has: "):
        Catalogue(package).get(name)


@pytest.mark.parametrize(
    ("name", "reason"), [("unready", "weights"), ("bereft", "a_package_that_nobody_has")]
)
def test_a_segmenter_that_lacks_something_says_what(package: ModuleType, name: str, reason: str) -> None:
    with pytest.raises(SegmenterNotReady, match=reason):
        Catalogue(package).get(name)


def test_our_own_folder_holds_the_default() -> None:
    assert "grabcut" in {status.name for status in Catalogue().statuses() if status.ready}
