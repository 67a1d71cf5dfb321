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
import psutil
import requests

from benchmarks.bench_clicks import photograph
from benchmarks.goals import Goal, Section
from clickmask.images.archive import ImageArchive
from clickmask.images.source import ImageIdentity
from clickmask.ingest.inbox import Inbox
from clickmask.labels.geometry import Brush
from clickmask.labels.submissions import ProjectDeleted, Region, Submission
from clickmask.masks.rle import Rle
from clickmask.store import Store
from clickmask.types import Mask, Prediction, Prompt, Size
from support.drawn_projects import accept_drawings, drawn_picture
from support.labelled import PROJECT
from support.labelled import TOOL as DRAWN
from support.pictures import png_data_uri
from support.served import Server, serving
from support.waiting import until

RATE = 200  # events a second
SECONDS = 5.0
MOST_SECONDS = 120.0  # until what is beside must have done something
POSTERS = 20
RECORDED = Path(__file__).parent.parent / "contracts" / "label_studio"


class Counter(Protocol):
    value: int


class Stop(Protocol):
    def is_set(self) -> bool: ...


def events() -> Iterator[bytes]:
    """Recorded saves of one annotation (640 x 480, two brushes), each a moment after the one before."""
    (path,) = RECORDED.glob("22_*.json")
    body = json.loads(path.read_text())["request"]["body"]
    body["task"]["data"]["image"] = png_data_uri(size=(480, 640))
    for number in itertools.count():
        seconds = number / 1000
        body["annotation"]["updated_at"] = f"2026-11-22T18:{seconds // 60:02.0f}:{seconds % 60:06.3f}Z"
        yield json.dumps(body).encode()


