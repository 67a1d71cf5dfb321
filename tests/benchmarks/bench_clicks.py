"""A click over HTTP, with GrabCut: the first on an image against the next, one client against eight."""

from __future__ import annotations

import base64
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
from skimage import data

from support.served import Server, serving

ROUNDS = 7
SIZES = {"512x512": (512, 512), "12 Mpx": (4000, 3000)}  # width, height


def photograph(size: tuple[int, int], shade: int) -> bytes:
    """A JPEG of the astronaut at this size; another `shade` is another image."""
    pixels = cv2.resize(data.astronaut(), size, interpolation=cv2.INTER_CUBIC)
    pixels[:4, :4] = shade
    return cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()


def timed(ask: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and the answer."""
    started = time.perf_counter()
    answer = ask()
    return 1000 * (time.perf_counter() - started), answer


class Annotator:
    def __init__(self, server: Server, size: tuple[int, int]) -> None:
        self._url, self._size = server.url + "/v1/proposals", size
        self._session = requests.Session()

    def click(self, image: dict[str, str], at: tuple[float, float] = (0.42, 0.28)) -> dict[str, Any]:
        width, height = self._size
        body = {
            "image": image,
            "prompt": {"foreground": [[at[0] * width, at[1] * height]]},
            "want": ["polygons"],
        }
        answer = self._session.post(self._url, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


def first_and_second(server: Server, name: str) -> str:
    annotator, size = Annotator(server, SIZES[name]), SIZES[name]
    first, again, named = [], [], []
    for shade in range(ROUNDS):
        image = {"data": base64.b64encode(photograph(size, shade * 9)).decode()}
        milliseconds, answer = timed(lambda image=image: annotator.click(image))
        first.append(milliseconds)
        again.append(timed(lambda image=image: annotator.click(image))[0])
        digest = {"digest": answer["image"]["digest"]}
        named.append(timed(lambda digest=digest: annotator.click(digest))[0])
    one, two, three = map(statistics.median, (first, again, named))
    return f"| {name} | {one:.0f} | {two:.0f} | {three:.0f} | {one / two:.1f} | {one / three:.1f} |"


def one_and_eight(server: Server, name: str) -> str:
    digest = Annotator(server, SIZES[name]).click(
        {"data": base64.b64encode(photograph(SIZES[name], 0)).decode()}
    )
    image = {"digest": digest["image"]["digest"]}
    rng, per_client = np.random.default_rng(0), 6
    points = [tuple(point) for point in rng.uniform(0.3, 0.7, (8 * per_client, 2))]
    mine = threading.local()

    def click(point: tuple[float, float]) -> float:
        if not hasattr(mine, "annotator"):
            mine.annotator = Annotator(server, SIZES[name])
        return timed(lambda: mine.annotator.click(image, point))[0]

    rates, waits = {1: [], 8: []}, {1: [], 8: []}
    for _ in range(3):
        for clients in (1, 8):
            with ThreadPoolExecutor(clients) as pool:
                started = time.perf_counter()
                waits[clients] += list(pool.map(click, points[: clients * per_client]))
                rates[clients].append(clients * per_client / (time.perf_counter() - started))
    row = [f"{statistics.median(waits[n]):.0f} | {statistics.median(rates[n]):.1f}" for n in (1, 8)]
    gain = statistics.median(rates[8]) / statistics.median(rates[1])
    return f"| {name} | {row[0]} | {row[1]} | {gain:.2f} |"


def main() -> str:
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server:
        seconds = [first_and_second(server, name) for name in SIZES]
        clients = [one_and_eight(server, name) for name in SIZES]
    return "\n".join(
        [
            f"Medians of {ROUNDS} images; the answer is polygons. GrabCut barely has an encoder: what the",
            "second click saves is decoding and reducing the image; GrabCut's own work is in every click.",
            "",
            "| image | first, ms | same bytes, ms | by digest, ms | first / same bytes | first / digest |",
            "|---|---|---|---|---|---|",
            *seconds,
            "",
            "| image | 1 client: median ms | clicks/s | 8 clients: median ms | clicks/s | clicks/s, 8 / 1 |",
            "|---|---|---|---|---|---|",
            *clients,
        ]
    )


if __name__ == "__main__":
    print(main())
