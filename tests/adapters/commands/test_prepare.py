from __future__ import annotations

import importlib
import io
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("torch")
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner, Result

from clickmask import annotators
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.caches import CacheFolder
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.disk_cache import SUFFIX, DiskEmbeddings
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.weights import WeightsFolder
from clickmask.ingest.inbox import Inbox
from clickmask.segmenters import sam
from clickmask.store import Store
from clickmask.types import Image, ImageRef, Prediction, Prompt, Segmenter
from clickmask.workbench import Workbench
from clickmask_adapters import cli, tools
from clickmask_adapters.commands import _console
from clickmask_adapters.commands.prepare import (
    MAX_CONCURRENT,
    Prepared,
    folder_images,
    follow,
    prepare_images,
)
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools import NamedImage
from clickmask_adapters.tools.label_studio import client
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.pull import project_images
from conftest import OneSegmenter
from support.checkpoints import TINY, weights_of, write_checkpoint
from support.fakes import DiscSegmenter
from support.hosts import host_of

BROKEN = "broken.png: the image is damaged, cut short, or of a kind that clickmask does not read"


class Kept:
    """An embedding that can be stored."""

    def __init__(self, channel: NDArray[np.uint8]) -> None:
        self.channel = channel

    @property
    def nbytes(self) -> int:
        return self.channel.nbytes

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {"channel": self.channel}


