"""Segment Anything (ViT-B) against the pattern of Label Studio's own example, over HTTP."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import psutil
import requests
from skimage import data

from checkpoints import VIT_B, write_checkpoint
from clickmask.masks import mask_iou
from clickmask.types import Mask
from clickmask_adapters.tools.label_studio.brush_rle import brush_rle_to_mask
from serve_checkpoint import TESTS, server_of
from served import Server

ROUNDS, BUDGET = 3, 330.0  # seconds, in which as many rounds are begun as will probably fit
PEER = ("-m", "benchmarks.peer")
USUAL, LARGE = (1024, 1024), (4000, 3000)  # width, height
POINTS = ((40, 30), (55, 45), (30, 60), (65, 70), (48, 52))  # percent
TOGETHER = 15.0  # seconds of a round in which two annotators click at the same time
SAME = 0.99  # IoU: a mask that is less like the quiet answer is of another image, or of none
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


@dataclass
class Tally:
    """What became of the clicks of two annotators at the same time."""

    waits: list[float] = field(default_factory=list)  # milliseconds, of the right answers
    failed: int = 0
    wrong: int = 0


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
        """On a connection of its own, as Label Studio's server sends it."""
        body = request(photo, at)
        started = time.perf_counter()
        answer = requests.post(f"{self._server.url}/predict", json=body, timeout=180)
        waited = 1000 * (time.perf_counter() - started)
        if answer.status_code != 200:
            return Said(waited, None, answer.text[:300])
        return Said(waited, answer.json()["results"][0]["result"][0]["value"]["rle"])

    def click_alone(self, photo: Photo, at: Place) -> float:
        """Milliseconds; the answer is remembered as the right one."""
        said = self.click(photo, at)
        assert said.rle is not None, f"a click failed with nobody else there: {said.failure}"
        self.quiet[photo, at] = said.rle
        return said.milliseconds

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


class Measurement:
    """Milliseconds by what was measured and on which side; the sides take turns."""

    def __init__(self, photos: Photos, ours: Side, peer: Side) -> None:
        self._photos = photos
        self.sides = {"ours": ours, "peer": peer}
        self.times: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.tallies = {"ours": Tally(), "peer": Tally()}
        self.rounds = 0

    def warm_up(self) -> None:
        """So that loading the model is nobody's first click."""
        photo = self._photos.new(USUAL)
        for side in self.sides.values():
            side.click_alone(photo, POINTS[0])

    def round(self) -> None:
        one, other, large = (self._photos.new(size) for size in (USUAL, USUAL, LARGE))
        for photo in (one, other):
            self._all("first click on an image", photo, POINTS[0])
            for at in POINTS[1:]:
                self._all("second click on it", photo, at)
        self._all("back to an earlier image", one, POINTS[1])
        self._many_clients(one)
        for name, side in self._in_turn():
            annotate(side, (one, other), TOGETHER, self.tallies[name])
        if not self.rounds:
            self._all("first click on an image of 12 Mpx", large, POINTS[0])
            for at in POINTS[1:]:
                self._all("second click on it, 12 Mpx", large, at)
        for name, side in self._in_turn():
            started = time.perf_counter()
            side.restart()
            waited = side.click_alone(one, POINTS[1])
            whole = 1000 * (time.perf_counter() - started)
            self.times["first click after a restart, image known", name].append(waited)
            self.times["the same, from the end of the process before", name].append(whole)
        self.agreement(one)
        self.rounds += 1

    def agreement(self, photo: Photo) -> None:
        """IoU of both servers' masks for one box, to which SAM has a single answer."""
        box = (25, 25, 50, 50)
        for side in self.sides.values():
            side.click_alone(photo, box)
        ours, peer = (side.mask(photo, box) for side in self.sides.values())
        self.times["box IoU", "both"].append(mask_iou(ours, peer))
        self.times["box share", "both"].append(float(ours.mean()))

    def _all(self, row: str, photo: Photo, at: Place) -> None:
        for name, side in self._in_turn():
            self.times[row, name].append(side.click_alone(photo, at))

    def _many_clients(self, photo: Photo) -> None:
        """The image is known to both, and the peer's last."""
        for name, side in self._in_turn():
            for clients in (1, 8):
                wanted = [POINTS[i % len(POINTS)] for i in range(4 * clients + 4)]
                with ThreadPoolExecutor(clients) as pool:
                    started = time.perf_counter()
                    said = list(pool.map(partial(side.click, photo), wanted))
                    seconds = time.perf_counter() - started
                row = f"{clients} client{'s' * (clients > 1)} on one known image"
                self.times[row, name] += [each.milliseconds for each in said]
                self.times[f"{row}: time a click", name].append(1000 * seconds / len(wanted))
                assert all(each.rle == side.quiet[photo, at] for each, at in zip(said, wanted, strict=True))

    def _in_turn(self) -> list[tuple[str, Side]]:
        """The other one first in every second round."""
        return list(self.sides.items())[:: -1 if self.rounds % 2 else 1]


