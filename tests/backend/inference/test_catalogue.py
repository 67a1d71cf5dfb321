from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clickmask import plugins, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue, AnnotatorStatus
from clickmask.errors import Failed, NotFound, NotReady
from clickmask.inference.catalogue import Catalogue, Host, SegmenterStatus
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint

CONTENT = b"what a network has learned"
CHECKPOINT = Checkpoint(
    "http://127.0.0.1:9/small.pth",  # nobody listens: a download would fail
    len(CONTENT),
    hashlib.sha256(CONTENT).hexdigest(),
    "MIT",
)
NAMED = """
from types import SimpleNamespace
from clickmask.plugins import Checkpoint, Variant
"""
PLUGINS = {
    "plain": "def load(variant, host): return SimpleNamespace(name='plain')",
    "sized": (
        "VARIANTS = {'large': Variant(), 'small': Variant()}\n"
        "def load(variant, host): return SimpleNamespace(name=f'sized:{variant}')"
    ),
    "unready": (
        "def missing(variant, host): return 'no package here'\ndef load(variant, host): raise AssertionError"
    ),
    "weighty": (
        f"VARIANTS = {{'small': Variant({CHECKPOINT!r})}}\n"
        "def missing(variant, host): return host.weights.missing('weighty:' + variant)\n"
        "def load(variant, host):\n"
        "    return SimpleNamespace(name='weighty:small', file=host.weights.find('weighty:' + variant))"
    ),
    "lone": f"VARIANTS = {{'': Variant({CHECKPOINT!r})}}\ndef load(variant, host): raise AssertionError",
    "slow": (
        "import threading\n"
        "started, released, loads = threading.Event(), threading.Event(), []\n"
        "def load(variant, host):\n"
        "    started.set()\n"
        "    assert released.wait(10)\n"
        "    loads.append(1)\n"
        "    return SimpleNamespace(name='slow')"
    ),
    "exported": (
        "def export(variant, host, progress):\n"
        "    progress(1.0, f'exporting to {host.runtimes.folder}')\n"
        "    return host.runtimes.folder\n"
        "def load(variant, host): return SimpleNamespace(name='exported', host=host)"
    ),
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
        (folder / f"{plugin}.py").write_text(NAMED + text)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


@pytest.fixture
def weights(tmp_path: Path) -> WeightsFolder:
    folder = tmp_path / "weights"
    folder.mkdir()
    return WeightsFolder(folder, None, {"weighty:small": CHECKPOINT})


@pytest.fixture
def catalogue(package: ModuleType, weights: WeightsFolder) -> Catalogue:
    return Catalogue(package, weights)


def test_every_module_of_the_folder_is_listed_with_its_variants_and_its_state(catalogue: Catalogue) -> None:
    assert catalogue.statuses() == [
        SegmenterStatus("bereft", False, "it needs the package a_package_that_nobody_has"),
        SegmenterStatus("exported", True, ""),
        SegmenterStatus("lone", True, ""),
        SegmenterStatus("plain", True, ""),
        SegmenterStatus("sized:large", True, ""),
        SegmenterStatus("sized:small", True, ""),
        SegmenterStatus("slow", True, ""),
        SegmenterStatus("unready", False, "no package here"),
        SegmenterStatus(
            "weighty:small", False, "its weights are not here: clickmask weights fetch weighty:small"
        ),
    ]


BROKEN = {
    "raises_when_imported": "raise RuntimeError('/a/path/of/this/machine')",
    "does_not_parse": "def load(:",
    "has_lost_a_name": "from math import no_such_name",
    "cannot_say_what_it_lacks": "def missing(variant, host): raise OSError('/a/path/of/this/machine')",
    "lists_no_mapping": "VARIANTS = ['vit_h']",
    "has_variants_of_another_kind": "VARIANTS = {'vit_h': 'sam:vit_h'}",
    "cannot_list_its_variants": "def variants(host): raise OSError",
}


@pytest.mark.parametrize("plugin", BROKEN)
def test_a_broken_plugin_is_listed_as_such_and_hides_no_other(
    plugin: str, package: ModuleType, catalogue: Catalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = catalogue.statuses()
    (tmp_path / package.__name__ / f"{plugin}.py").write_text(BROKEN[plugin])
    for _ in range(2):
        (broken,) = [status for status in catalogue.statuses() if status not in whole]
        assert (broken.name, broken.ready) == (plugin, False)
        assert "broken" in broken.reason and "/a/path" not in broken.reason
    assert len(caplog.records) == 1  # not at each look
    with pytest.raises(NotReady, match="broken"):
        catalogue.get(plugin)


def test_a_plugin_says_whose_decoder_reads_its_embeddings(
    package: ModuleType, catalogue: Catalogue, tmp_path: Path
) -> None:
    (tmp_path / package.__name__ / "imitation.py").write_text(
        f"{NAMED}VARIANTS = {{'close': Variant(sam_decoder='sam:vit_h'), 'far': Variant()}}"
    )
    decoders = {status.name: status.decoder for status in catalogue.statuses()}
    assert decoders["imitation:close"] == "sam:vit_h"
    assert decoders["imitation:far"] == decoders["plain"] == ""


def test_a_segmenter_is_loaded_once(catalogue: Catalogue) -> None:
    assert catalogue.get("plain") is catalogue.get("plain")
    assert catalogue.get("sized:small").name == "sized:small"


@pytest.mark.parametrize("name", ["nothing", "plain:huge", "sized", "sized:huge", "", "_private", "../plain"])
def test_names_that_are_not_installed_are_refused_with_those_that_are(
    catalogue: Catalogue, name: str
) -> None:
    with pytest.raises(NotFound, match=r"installed: .*plain|it has: "):
        catalogue.get(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unready", "no package here"),
        ("weighty:small", "clickmask weights fetch weighty:small"),
        ("bereft", "a_package_that_nobody_has"),
    ],
)
def test_a_segmenter_that_lacks_something_says_what(catalogue: Catalogue, name: str, reason: str) -> None:
    with pytest.raises(NotReady, match=reason):
        catalogue.get(name)


def test_weights_are_used_once_they_were_verified_and_not_before(
    catalogue: Catalogue, weights: WeightsFolder
) -> None:
    (weights.folder / "small.pth").write_bytes(CONTENT)
    with pytest.raises(NotReady, match="not verified yet: clickmask weights path weighty:small"):
        catalogue.get("weighty:small")
    weights.verify_new()
    catalogue.require_ready("weighty:small")
    weighty: Any = catalogue.get("weighty:small")
    assert weighty.file == weights.folder / "small.pth"


def test_wrong_weights_are_told_at_the_start_and_not_used(
    catalogue: Catalogue, weights: WeightsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (weights.folder / "small.pth").write_bytes(CONTENT[::-1])
    weights.verify_new()
    assert "small.pth is not the official file" in caplog.text
    with pytest.raises(NotReady, match="not the official file"):
        catalogue.require_ready("weighty:small")


def test_a_segmenter_that_takes_long_to_load_is_loaded_once_and_holds_up_no_other(
    package: ModuleType, catalogue: Catalogue
) -> None:
    slow = plugins.load(package, "slow")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(catalogue.get, "slow") for _ in range(4)]
        assert slow.started.wait(10)
        assert catalogue.get("plain")
        slow.released.set()
        assert len({id(each.result(10)) for each in waiting}) == 1
    assert slow.loads == [1]


def test_our_own_folder_holds_the_default(weights: WeightsFolder) -> None:
    statuses = {status.name: status for status in Catalogue(segmenters, weights).statuses()}
    assert statuses["grabcut"].ready


ANNOTATOR = """
def variants(host):
    return {name: Variant() for name in host.segmenters.variants() if ":" in name}

def missing(variant, host):
    return "too large" if variant == "sized:large" else ""

def labels(variant, host):
    return (variant, "other")

def load(variant, host):
    return SimpleNamespace(name=f"over:{variant}", over=host.segmenters.get(variant), host=host)
"""


@pytest.fixture
def embeddings() -> Iterator[EmbeddingCache]:
    cache = EmbeddingCache(2**20)
    yield cache
    cache.close()


@pytest.fixture
def annotators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue, embeddings: EmbeddingCache
) -> AnnotatorCatalogue:
    name = f"annotators_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "over.py").write_text(NAMED + ANNOTATOR)
    (folder / "bereft.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    return AnnotatorCatalogue(importlib.import_module(name), catalogue, embeddings)


def test_annotators_are_listed_with_the_labels_that_they_give(annotators: AnnotatorCatalogue) -> None:
    assert annotators.statuses() == [
        AnnotatorStatus("bereft", False, "it needs the package a_package_that_nobody_has", ()),
        AnnotatorStatus("over:sized:large", False, "too large", ()),
        AnnotatorStatus("over:sized:small", True, "", ("sized:small", "other")),
        AnnotatorStatus("over:weighty:small", True, "", ("weighty:small", "other")),
    ]


@pytest.mark.parametrize("labels", ["def labels(variant, host): raise OSError", "labels = None", ""])
def test_an_annotator_that_cannot_say_its_labels_hides_no_other(
    labels: str, annotators: AnnotatorCatalogue, tmp_path: Path
) -> None:
    whole = annotators.statuses()
    (tmp_path / f"annotators_{tmp_path.name}" / "dumb.py").write_text(labels)
    (broken,) = [status for status in annotators.statuses() if status not in whole]
    assert (broken.name, broken.ready, broken.labels) == ("dumb", False, ())
    assert "broken" in broken.reason


def test_an_annotator_may_stand_on_a_segmenter_and_the_embeddings_of_clicks(
    annotators: AnnotatorCatalogue, embeddings: EmbeddingCache
) -> None:
    over: Any = annotators.get("over:sized:small")
    assert (over.over.name, over.host.embeddings) == ("sized:small", embeddings)
    assert annotators.get("over:sized:small") is over


def test_annotators_that_cannot_be_had_are_told_from_segmenters(annotators: AnnotatorCatalogue) -> None:
    with pytest.raises(NotReady, match="over:sized:large cannot run: too large"):
        annotators.get("over:sized:large")
    with pytest.raises(NotFound, match="there is no annotator 'plain'; installed: bereft, over"):
        annotators.get("plain")


def test_what_loading_would_make_first_can_be_made_ahead(
    package: ModuleType, weights: WeightsFolder, tmp_path: Path
) -> None:
    catalogue, said = Catalogue(package, weights, Runtimes(folder=tmp_path)), list[str]()
    assert catalogue.export("exported", lambda share, what: said.append(what))
    assert said == [f"exporting to {tmp_path}"]
    assert not catalogue.export("plain", lambda share, what: said.append(what))
    assert not Catalogue(package, weights).export("exported", lambda share, what: None)
    with pytest.raises(NotFound):
        catalogue.export("nothing", lambda share, what: None)


def test_a_plugin_is_given_what_it_may_use(
    package: ModuleType, weights: WeightsFolder, tmp_path: Path
) -> None:
    runtimes = Runtimes("onnxruntime", folder=tmp_path)
    exported: Any = Catalogue(package, weights, runtimes).get("exported")
    assert exported.host == Host(weights, runtimes)
    assert exported.host.threads == runtimes.cores


def test_the_checkpoints_of_a_folder_are_those_that_its_families_name(package: ModuleType) -> None:
    assert plugins.checkpoints(package) == {"weighty:small": CHECKPOINT, "lone": CHECKPOINT}


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ("raise OSError('/a/path/of/this/machine')", "odd cannot run: it is broken (OSError)"),
        ("import a_missing_package", "odd cannot run: it needs the package a_missing_package"),
        ("return SimpleNamespace(name='plain')", "the segmenter odd calls itself 'plain'"),
        ("return object()", "the segmenter odd calls itself 'None'"),
    ],
)
def test_a_plugin_that_does_not_load_itself_is_refused_by_its_name(
    load: str, reason: str, package: ModuleType, catalogue: Catalogue, tmp_path: Path
) -> None:
    (tmp_path / package.__name__ / "odd.py").write_text(f"{NAMED}def load(variant, host):\n    {load}\n")
    with pytest.raises(Failed) as failed:
        catalogue.get("odd")
    assert str(failed.value).startswith(reason)
    assert "/a/path" not in str(failed.value)