class StoredDisc:
    """The disc segmenter, with embeddings that can be stored."""

    def __init__(self) -> None:
        self._disc = DiscSegmenter()
        self.name = self._disc.name
        self.encoded = self._disc.encoded
        self.hold: threading.Event | None = None

    def encode(self, image: Image) -> Kept:
        self._disc.hold = self.hold
        return Kept(self._disc.encode(image))

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Kept:
        return Kept(arrays["channel"])

    def decode(self, embedding: Kept, prompt: Prompt) -> list[Prediction]:
        return self._disc.decode(embedding.channel, prompt)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five images, of which one is broken, and of what is none."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a ä#.JPG", "inner/c.webp", "d.tiff"]):
        PIL.Image.fromarray(np.full((30, 40, 3), 50 * number, np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    (folder / "._b.png").write_bytes(b"what macOS leaves behind")
    (folder / "folder.png").mkdir()
    return folder


@pytest.fixture
def open_bench(tmp_path: Path, photos: Path) -> Callable[..., Workbench]:
    """Opens a workbench, as a new process would, whose store is in the same folder each time."""

    def open_it(segmenter: Segmenter[Any], capacity: int = 2**20) -> Workbench:
        catalogue = OneSegmenter(segmenter)
        weights = WeightsFolder(tmp_path / "weights")
        folder = CacheFolder(tmp_path / "embeddings", SUFFIX, capacity)
        disk = DiskEmbeddings(folder, catalogue.get, weights)
        embeddings = EmbeddingCache(2**20, queue_length=4, patience=0.2, disk=disk)
        return Workbench(
            catalogue,
            AnnotatorCatalogue(annotators, catalogue, embeddings),
            ImageSource(Fetcher(roots=[photos])),
            embeddings,
            Store(tmp_path / "store.sqlite"),
            Inbox(tmp_path / "inbox.sqlite"),
            default_segmenter="disc",
        )

    return open_it


@pytest.fixture
def prepare(
    open_bench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """`clickmask prepare` with a segmenter of ours."""

    def run(segmenter: Segmenter[Any], *arguments: str, capacity: int = 2**20) -> Result:
        def with_our_bench(settings: Settings) -> Home:
            return Home(settings, open_bench(segmenter, capacity))

        monkeypatch.setattr(_console, "Home", with_our_bench)
        environment = {"CLICKMASK_HOME": str(tmp_path), "CLICKMASK_SEGMENTER": "disc"}
        return CliRunner().invoke(cli.app, ["prepare", *arguments], env=environment)

    return run


def test_images_of_a_folder_are_found_by_their_names(photos: Path) -> None:
    names = ["a ä#.JPG", "b.png", "broken.png", "d.tiff", "inner/c.webp"]
    assert [image.name for image in folder_images(photos)] == names


def test_a_folder_is_prepared_and_then_skipped(photos: Path, prepare: Callable[..., Result]) -> None:
    first, second = StoredDisc(), StoredDisc()
    result = prepare(first, str(photos))
    assert result.exit_code == 1  # one image is broken
    assert "4 encoded, 0 there already, 1 failed" in result.stdout
    assert BROKEN in result.stderr
    assert len(first.encoded) == 4
    (photos / "broken.png").unlink()
    result = prepare(second, str(photos))  # as after a restart
    assert result.exit_code == 0
    assert "0 encoded, 4 there already, 0 failed" in result.stdout
    assert second.encoded == []


def test_a_click_on_a_prepared_image_encodes_nothing(
    photos: Path, prepare: Callable[..., Result], open_bench: Callable[..., Workbench]
) -> None:
    prepare(StoredDisc(), str(photos))
    disc = StoredDisc()
    bench = open_bench(disc)
    bench.propose(ImageRef((photos / "b.png").as_uri()), Prompt(foreground=((20, 15),)))
    bench.close()
    assert disc.encoded == []


def test_segment_anything_prepares_a_folder_and_encodes_nothing_after(
    photos: Path, prepare: Callable[..., Result], open_bench: Callable[..., Workbench], tmp_path: Path
) -> None:
    (photos / "broken.png").unlink()
    (tmp_path / "official").mkdir()
    weights = weights_of(write_checkpoint(tmp_path / "official" / "tiny.pth", TINY))
    options = str(photos), "--segmenter", "sam:vit_b"
    result = prepare(sam.load("vit_b", host_of(weights)), *options, capacity=2**24)
    assert result.exit_code == 0
    assert "4 encoded, 0 there already, 0 failed" in result.stdout
    again = sam.load("vit_b", host_of(weights))
    result = prepare(again, *options, capacity=2**24)
    assert "0 encoded, 4 there already, 0 failed" in result.stdout
    bench = open_bench(again, capacity=2**24)
    assert bench.encode(ImageRef((photos / "b.png").as_uri()), "sam:vit_b")
    (first, *_) = bench.propose(
        ImageRef((photos / "b.png").as_uri()), Prompt(foreground=((20, 15),)), "sam:vit_b"
    )
    assert first.prediction.mask.shape == (30, 40)
    bench.close()


def test_an_image_whose_embedding_cannot_be_stored_failed(
    photos: Path, prepare: Callable[..., Result]
) -> None:
    (photos / "broken.png").unlink()
    result = prepare(StoredDisc(), str(photos), capacity=100)
    assert result.exit_code == 1
    assert "0 encoded, 0 there already, 4 failed" in result.stdout
    assert "b.png: its embedding is not stored" in result.stderr


def test_a_segmenter_whose_embeddings_are_not_stored_has_nothing_to_prepare(
    photos: Path, prepare: Callable[..., Result]
) -> None:
    result = prepare(DiscSegmenter(), str(photos))
    assert result.exit_code == 1
    assert "embeddings of disc are not stored, so there is nothing to prepare" in result.stderr


def test_a_store_that_is_full_is_said(photos: Path, prepare: Callable[..., Result], tmp_path: Path) -> None:
    (photos / "broken.png").unlink()
    assert "raise CLICKMASK_DISK_BYTES" not in prepare(StoredDisc(), str(photos)).stderr
    full = sum(path.stat().st_size for path in (tmp_path / "embeddings").iterdir())
    result = prepare(StoredDisc(), str(photos), capacity=full)
    assert "raise CLICKMASK_DISK_BYTES" in result.stderr
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["label-studio"], "a project has a number"),
        (["nowhere", "1"], "there is no tool 'nowhere'"),
    ],
)
def test_what_is_neither_a_folder_nor_a_project_is_refused(
    arguments: list[str], said: str, prepare: Callable[..., Result]
) -> None:
    result = prepare(StoredDisc(), *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_an_empty_folder_is_refused(tmp_path: Path, prepare: Callable[..., Result]) -> None:
    (tmp_path / "empty").mkdir()
    result = prepare(StoredDisc(), str(tmp_path / "empty"))
    assert result.exit_code == 1
    assert "there is no image here" in result.stderr


def test_an_encode_that_takes_longer_than_a_click_may_wait_is_waited_for(
    photos: Path, open_bench: Callable[..., Workbench]
) -> None:
    disc = StoredDisc()
    disc.hold = threading.Event()
    bench = open_bench(disc)  # clicks wait for 0.2 s
    threading.Timer(0.6, disc.hold.set).start()
    (one,) = prepare_images(bench, folder_images(photos)[:1], "disc")
    bench.close()
    assert one == Prepared("a ä#.JPG", was_there=False)


def test_a_segmenter_that_breaks_costs_its_image_only(
    photos: Path, open_bench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    disc = StoredDisc()
    encode = disc.encode

    def broken(image: Image) -> Kept:
        if not disc.encoded:
            disc.encoded.append("")
            raise RuntimeError("the network broke")
        return encode(image)

    monkeypatch.setattr(disc, "encode", broken)
    bench = open_bench(disc)
    done = list(prepare_images(bench, [*folder_images(photos)[:2], *folder_images(photos)[3:]], "disc"))
    bench.close()
    assert sorted(image.error for image in done) == ["", "", "", "the network broke"]


def test_an_interrupt_ends_it_at_once_and_what_was_encoded_stays(
    photos: Path, open_bench: Callable[..., Workbench]
) -> None:
    (photos / "broken.png").unlink()
    disc = StoredDisc()
    bench = open_bench(disc)
    prepared = prepare_images(bench, folder_images(photos), "disc")

    def interrupted() -> Generator[Prepared]:
        yield next(prepared)
        prepared.close()
        raise KeyboardInterrupt

    out, err = io.StringIO(), io.StringIO()
    assert not follow(interrupted(), 4, Console(file=out), Console(file=err))
    bench.close()
    assert out.getvalue().startswith("1 encoded, 0 there already, 0 failed")
    assert "interrupted" in err.getvalue()
    assert 1 <= len(disc.encoded) <= 1 + MAX_CONCURRENT
    again = StoredDisc()
    bench = open_bench(again)
    rest = list(prepare_images(bench, folder_images(photos), "disc"))
    bench.close()
    assert sum(image.was_there for image in rest) == len(disc.encoded)
    assert len(again.encoded) == 4 - len(disc.encoded)


def test_few_images_are_read_ahead(photos: Path, open_bench: Callable[..., Workbench]) -> None:
    located: list[int] = []

    def locate(number: int) -> ImageRef:
        located.append(number)
        return ImageRef((photos / "b.png").as_uri())

    bench = open_bench(StoredDisc())
    wanted = [NamedImage(str(number), lambda number=number: locate(number)) for number in range(50)]
    prepared = prepare_images(bench, wanted, "disc")
    for _ in range(3):
        next(prepared)
    time.sleep(0.1)
    assert len(located) <= 3 + MAX_CONCURRENT
    prepared.close()
    bench.close()


A_TOOL = """
from pathlib import Path

from clickmask.types import ImageRef
from clickmask_adapters.tools import NamedImage, Tool


class Shelf(Tool):
    name = "photo_shelf"

    def images(self, project):
        for path in sorted(Path(project).glob("b*.png")):
            yield NamedImage(path.name, lambda path=path: ImageRef(path.as_uri()))


class Shop(Tool):
    name = "shop"


def create(home):
    return Shelf() if __name__.endswith("photo_shelf") else Shop()
"""


def test_every_tool_that_lists_its_images_can_be_prepared(
    photos: Path, prepare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A tool is one file in the folder of the tools; nothing else knows of it."""
    for name in ("photo_shelf", "shop"):
        (tmp_path / f"{name}.py").write_text(A_TOOL)
    monkeypatch.setattr(tools, "__path__", [*tools.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    result = prepare(StoredDisc(), "photo-shelf", str(photos))
    assert "1 encoded, 0 there already, 1 failed" in result.stdout
    assert BROKEN in result.stderr
    refused = prepare(StoredDisc(), "shop", "1")
    assert (refused.exit_code, refused.stderr) == (1, "shop's images cannot be listed\n")


class PagesOfTasks(LabelStudioClient):
    """Answers as Label Studio does: pages of at most 100, a 404 behind the last."""

    def __init__(self, count: int) -> None:
        super().__init__("http://labels.example", "key")
        self.rows = [{"id": 7 + number, "data": self.data(number)} for number in range(count)]
        self.pages = 0

    @staticmethod
    def data(number: int) -> dict[str, Any]:
        if number == 1:
            return {"text": "no image"}
        return {"image": f"/data/upload/1/{number}.png"}

    def project(self, project: int) -> dict[str, Any]:
        return {"label_config": '<View><Image name="image" value="$image"/></View>'}

    def ask(self, method: str, path: str, **request: Any) -> Any:
        page, size = request["params"]["page"], min(request["params"]["page_size"], 100)
        start = (page - 1) * size
        assert page == 1 or start < len(self.rows), "404"
        self.pages += 1
        return {"tasks": self.rows[start : start + size], "total": len(self.rows)}


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (1, 1), (100, 1), (250, 3)])
def test_every_task_of_a_project_is_listed_once(count: int, pages: int) -> None:
    client = PagesOfTasks(count)
    assert [task["id"] for task in client.all_tasks(1)] == [7 + number for number in range(count)]
    assert client.pages == pages


def test_a_project_gives_its_images_and_leaves_out_tasks_without() -> None:
    images = list(project_images(PagesOfTasks(3), "1"))
    assert [image.name for image in images] == ["task 7", "task 9"]
    ref = images[1].locate()
    assert ref.uri == "http://labels.example/data/upload/1/2.png"
    assert ref.headers == {"Authorization": "Token key"}


def test_a_project_is_prepared_with_its_own_segmenter(
    photos: Path, prepare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(client, "client_of", lambda _: PagesOfTasks(1))
    monkeypatch.setattr(PagesOfTasks, "data", lambda *_: {"image": (photos / "b.png").as_uri()})
    monkeypatch.setattr(LabelStudioClient, "image_ref", lambda _, task, uri: ImageRef(uri))
    result = prepare(StoredDisc(), "label-studio", "1")
    assert (result.exit_code, "1 encoded" in result.stdout) == (0, True)
    store.set_project_segmenter("label_studio", "1", "grabcut")
    result = prepare(StoredDisc(), "label-studio", "1")
    assert result.exit_code == 1
    assert "embeddings of grabcut are not stored" in result.stderr
