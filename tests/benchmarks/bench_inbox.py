"""Webhooks: how long until an event is durable and answered, at 200 events a second."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import requests

from benchmarks.bench_clicks import photograph
from clickmask.inbox import Inbox
from pictures import png_data_uri
from served import serving

RATE = 200  # events a second
SECONDS = 5.0
POSTERS = 20
RECORDED = Path(__file__).parent.parent / "contracts" / "label_studio"


class Counter(Protocol):
    value: int


class Stop(Protocol):
    def is_set(self) -> bool: ...


def events(count: int, first: int) -> list[bytes]:
    """Recorded saves of one annotation (640 x 480, two brushes), each a moment after the one before."""
    (path,) = RECORDED.glob("22_*.json")
    body = json.loads(path.read_text())["request"]["body"]
    body["task"]["data"]["image"] = png_data_uri(size=(480, 640))
    made: list[bytes] = []
    for number in range(first, first + count):
        seconds = number / 1000
        body["annotation"]["updated_at"] = f"2026-11-22T18:{seconds // 60:02.0f}:{seconds % 60:06.3f}Z"
        made.append(json.dumps(body).encode())
    return made


async def ask(port: int, request: bytes, at: float) -> float:
    """Milliseconds until the answer, on a connection of its own, as Label Studio asks."""
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return 1000 * (time.perf_counter() - started)


async def flood(port: int, requests: list[bytes]) -> list[float]:
    """All requests, RATE a second, whether or not the earlier ones were answered."""
    began = time.perf_counter() + 0.2
    return await asyncio.gather(
        *(ask(port, request, began + number / RATE) for number, request in enumerate(requests))
    )


def posted(port: int, body: bytes) -> bytes:
    head = f"POST /webhook HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def clicking(url: str) -> Iterator[Counter]:
    """An annotator, in a process of its own, clicks on one new image of 12 Mpx after the other."""
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("i", 0), context.Event()
    annotator = context.Process(target=click_on_new_images, args=(url, done, stop))
    annotator.start()
    while not done.value:
        time.sleep(0.05)
    done.value = 0
    yield done
    stop.set()
    annotator.join()


def click_on_new_images(url: str, done: Counter, stop: Stop) -> None:
    shade = 0
    while not stop.is_set():
        shade += 1
        image = base64.b64encode(photograph((4000, 3000), shade % 250)).decode()
        body = {"image": {"data": image}, "prompt": {"foreground": [[1680, 840 + shade / 100]]}}
        requests.post(f"{url}/v1/proposals", json=body, timeout=60).raise_for_status()
        done.value += 1


def over_http() -> list[str]:
    count, rows = int(RATE * SECONDS), list[str]()
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server:
        port = int(server.url.rpartition(":")[2])
        health = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
        saves = [posted(port, body) for body in events(RATE + 2 * count, 0)]

        def measure(name: str, requests: list[bytes], clicks: Counter | None = None) -> None:
            before = clicks.value if clicks else 0
            waits = asyncio.run(flood(port, requests))
            p50, p95, p99 = np.percentile(waits, [50, 95, 99])
            images = clicks.value - before if clicks else 0
            rows.append(f"| {name} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {max(waits):.0f} | {images} |")

        asyncio.run(flood(port, saves[:RATE]))  # a warm second
        measure("GET /health", [health] * count)
        measure("events", saves[RATE : RATE + count])
        with clicking(server.url) as clicks:
            measure("GET /health, clicks on new images of 12 Mpx beside", [health] * count, clicks)
            measure("events, clicks on new images of 12 Mpx beside", saves[RATE + count :], clicks)
        began = time.perf_counter()
        while requests.get(f"{server.url}/v1/status", timeout=30).json()["intake"]["waiting"]:
            time.sleep(0.1)
        behind = time.perf_counter() - began
        assert requests.get(f"{server.url}/v1/status", timeout=30).json()["intake"]["set_aside"] == 0
    return [*rows, "", f"The last label was stored {behind:.1f} s after the last event was answered."]


def one_flush_for_all() -> str:
    """Events a second that POSTERS threads get kept, against one transaction for each event."""
    body = events(1, 0)[0]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(POSTERS) as pool:
        with closing(Inbox(Path(folder) / "inbox.sqlite")) as inbox:
            began = time.perf_counter()
            list(pool.map(lambda _: inbox.keep("bench", body), range(1000)))
            shared = 1000 / (time.perf_counter() - began)
        with closing(sqlite3.connect(Path(folder) / "one.sqlite", isolation_level=None)) as connection:
            for setting in ("journal_mode = WAL", "synchronous = FULL"):
                connection.execute(f"PRAGMA {setting}")
            connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
            began = time.perf_counter()
            for _ in range(1000):
                connection.execute("INSERT INTO events (body) VALUES (?)", (body,))
            single = 1000 / (time.perf_counter() - began)
    return (
        f"The inbox alone, {POSTERS} threads: {shared:.0f} events/s; one transaction each, one thread: "
        f"{single:.0f} events/s; ratio {shared / single:.1f}."
    )


def main() -> str:
    size = len(events(1, 0)[0])
    return "\n".join(
        [
            f"Saves of one annotation, {size / 1000:.0f} kB, a connection each, {RATE}/s, {SECONDS:.0f} s;",
            "answered when they are on the disk (WAL, synchronous=FULL). Milliseconds. Label Studio waits",
            "1000 ms and does not ask again. /health does nothing: what it takes, machine and server take.",
            "",
            "| asked | p50 | p95 | p99 | longest | images |",
            "|---|---|---|---|---|---|",
            *over_http(),
            one_flush_for_all(),
        ]
    )


if __name__ == "__main__":
    print(main())