def annotate(side: Side, photos: tuple[Photo, Photo], seconds: float, tally: Tally) -> None:
    """Two annotators, each on an image that was clicked on before, with half a second between clicks."""
    lock, end = threading.Lock(), time.perf_counter() + seconds

    def work(photo: Photo) -> None:
        for at in itertools.cycle(POINTS):
            if time.perf_counter() > end:
                return
            said = side.click(photo, at)
            right = said.rle is not None and (
                said.rle == side.quiet[photo, at]
                or mask_iou(brush_rle_to_mask(said.rle, photo.size[::-1]), side.mask(photo, at)) >= SAME
            )
            with lock:
                tally.failed += said.rle is None
                tally.wrong += said.rle is not None and not right
                tally.waits += [said.milliseconds] * right
            time.sleep(0.5)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, photos))


def main() -> str:
    with measuring() as measurement:
        measurement.warm_up()
        started = before = time.perf_counter()
        longest = 0.0
        while measurement.rounds < ROUNDS and before - started + longest < BUDGET:
            measurement.round()
            longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
    return report(measurement)


@contextmanager
def measuring() -> Iterator[Measurement]:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as until_the_end:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "sam_vit_b_random.pth", VIT_B)
        (folder / "photos").mkdir()
        photos = Photos(folder / "photos")
        until_the_end.callback(photos.close)
        peer_program = (*PEER, str(checkpoint))
        ours = Side(lambda: server_of(checkpoint, folder / "home", CLICKMASK_IMAGE_HOSTS=photos.host))
        until_the_end.callback(ours.stop)
        peer = Side(lambda: Server(folder, {"PYTHONPATH": str(TESTS)}, [], peer_program))
        until_the_end.callback(peer.stop)
        yield Measurement(photos, ours, peer)


def report(measurement: Measurement) -> str:
    times, sides = measurement.times, measurement.sides
    rows = dict.fromkeys(row for row, name in times if name == "ours")
    iou, (low, *_, high) = min(times["box IoU", "both"]), sorted(2 * times["box share", "both"])
    lines = [
        "The peer is written here from published packages (`peer.py`): one shared SamPredictor, a cache of",
        "one image, 8 threads, no lock, masks by label-studio-sdk's `mask2rle`. Same random checkpoint in",
        "the official format, same images by address, answers as brush; 1024x1024 where nothing is said.",
        f"Rounds: {measurement.rounds}; medians. Random weights say nothing about masks' quality. Both",
        f"compute the same: the masks for one box, {100 * low:.0f} to {100 * high:.0f} % of the image, have",
        f"an IoU of at least {iou:.4f}; the peer truncates coordinates and takes them half a pixel off.",
        "",
        "| | n | ours, ms | peer, ms | peer / ours |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours, peer = median(times[row, "ours"]), median(times[row, "peer"])
        lines.append(f"| {row} | {len(times[row, 'ours'])} | {ours:.0f} | {peer:.0f} | {peer / ours:.2f} |")
    peaks = [f"{side.peak / 2**20:.0f} MiB" for side in sides.values()]
    ratio = sides["peer"].peak / sides["ours"].peak
    lines.append(f"| most memory held | | {peaks[0]} | {peaks[1]} | {ratio:.2f} |")
    return "\n".join([*lines, "", *annotators(measurement)])


def annotators(measurement: Measurement) -> list[str]:
    ours, peer = (measurement.tallies[name] for name in ("ours", "peer"))
    waits = [f"{median(each.waits):.0f}" if each.waits else "-" for each in (ours, peer)]
    seconds = TOGETHER * measurement.rounds
    return [
        f"Two annotators on two known images at the same time, for {seconds:.0f} s, half a second between",
        f"clicks; wrong: IoU below {SAME} with the same server's answer when it was left alone.",
        "",
        "| | ours | peer |",
        "|---|---:|---:|",
        f"| right answers | {len(ours.waits)} | {len(peer.waits)} |",
        f"| wait for a right answer, median ms | {waits[0]} | {waits[1]} |",
        f"| HTTP 500 | {ours.failed} | {peer.failed} |",
        f"| wrong masks | {ours.wrong} | {peer.wrong} |",
    ]


if __name__ == "__main__":
    print(main())
