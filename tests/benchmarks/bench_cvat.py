"""A click from CVAT through the gateway: the first on an image and the next, and both kinds of reply."""

from __future__ import annotations

import base64
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import orjson
import requests

from benchmarks.bench_clicks import photograph, timed
from clickmask_adapters.tools.cvat import prompts
from clickmask_adapters.tools.cvat.mask_points import mask_to_dense_reply, mask_to_points
from support.cvat_standin import Cvat
from support.served import Server, serving

ROUNDS = 5
SIZES = {"1 Mpx": (1155, 866), "12 Mpx": (4000, 3000)}  # width, height
SHAPES, DENSE = "2.73.0", "2.59.0"


class Requests:
    """What CVAT uses: a new session for each of its requests."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, url: str, *, headers: dict[str, str]) -> requests.Response:
        return requests.get(self._url + url, headers=headers, timeout=120)

    def post(self, url: str, *, content: bytes, headers: dict[str, str]) -> requests.Response:
        return requests.post(self._url + url, data=content, headers=headers, timeout=120)


def clicks(server: Server, name: str) -> str:
    """Without a prompt, all but the segmenter's own work is done; with one, the segmenter's too."""
    (width, height), cvat = SIZES[name], Cvat(Requests(server.url), SHAPES)
    first, again, nothing = [], [], []
    for shade in range(ROUNDS):
        image, at = photograph((width, height), shade * 9), [[0.42 * width, 0.28 * height]]
        first.append(timed(lambda image=image, at=at: cvat.click("clickmask-grabcut", image, at))[0])
        again.append(timed(lambda image=image, at=at: cvat.click("clickmask-grabcut", image, at))[0])
        nothing.append(timed(lambda image=image: cvat.click("clickmask-grabcut", image))[0])
    one, two, three = map(statistics.median, (first, again, nothing))
    megabytes = len(image) * 4 / 3e6
    return f"| {name} | {megabytes:.1f} | {one:.0f} | {two:.0f} | {one / two:.1f} | {three:.0f} |"


def replies(server: Server, name: str) -> str:
    width, height = SIZES[name]
    image, corners = (
        photograph((width, height), 200),
        [[0.3 * width, 0.1 * height], [0.6 * width, 0.6 * height]],
    )
    sizes, waits = {}, {SHAPES: [], DENSE: []}
    for _ in range(ROUNDS + 1):
        for version in waits:
            payload = payload_of(image, corners)
            cvat = Cvat(Requests(server.url), version)
            waited, answer = timed(
                lambda cvat=cvat, payload=payload: cvat.invoke("clickmask-grabcut", payload)
            )
            sizes[version] = len(answer.content)
            waits[version].append(waited)
    small, large = (statistics.median(waits[version][1:]) for version in (SHAPES, DENSE))
    return (
        f"| {name} | {sizes[SHAPES] / 1e3:.1f} | {sizes[DENSE] / 1e3:.0f} | "
        f"{sizes[DENSE] / sizes[SHAPES]:.0f} | {small:.0f} | {large:.0f} |"
    )


def payload_of(image: bytes, corners: list[list[float]]) -> bytes:
    encoded = base64.b64encode(image).decode()
    return json.dumps({"image": encoded, "pos_points": [], "neg_points": [], "obj_bbox": corners}).encode()


def writing(name: str) -> str:
    """What it takes to write one mask, in this process."""
    width, height = SIZES[name]
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 4), 20, 0, 360, 1, -1)
    chosen = mask.astype(bool)
    ways = {
        "runs": lambda: orjson.dumps(mask_to_points(chosen)),
        "dense": lambda: mask_to_dense_reply(chosen),
        "orjson": lambda: orjson.dumps({"mask": mask}, option=orjson.OPT_SERIALIZE_NUMPY),
    }
    found = {way: statistics.median(timed(write)[0] for _ in range(ROUNDS)) for way, write in ways.items()}
    started = time.perf_counter()
    json.dumps({"mask": mask.tolist()})
    slow = 1000 * (time.perf_counter() - started)
    row = " | ".join(f"{found[way]:.1f}" for way in ways)
    by_hand = found["dense"]
    return f"| {name} | {row} | {slow:.0f} | {found['orjson'] / by_hand:.1f} | {slow / by_hand:.0f} |"


def reading(name: str) -> str:
    """What it takes to find the image in a request."""
    body = payload_of(photograph(SIZES[name], 0), [])
    found, parsed = (
        statistics.median(timed(lambda read=read: read(body))[0] for _ in range(ROUNDS))
        for read in (prompts.split_image, orjson.loads)
    )
    return f"| {name} | {len(body) / 1e6:.1f} | {found:.2f} | {parsed:.2f} | {parsed / found:.0f} |"


def main() -> str:
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server:
        clicked = [clicks(server, name) for name in SIZES]
        replied = [replies(server, name) for name in SIZES]
    return "\n".join(
        [
            f"Medians of {ROUNDS} images with GrabCut; CVAT sends each image whole with each click, and asks",
            "for the function before. A click without a prompt is all of it but GrabCut's own work.",
            "",
            "| image | request, MB | first click, ms | second, ms | first / second | without a prompt, ms |",
            "|---|---|---|---|---|---|",
            *clicked,
            "",
            "The reply to a box on a known image, as CVAT since 2.60 and before takes it:",
            "",
            "| image | shapes, kB | dense, kB | dense / shapes | shapes, ms | dense, ms |",
            "|---|---|---|---|---|---|",
            *replied,
            "",
            "Writing one mask, ms:",
            "",
            "| image | runs | dense, by hand | orjson of numpy | json | orjson / by hand | json / by hand |",
            "|---|---|---|---|---|---|---|",
            *map(writing, SIZES),
            "",
            "Finding the image in a request, ms:",
            "",
            "| image | request, MB | by hand | orjson | orjson / by hand |",
            "|---|---|---|---|---|",
            *map(reading, SIZES),
        ]
    )


if __name__ == "__main__":
    print(main())
