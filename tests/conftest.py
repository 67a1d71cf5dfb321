from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clickmask import segmenters
from clickmask.catalogue import Catalogue
from clickmask.embeddings import EmbeddingCache
from clickmask.fetch import Fetcher
from clickmask.image_source import ImageSource
from clickmask.inbox import Inbox
from clickmask.store import Store
from clickmask.weights import WeightsFolder
from clickmask.workbench import Workbench
from fakes import DiscSegmenter


class OneSegmenter(Catalogue):
    """A catalogue in which one loaded segmenter stands beside what is installed."""

    def __init__(self, segmenter: DiscSegmenter) -> None:
        super().__init__(segmenters, WeightsFolder(Path("no weights")))
        self._loaded[segmenter.name] = segmenter

    def require(self, name: str) -> None:
        if name not in self._loaded:
            super().require(name)


@pytest.fixture
def disc() -> DiscSegmenter:
    return DiscSegmenter()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox.sqlite")


@pytest.fixture
def workbench(disc: DiscSegmenter, store: Store, inbox: Inbox) -> Iterator[Workbench]:
    """The real workbench over a segmenter that draws discs."""
    bench = Workbench(
        OneSegmenter(disc),
        ImageSource(Fetcher()),
        EmbeddingCache(100 * 2**20, queue_length=4),
        store,
        inbox,
        default_segmenter="disc",
        max_points=20,
        max_preparations=2,
    )
    yield bench
    bench.close()
