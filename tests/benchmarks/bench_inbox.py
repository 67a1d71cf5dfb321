"""Webhooks: how long until an event is durable and answered, at 200 a second; and how long writes take."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import requests

from benchmarks.bench_clicks import photograph
from benchmarks.goals import Goal, Section
from clickmask.image_source import ImageIdentity
from clickmask.inbox import Inbox
from clickmask.kept_images import KeptImages
from clickmask.labels import Brush, ProjectDeleted, Region, Submission
from clickmask.masks import Rle
from clickmask.store import Store
from drawn_projects import accept_drawings
from labelled import PROJECT
from labelled import TOOL as DRAWN
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


@contextmanager
def training(url: str) -> Iterator[Callable[[], int]]:
    """A training of the drawn project, in its process, well under way; gives how many steps it has done."""
    asked = requests.post(f"{url}/v1/projects/{DRAWN}/{PROJECT}/train", json={}, timeout=60)
    address = f"{url}/v1/jobs/{asked.json()['job']}"

    def steps() -> int:
        job = requests.get(address, timeout=60).json()
        assert job["state"] in ("queued", "running"), job
        return job["step"]

    while not steps():
        time.sleep(0.2)
    yield steps
    requests.delete(address, timeout=60).raise_for_status()


def fill(home: Path) -> None:
    """Drawn pictures with accepted labels, to train on."""
    with closing(Store(home / "store.sqlite")) as store:
        accept_drawings(store, KeptImages(home / "images", 2**30, store.is_labelled), 24)


def over_http() -> tuple[list[str], list[Goal]]:
    count, rows, p99s = int(RATE * SECONDS), list[str](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill(home)
        settings = {"CLICKMASK_TRAIN_AFTER": "0", "CLICKMASK_TRAIN_SECONDS": "600"}
        with serving(home, **settings) as server:
            port = int(server.url.rpartition(":")[2])
            health = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
            saves = iter([posted(port, body) for body in events(RATE + 3 * count, 0)])

            def measure(name: str, requests: list[bytes], done: Callable[[], int], unit: str = "") -> None:
                before = done()
                waits = asyncio.run(flood(port, requests))
                p50, p95, p99 = np.percentile(waits, [50, 95, 99])
                p99s.append(float(p99))
                beside = f"{done() - before} {unit}" if unit else ""
                rows.append(f"| {name} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {max(waits):.0f} | {beside} |")

            def take(number: int) -> list[bytes]:
                return list(itertools.islice(saves, number))

            asyncio.run(flood(port, take(RATE)))  # a warm second
            measure("GET /health", [health] * count, lambda: 0)
            measure("events", take(count), lambda: 0)
            with clicking(server.url) as clicks:
                measure("GET /health, encodes beside", [health] * count, lambda: clicks.value, "images")
                measure("events, encodes beside", take(count), lambda: clicks.value, "images")
            with training(server.url) as steps:
                measure("GET /health, a training beside", [health] * count, steps, "steps")
                measure("events, a training beside", take(count), steps, "steps")
            status = partial(requests.get, f"{server.url}/v1/status", timeout=60)
            began = time.perf_counter()
            while status().json()["intake"]["waiting"]:
                time.sleep(0.1)
            behind = time.perf_counter() - began
            said = status().json()
            assert said["intake"]["set_aside"] == 0
            writes = said["writes"]
    rows += [
        "",
        f"The last label was stored {behind:.1f} s after the last event was answered. The store had "
        f"{writes['count']} write transactions: the longest {writes['longest_ms']:.0f} ms, "
        f"{writes['over_50_ms']} of more than 50 ms.",
    ]
    names = {1: "", 3: ", encodes beside", 5: ", a training beside"}
    return rows, [
        Goal(f"webhooks at {RATE}/s{name}: p99 until durable", p99s[place], 250, 100, unit=" ms")
        for place, name in names.items()
    ]


def heavy_writes() -> tuple[list[str], Goal]:
    """The write transactions of what is large, one after the other, in a store that nobody else uses."""
    region = Region("r", "cell", Brush({"size": [480, 640], "counts": ""}))
    identity = ImageIdentity("d" * 64, (480, 640))

    def accept(store: Store, labels: int, characters: int, at: float, task: str = "1") -> None:
        rle: Rle = {"size": [480, 640], "counts": "0" * characters}
        submission = Submission(
            "bench", "1", task, task, "http://x", "a.png", None, (region,) * labels, at, skipped=False
        )
        store.accept(submission, identity, [(region, rle)] * labels)

    def accept_many(store: Store) -> None:
        for number in range(500):
            accept(store, 2, 300, 6, f"t{number}")

    works: dict[str, Callable[[Store], None]] = {
        "2,000 labels of 300 characters": lambda store: accept(store, 2000, 300, 1),
        "the same, replaced": lambda store: accept(store, 2000, 300, 2),
        "200 labels of 100,000 characters": lambda store: accept(store, 200, 100_000, 3),
        "these, replaced": lambda store: accept(store, 200, 100_000, 4),
        "one label of 4,000,000 characters": lambda store: accept(store, 1, 4_000_000, 5),
        "500 annotations": accept_many,
        "a project of 502 annotations deleted": lambda store: store.delete(ProjectDeleted("bench", "1")),
    }
    rows, longest = list[str](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder) / "store.sqlite").close()  # migrated, which no click waits for
        for name, work in works.items():
            # A store opened anew counts anew.
            with closing(Store(Path(folder) / "store.sqlite")) as store:
                work(store)
                times = store.write_times()
            longest.append(times.longest_ms)
            rows.append(f"| {name} | {times.count} | {times.longest_ms:.1f} | {times.over_50_ms} |")
    return rows, Goal("the longest write transaction of the store", max(longest), 50, 25, unit=" ms")


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


def main() -> Section:
    size = len(events(1, 0)[0])
    answers, goals = over_http()
    writes, longest = heavy_writes()
    text = "\n".join(
        [
            f"Saves of one annotation, {size / 1000:.0f} kB, a connection each, {RATE}/s, {SECONDS:.0f} s;",
            "answered when they are on the disk (WAL, synchronous=FULL). Milliseconds. Label Studio waits",
            "1000 ms and does not ask again. /health does nothing: what it takes, machine and server take.",
            "Encodes: an annotator clicks on one new image of 12 Mpx after the other. A training: of 24",
            "drawn pictures, in its own process. The last column has what was done of either meanwhile.",
            "",
            "| asked | p50 | p95 | p99 | longest | beside |",
            "|---|---|---|---|---|---|",
            *answers,
            "",
            one_flush_for_all(),
            "",
            "The store's write transactions, which clicks and events may have to wait for, in milliseconds:",
            "",
            "| written | transactions | longest | over 50 ms |",
            "|---|---|---|---|",
            *writes,
        ]
    )
    return Section(text, [*goals, longest])


if __name__ == "__main__":
    print(main().text)
