"""10,000 clicks on 500 images: the memory of the server over time.

The segmenter is the cheapest, and the caches are smaller than the images, so that all that comes goes
again: what would grow is what a click leaves behind.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import cv2
import numpy as np
import psutil
from skimage import data

from benchmarks.goals import Goal, Section
from support.served import Server, serving

CLICKS, IMAGES, CLIENTS = 10_000, 500, 4
SETTLED = 2000  # clicks after which caches are full, and connections and threads are there
EVERY = 1000
LONGEST = 600.0  # seconds
SIZES = [(320, 240), (240, 320), (400, 300), (256, 256), (480, 360)]  # width, height
CACHES = {"CLICKMASK_IMAGE_BYTES": "16000000", "CLICKMASK_EMBEDDING_BYTES": "16000000"}


def photograph(number: int) -> tuple[str, tuple[int, int]]:
    """The number-th image, base64, and its size."""
    size = SIZES[number % len(SIZES)]
    pixels = cv2.resize(np.roll(data.astronaut(), number, axis=1), size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()).decode(), size


class Soak:
    """Clicks on every image in turn, by a few clients."""

    def __init__(self, server: Server) -> None:
        self._address = server.url.removeprefix("http://")
        self._process = psutil.Process(server.process.pid)
        self._photographs = [photograph(number) for number in range(IMAGES)]
        self._mine = threading.local()
        self._started = time.perf_counter()

    def click(self, number: int) -> None:
        """On one connection a thread."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = HTTPConnection(self._address, timeout=60)
        image, (width, height) = self._photographs[number % IMAGES]
        share = 0.2 + 0.6 * (number // IMAGES % 20) / 20  # another place each time round
        asked = {
            "image": {"data": image},
            "prompt": {"foreground": [[share * width, 0.4 * height]]},
            "segmenter": "threshold",
            "want": ["rle"],
        }
        self._mine.connection.request(
            "POST", "/v1/proposals", json.dumps(asked), {"Content-Type": "application/json"}
        )
        answer = self._mine.connection.getresponse()
        said = answer.read()
        assert answer.status == 200, said

    def run(self) -> Iterator[tuple[int, float, float, int]]:
        """After every EVERY clicks: how many, seconds, MiB that the server holds, and its threads."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for end in range(EVERY, CLICKS + 1, EVERY):
                list(pool.map(self.click, range(end - EVERY, end)))
                seconds = time.perf_counter() - self._started
                held = self._process.memory_info().rss / 2**20
                yield end, seconds, held, self._process.num_threads()
                if seconds * (end + EVERY) / end > LONGEST:
                    return


def main() -> Section:
    with tempfile.TemporaryDirectory() as home, serving(Path(home), **CACHES) as server:
        rows = list(Soak(server).run())
    settled = next((held for clicks, _, held, _ in rows if clicks >= SETTLED), rows[0][2])
    lines = [
        f"{CLIENTS} clients, images of {SIZES[0][0]}x{SIZES[0][1]} to {SIZES[-1][0]}x{SIZES[-1][1]} sent anew"
        " with every click; caches of",
        f"16 MB each in memory and the embeddings on the disk. {rows[-1][0]} clicks were made"
        f" in {rows[-1][1]:.0f} s.",
        "",
        "| clicks | seconds | resident set, MiB | threads |",
        "|---:|---:|---:|---:|",
        *(
            f"| {clicks} | {seconds:.0f} | {held:.0f} | {threads} |"
            for clicks, seconds, held, threads in rows
        ),
    ]
    name = f"{rows[-1][0]} clicks on {IMAGES} images: memory at the end / after {SETTLED}"
    return Section("\n".join(lines), [Goal(name, rows[-1][2] / settled, 1.1, 1.03)])


if __name__ == "__main__":
    print(main().text)
