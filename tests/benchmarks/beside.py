"""Two servers beside each other: ours, and the pattern of Label Studio's own example."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import psutil
from skimage import data

from clickmask.inference.sessions import Runtimes
from clickmask.segmenters import sam
from clickmask.types import Mask
from clickmask_adapters.tools.label_studio.shapes import brush_rle_to_mask
from support.checkpoints import VIT_B, weights_of, write_checkpoint
from support.hosts import host_of
from support.serve_checkpoint import TESTS, server_of
from support.served import Server
from support.waiting import until

PEER = ("-m", "benchmarks.peer")
DECODED = re.compile(r"decoded in (\d+) ms")
LABELS = '<Label value="Thing"/>'
CONFIG = f"""<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">{LABELS}
</BrushLabels><KeyPointLabels name="point" toName="image" smart="true">{LABELS}</KeyPointLabels>
<RectangleLabels name="box" toName="image" smart="true">{LABELS}</RectangleLabels></View>"""

Place = tuple[int, int] | tuple[int, int, int, int]  # percent: a point, or a box by its corner and lengths


@dataclass(frozen=True)
class Photo:
    address: str
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Said:
    milliseconds: float
    rle: list[int] | None  # None: not answered with status 200
    failure: str = ""


class Side:
    """One of the two servers, and the most memory that it has held."""

    def __init__(self, start: Callable[[], Server]) -> None:
        self._start = start
        self._server = start()
        self._stopped = threading.Event()
        self.peak = 0  # bytes
        self.quiet: dict[tuple[Photo, Place], list[int]] = {}  # answers while nobody else clicked
        threading.Thread(target=self._watch, daemon=True).start()

    def restart(self) -> None:
        self._server.stop()
        self._server = self._start()

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop()

    def click(self, photo: Photo, at: Place) -> Said:
        """On a connection of its own, as Label Studio's server sends it.

        Without the package requests, whose own work takes a millisecond or two.
        """
        body = json.dumps(request(photo, at))
        started = time.perf_counter()
        connection = HTTPConnection(self._server.url.removeprefix("http://"), timeout=600)
        with closing(connection):
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        waited = 1000 * (time.perf_counter() - started)
        if answer.status != 200:
            return Said(waited, None, said[:300].decode(errors="replace"))
        return Said(waited, json.loads(said)["results"][0]["result"][0]["value"]["rle"])

    def click_alone(self, photo: Photo, at: Place) -> float:
        """Milliseconds; the answer is remembered as the right one."""
        said = self.click(photo, at)
        assert said.rle is not None, f"a click failed with nobody else there: {said.failure}"
        self.quiet[photo, at] = said.rle
        return said.milliseconds

    def click_timed(self, photo: Photo, at: Place) -> tuple[float, int]:
        """As `click_alone`, and milliseconds of the mask decoder, as our server logs them."""
        before = len(DECODED.findall(self._server.output))
        waited = self.click_alone(photo, at)
        until(lambda: len(DECODED.findall(self._server.output)) > before)
        return waited, int(DECODED.findall(self._server.output)[-1])

    def mask(self, photo: Photo, at: Place) -> Mask:
        return brush_rle_to_mask(self.quiet[photo, at], photo.size[::-1])

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            try:
                self.peak = max(self.peak, psutil.Process(self._server.process.pid).memory_info().rss)
            except psutil.Error:  # between two starts
                continue


def request(photo: Photo, at: Place) -> dict[str, object]:
    """The body that Label Studio sends, without what neither server reads."""
    shape = dict(zip(("x", "y", "width", "height"), at, strict=False))
    kind, name = ("rectanglelabels", "box") if len(at) == 4 else ("keypointlabels", "point")
    mark = {
        "original_width": photo.size[0],
        "original_height": photo.size[1],
        "value": {**shape, kind: ["Thing"]},
        "is_positive": True,
        "id": "mark",
        "from_name": name,
        "to_name": "image",
        "type": kind,
    }
    return {
        "tasks": [{"id": 1, "data": {"image": photo.address}}],
        "project": "1.1795370196",
        "label_config": CONFIG,
        "params": {"context": {"result": [mark]}},
    }


class Photos:
    """A web server of photographs, each new one an image that nobody has seen."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = itertools.count()
        quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def new(self, size: tuple[int, int]) -> Photo:
        number = next(self._number)
        pixels = cv2.resize(
            np.roll(data.astronaut(), 37 * number, axis=1), size, interpolation=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(self._folder / f"{number}.jpg"), pixels[..., ::-1])
        return Photo(f"http://{self.host}/{number}.jpg", size)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def both() -> Iterator[tuple[Photos, dict[str, Side]]]:
    """Web server of photographs, and the sides `ours` and `peer` on the same checkpoint, in f32."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as until_the_end:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "sam_vit_b_random.pth", VIT_B)
        # Once for each checkpoint, so no part of a click: `clickmask weights fetch` does it.
        sam.export(
            "vit_b",
            host_of(weights_of(checkpoint), Runtimes(exact=True, folder=folder / "home" / "runtimes")),
        )
        (folder / "photos").mkdir()
        photos = Photos(folder / "photos")
        until_the_end.callback(photos.close)
        options = {"CLICKMASK_IMAGE_HOSTS": photos.host, "CLICKMASK_PRECISION": "f32"}
        peer_program = (*PEER, str(checkpoint))
        ours = Side(lambda: server_of(checkpoint, folder / "home", **options))
        until_the_end.callback(ours.stop)
        peer = Side(lambda: Server(folder, {"PYTHONPATH": str(TESTS)}, [], peer_program))
        until_the_end.callback(peer.stop)
        yield photos, {"ours": ours, "peer": peer}
