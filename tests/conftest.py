from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from clickmask import annotators, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue, AnnotatorStatus
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.catalogue import Catalogue, SegmenterStatus
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.weights import WeightsFolder
from clickmask.ingest.inbox import Inbox
from clickmask.store import Store
from clickmask.types import Segmenter
from clickmask.workbench import Workbench
from support import postgresql
from support.fakes import DiscSegmenter, DrawnAnnotator

# Machines are shared: how long an example takes says nothing of the code.
hypothesis.settings.register_profile("clickmask", deadline=None)
hypothesis.settings.load_profile("clickmask")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker loads the published weights, once: that takes half a minute of the processor."""
    for item in items:
        if "published_mobile_sam" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("published weights"))


class OneSegmenter(Catalogue):
    """A catalogue in which one loaded segmenter stands beside what is installed."""

    def __init__(self, segmenter: Segmenter[Any]) -> None:
        super().__init__(segmenters, WeightsFolder(Path("no weights")))
        self._segmenter = segmenter
        self._loaded[segmenter.name] = segmenter

    def require(self, name: str) -> None:
        if name not in self._loaded:
            super().require(name)

    def require_ready(self, name: str) -> None:
        if name not in self._loaded:
            super().require_ready(name)

    def statuses(self) -> list[SegmenterStatus]:
        return [*super().statuses(), SegmenterStatus(self._segmenter.name, True, "")]


class OneAnnotator(AnnotatorCatalogue):
    """A catalogue in which one loaded annotator stands beside what is installed."""

    def __init__(self, annotator: DrawnAnnotator, segmenters: Catalogue, embeddings: EmbeddingCache) -> None:
        super().__init__(annotators, segmenters, embeddings)
        self._annotator = annotator
        self._loaded[annotator.name] = annotator

    def statuses(self) -> list[AnnotatorStatus]:
        drawn = AnnotatorStatus(self._annotator.name, True, "", self._annotator.labels)
        return [*super().statuses(), drawn]


@pytest.fixture(scope="session")
def published_mobile_sam(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MobileSAM with published weights, as it is served. Skips the test without them, and without torch."""
    pytest.importorskip("torch")
    from support.real_weights import load_mobile_sam

    return load_mobile_sam(tmp_path_factory.mktemp("published"))


@pytest.fixture
def drawn() -> DrawnAnnotator:
    return DrawnAnnotator()


@pytest.fixture
def disc() -> DiscSegmenter:
    return DiscSegmenter()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """In SQLite, or in a new schema of the database that CLICKMASK_TEST_POSTGRESQL names."""
    url = os.environ.get("CLICKMASK_TEST_POSTGRESQL")
    opened = Store(postgresql.new_schema(url) if url else tmp_path / "store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox.sqlite")


@pytest.fixture
def workbench(disc: DiscSegmenter, drawn: DrawnAnnotator, store: Store, inbox: Inbox) -> Iterator[Workbench]:
    bench = workbench_of(disc, drawn, store, inbox)
    yield bench
    bench.close()


def workbench_of(disc: DiscSegmenter, drawn: DrawnAnnotator, store: Store, inbox: Inbox) -> Workbench:
    """The real workbench over a segmenter that draws discs and an annotator that knows drawn scenes."""
    catalogue, embeddings = OneSegmenter(disc), EmbeddingCache(100 * 2**20, queue_length=4)
    return Workbench(
        catalogue,
        OneAnnotator(drawn, catalogue, embeddings),
        ImageSource(Fetcher()),
        embeddings,
        store,
        inbox,
        default_segmenter="disc",
        max_points=20,
        max_preparations=2,
    )
