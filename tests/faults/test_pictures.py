"""Four of the largest pictures at once: a server answers them, or says that it is busy, in 1.5 GB."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
import requests

from clickmask.models.versions import ProjectModels
from support.model_drafts import draft
from support.serve_checkpoint import server_of
from support.served import Server, serving

pytestmark = pytest.mark.faults

WIDTH, HEIGHT = 10_000, 9_990
MAX_BYTES = 1.5e9  # above the idle server


def _grey(dtype: type) -> PIL.Image.Image:
    values = np.zeros((HEIGHT, WIDTH), dtype)
    values[4000:6000, 4000:6000] = 200
    return PIL.Image.fromarray(values)


def _palette() -> PIL.Image.Image:
    image = _grey(np.uint8).convert("P")
    image.putpalette([255, 255, 255, 255, 0, 0] + [0] * 762)
    return image


DEFLATED = {"compression": "tiff_adobe_deflate"}
KINDS: dict[str, tuple[Callable[[], PIL.Image.Image], str, dict[str, object]]] = {
    "16 bit png": (lambda: _grey(np.uint16), "PNG", {}),
    "16 bit tiff": (lambda: _grey(np.uint16), "TIFF", DEFLATED),
    "float tiff": (lambda: _grey(np.float32), "TIFF", DEFLATED),
    "float tiff of one strip": (lambda: _grey(np.float32), "TIFF", DEFLATED | {"tiffinfo": {278: HEIGHT}}),
    "palette with alpha": (_palette, "PNG", {"transparency": bytes([0, 128])}),
    "rgba png": (lambda: _grey(np.uint8).convert("RGBA"), "PNG", {}),
    "cmyk jpeg": (lambda: _grey(np.uint8).convert("CMYK"), "JPEG", {}),
    "progressive jpeg": (
        lambda: _grey(np.uint8).convert("RGB"),
        "JPEG",
        {"progressive": True, "subsampling": 0},
    ),
    "progressive cmyk jpeg": (lambda: _grey(np.uint8).convert("CMYK"), "JPEG", {"progressive": True}),
    "webp": (lambda: _grey(np.uint8).convert("RGB"), "WEBP", {"lossless": True, "method": 0}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        _load(running)
        yield running


@pytest.fixture(scope="module")
def idle(server: Server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def _load(server: Server) -> None:
    """Let the server load all that a click needs."""
    image = io.BytesIO()
    PIL.Image.fromarray(np.eye(200, dtype=np.uint8) * 255).save(image, "PNG")
    assert _click(server, image.getvalue(), (100, 100)).status_code == 200


def _click(
    server: Server, raw: bytes, point: tuple[float, float], segmenter: str | None = None
) -> requests.Response:
    asked = {"image": {"data": base64.b64encode(raw).decode()}, "prompt": {"foreground": [point]}}
    asked |= {"segmenter": segmenter} if segmenter else {}
    return requests.post(f"{server.url}/v1/proposals", json=asked, timeout=300)


def _annotate(server: Server, raw: bytes, annotator: str) -> requests.Response:
    asked = {"image": {"data": base64.b64encode(raw).decode()}, "annotator": annotator}
    return requests.post(f"{server.url}/v1/annotations", json=asked, timeout=600)


def _file(image: PIL.Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _ask_at_once(
    server: Server, idle: int, said: str, raw: bytes, ask: Callable[[bytes], requests.Response]
) -> list[requests.Response]:
    """Four answers about four pictures, at once; the server stayed within its memory."""
    process, ended = psutil.Process(server.process.pid), threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:  # what follows a picture makes it another file
        answers = list(pool.map(ask, [raw + bytes(number) for number in range(4)]))
    ended.set()
    watcher.join()
    found = [answer.status_code for answer in answers]
    print(f"{said}: {(peak - idle) / 1e6:.0f} MB above {idle / 1e6:.0f} MB, {found}")
    assert peak - idle < MAX_BYTES
    assert set(found) <= {200, 413, 503}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
    assert 200 in found or set(found) == {413}
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_four_large_pictures_at_once_take_little_memory(kind: str, server: Server, idle: int) -> None:
    make, form, options = KINDS[kind]
    raw = _file(make(), form, **options)
    _ask_at_once(server, idle, kind, raw, lambda each: _click(server, each, (WIDTH / 2, HEIGHT / 2)))


def _squares() -> PIL.Image.Image:
    """Red, with 400 blue squares."""
    values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    values[..., 0] = 250
    rows, columns = (np.arange(length) % 500 < 200 for length in (HEIGHT, WIDTH))
    values[np.ix_(rows, columns)] = (0, 0, 250)
    return PIL.Image.fromarray(values)


@pytest.mark.parametrize("segmenter", ["builtin", "grabcut", "contours", "region_growing", "threshold"])
def test_no_segmenter_takes_more_memory(segmenter: str, server: Server) -> None:
    raw = _file(_squares(), "PNG", compress_level=1)
    idle = psutil.Process(server.process.pid).memory_info().rss
    for said in ("cold", "warm"):
        ask = partial(_click, server, point=(100, 100), segmenter=segmenter)
        _ask_at_once(server, idle, f"{segmenter}, {said}", raw, ask)


@pytest.mark.parametrize("segmenter", ["sam:vit_b", "efficient_sam:vit_t"])
def test_no_network_takes_more_memory(segmenter: str, tmp_path: Path) -> None:
    """Nor does what labels all of an image with it."""
    pytest.importorskip("torch")
    from support.checkpoints import TINY, write_checkpoint
    from support.efficient_sam_networks import write_efficient_sam

    if segmenter.startswith("sam"):
        files = [write_checkpoint(tmp_path / "sam.pth", TINY)]
    else:
        files = [tmp_path / each.file for each in write_efficient_sam(tmp_path).files]
    raw = _file(_squares(), "PNG", compress_level=1)
    running = server_of(files[0], tmp_path / "home", *files[1:], segmenter=segmenter)
    try:
        _load(running)
        idle = psutil.Process(running.process.pid).memory_info().rss
        for said in ("cold", "warm"):
            _ask_at_once(
                running, idle, f"{segmenter}, {said}", raw, partial(_click, running, point=(100, 100))
            )
        if segmenter.startswith("sam"):
            everything = f"everything:{segmenter}"
            _ask_at_once(running, idle, everything, raw, partial(_annotate, running, annotator=everything))
    finally:
        running.stop()


@pytest.mark.parametrize("refine", ["0", "1"])
def test_no_trained_model_takes_more_memory(refine: str, tmp_path: Path) -> None:
    kept = ProjectModels(tmp_path / "models").of("cvat", "3")
    kept.promote(kept.save(draft(10.0)).id)
    raw = _file(_squares(), "PNG", compress_level=1)
    name = "trained:cvat-3"
    with serving(tmp_path, CLICKMASK_REFINE=refine) as running:
        small = _file(PIL.Image.new("RGB", (200, 200), "blue"), "PNG")
        assert _annotate(running, small, name).status_code == 200
        idle = psutil.Process(running.process.pid).memory_info().rss
        ask = partial(_annotate, running, annotator=name)
        answers = _ask_at_once(running, idle, f"{name}, refine={refine}", raw, ask)
        for answer in answers:
            if answer.status_code == 200:
                assert [each["label"] for each in answer.json()["objects"]].count("nucleus") == 400


def test_the_memory_of_a_header_that_lies_is_not_taken(server: Server, tmp_path: Path) -> None:
    """Pillow takes a WebP's canvas, and the first frame of a GIF, when it opens the file."""
    control, frame = b"!\xf9\x04\x08\0\0\0\0", b",\0\0\0\0" + b"\xff" * 4 + b"\0\x02\0"
    raw = b"GIF89a\4\0\4\0\x80\0\0" + bytes(6) + control + frame
    process = psutil.Process(server.process.pid)
    idle = process.memory_info().rss
    assert _click(server, raw, (1, 1)).status_code == 413
    assert process.memory_info().rss - idle < 100e6