async def ask(port: int, request: bytes) -> float:
    """Milliseconds until the answer, on a connection of its own, as Label Studio asks."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return 1000 * (time.perf_counter() - started)


async def flood(port: int, requests: Iterator[bytes], enough: Callable[[], bool]) -> list[float]:
    """RATE requests a second, whether or not the earlier ones were answered, until it is enough."""
    began = time.perf_counter() + 0.2
    asked: list[asyncio.Task[float]] = []
    for number, body in enumerate(requests):
        if number % RATE == 0 and number >= RATE * SECONDS and enough():
            break
        assert number < RATE * MOST_SECONDS, "what was to run beside has done nothing"
        at = began + number / RATE
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        asked.append(asyncio.create_task(ask(port, body)))
    return await asyncio.gather(*asked)


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
    try:
        until(lambda: done.value > 0, 120)
        done.value = 0
        yield done
    finally:
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


class Training:
    """A training under way. Its row and its process are looked at, and the server is left in peace."""

    def __init__(self, home: Path, server: Server, job: str) -> None:
        self._store, self._job = Store(home / "store.sqlite"), job
        until(lambda: self.steps() > 0, 300)  # it gives way to whatever else is busy
        inside = psutil.Process(server.process.pid).children()
        self._worker = next(each for each in inside if "clickmask.training.worker" in each.cmdline())

    def steps(self) -> int:
        """As it said at its last validation."""
        job = self._store.jobs.get(self._job)
        assert job.state in ("queued", "running"), job
        return job.step

    def seconds(self) -> float:
        """Of a processor, that it has had."""
        times = self._worker.cpu_times()
        return times.user + times.system


@contextmanager
def training(home: Path, server: Server) -> Iterator[Training]:
    """Of the drawn project, in its process, well under way."""
    asked = requests.post(f"{server.url}/v1/projects/{DRAWN}/{PROJECT}/train", json={}, timeout=60)
    job = asked.json()["job"]
    yield Training(home, server, job)
    requests.delete(f"{server.url}/v1/jobs/{job}", timeout=60).raise_for_status()


def fill(home: Path) -> None:
    """Drawn pictures with accepted labels, to train on, too large to be learnt meanwhile."""
    with closing(Store(home / "store.sqlite")) as store:
        kept = ImageArchive(home / "images", 2**30, store.is_labelled)
        accept_drawings(store, kept, 24, draw=partial(drawn_picture, size=(480, 640)))


class Table:
    """Rows of what was asked, each while something else was under way."""

    def __init__(self, port: int) -> None:
        health = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
        self._port = port
        self._asked = {
            "GET /health": itertools.repeat(health),
            "events": (posted(port, body) for body in events()),
        }
        self.rows: list[str] = []
        self.p99s: dict[str, float] = {}  # of events, in milliseconds

    def warm_up(self) -> None:
        asyncio.run(flood(self._port, itertools.islice(self._asked["events"], RATE), lambda: True))

    def measure(
        self,
        beside: str = "",
        count: Callable[[], int] | None = None,
        unit: str = "",
        used: Callable[[], float] | None = None,
    ) -> None:
        """Both for some seconds, and until `count`, of what was done `beside`, has grown. `used` are the
        seconds of a processor that went there."""
        for name, bodies in self._asked.items():
            counted, spent, began = count and count(), used and used(), time.perf_counter()
            waits = asyncio.run(flood(self._port, bodies, lambda at=counted: not count or count() != at))
            told = f"{count() - (counted or 0)} {unit}" if count else ""
            if used:
                told += f", {used() - (spent or 0):.1f} s of {time.perf_counter() - began:.1f} s"
            p50, p95, p99 = np.percentile(waits, [50, 95, 99])
            cells = f"{p50:.1f} | {p95:.1f} | {p99:.1f} | {max(waits):.0f} | {told}"
            self.rows.append(f"| {name}{beside} | {cells} |")
            if name == "events":
                self.p99s[beside] = float(p99)


def over_http() -> tuple[list[str], list[Goal]]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill(home)
        settings = {"CLICKMASK_TRAIN_AFTER": "0", "CLICKMASK_TRAIN_SECONDS": "3600"}
        with serving(home, **settings) as server:
            table = Table(int(server.url.rpartition(":")[2]))
            table.warm_up()
            table.measure()
            with clicking(server.url) as clicks:
                table.measure(", encodes beside", lambda: clicks.value, "images")
            with training(home, server) as trained:
                table.measure(", a training beside", trained.steps, "steps", trained.seconds)
            status = partial(requests.get, f"{server.url}/v1/status", timeout=60)
            began = time.perf_counter()
            until(lambda: not status().json()["intake"]["waiting"], 300)
            behind = time.perf_counter() - began
            said = status().json()
            assert said["intake"]["set_aside"] == 0
            writes = said["writes"]
    rows = [
        *table.rows,
        "",
        f"The last label was stored {behind:.1f} s after the last event was answered. The store had "
        f"{writes['count']} write transactions: the longest {writes['longest_ms']:.0f} ms, "
        f"{writes['over_50_ms']} of more than 50 ms.",
    ]
    return rows, [
        Goal(f"webhooks at {RATE}/s{beside}: p99 until durable", p99, 250, 100, unit=" ms")
        for beside, p99 in table.p99s.items()
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

    def draw(store: Store, objects: int, pixels: int, name: str) -> None:
        prediction = Prediction(speckled((480, 640), pixels), 0.5, "unet")
        found = [(f"{name} {number}", "cell", prediction) for number in range(objects)]
        store.remember_prelabels("d" * 64, (480, 640), "unet", found)

    def propose(store: Store) -> None:
        prediction = Prediction(speckled((2600, 3200), 2600 * 3200), 0.5, "disc")
        store.remember_proposal("p", "d" * 64, Prompt(((1.0, 2.0),)), prediction)

    works: dict[str, Callable[[Store], None]] = {
        "2,000 labels of 300 characters": lambda store: accept(store, 2000, 300, 1),
        "the same, replaced": lambda store: accept(store, 2000, 300, 2),
        "200 labels of 100,000 characters": lambda store: accept(store, 200, 100_000, 3),
        "these, replaced": lambda store: accept(store, 200, 100_000, 4),
        "one label of 4,000,000 characters": lambda store: accept(store, 1, 4_000_000, 5),
        "a proposal of 4,000,000 characters": propose,
        "100 objects of 20,000 characters that a model drew": lambda store: draw(store, 100, 200**2, "a"),
        "1,000 objects of 300 characters that a model drew": lambda store: draw(store, 1000, 24**2, "b"),
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


def speckled(size: Size, pixels: int) -> Mask:
    """Of noise in its first rows: a run for each second of so many pixels."""
    mask = np.zeros(size, np.bool_)
    mask.reshape(-1)[:pixels] = np.random.default_rng(0).random(pixels) < 0.5
    return mask


def one_flush_for_all() -> str:
    """Events a second that POSTERS threads get kept, against one transaction for each event."""
    body = next(events())
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
    size = len(next(events()))
    answers, goals = over_http()
    writes, longest = heavy_writes()
    text = "\n".join(
        [
            f"Saves of one annotation, {size / 1000:.0f} kB, on a connection each, {RATE}/s for at least",
            f"{SECONDS:.0f} s, answered when they are on the disk (WAL, synchronous=FULL). Milliseconds.",
            "Label Studio waits 1000 ms and does not ask again. /health does nothing: what it takes, machine",
            "and server take. Encodes: an annotator clicks on one new image of 12 Mpx after the other. A",
            "training: of 24 drawn pictures, in its own process. The last column has what was done of either",
            "meanwhile; of a training, which says its step only when it validates, how long it had a",
            "processor as well.",
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
