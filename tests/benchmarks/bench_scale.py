"""What a picture of ten rectangles takes to be taken in and exported, in projects of 500 to 3,000 of them.

`python -m benchmarks.bench_scale 500` in tests/ measures one size.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from benchmarks.goals import Goal, Section
from clickmask.datasets.snapshot import snapshot
from clickmask.images.archive import ImageArchive
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest.apply import Ingester
from clickmask.labels.geometry import Rectangle
from clickmask.labels.submissions import Region, Submission
from clickmask.store import Store
from clickmask.types import ImageRef, Size
from clickmask_adapters.exports import coco, png, voc, yolo
from support.accepting import TOOL, FakeTool
from support.labelled import noise

SIZES = (500, 1000, 3000)
PICTURE: Size = (480, 640)
PROJECT = "1"
TURN = 25  # pictures that each of two projects takes before it is the other's turn
TURNS = 4
ROUNDS = 2  # of exports, of which the faster one counts
FORMATS = {"coco": coco, "yolo": yolo, "voc": voc, "png": png}


class Drawings(FakeTool):
    """Task n shows picture n, unlike all others."""

    def locate(self, submission: Submission) -> ImageRef:
        file = io.BytesIO()
        PIL.Image.fromarray(noise(int(submission.task), PICTURE)).save(file, "JPEG", quality=90)
        return ImageRef("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())


def submission(number: int) -> Submission:
    """Ten rectangles of five categories on picture `number`."""
    random = np.random.default_rng(number)
    regions: list[Region] = []
    for index in range(10):
        x, y, across, down = random.uniform((0, 0, 30, 30), (400, 250, 230, 220)).tolist()
        box = Rectangle((x, y, x + across, y + down))
        regions.append(Region(f"r{index}", f"category {index % 5}", box))
    name = str(number)
    where = (f"https://x/{name}", f"{name}.jpg", PICTURE)
    return Submission(TOOL, PROJECT, name, name, *where, tuple(regions), 1000.0 + number)


class Home:
    """A store with its archive of images, which `take` fills."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store.sqlite")
        self.archive = ImageArchive(folder / "images", 2**32, self.store.is_labelled)
        self._ingester = Ingester(self.store, ImageSource(Fetcher()), self.archive)

    def take(self, numbers: Sequence[int]) -> float:
        """CPU-milliseconds a picture, those of drawing and compressing it included."""
        tool, changes = Drawings(), [submission(number) for number in numbers]
        return milliseconds(lambda: [self._ingester.apply(each, tool) for each in changes], len(changes))


def milliseconds(work: Callable[[], object], pictures: int) -> float:
    """CPU-milliseconds a picture."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began) / pictures


def taken_in(folder: Path, count: int) -> tuple[Home, float, float]:
    """A home of `count` pictures, and milliseconds a picture at its end and, in turn, in an empty project."""
    tool = Drawings()
    drawing = milliseconds(lambda: [tool.locate(submission(number)) for number in range(TURN)], TURN)
    large, full, empty = Home(folder), list[float](), list[float]()
    measured = TURN * TURNS
    large.take(range(count - measured))
    for turn in range(TURNS):
        first = count - measured + turn * TURN
        with tempfile.TemporaryDirectory() as other:
            small = Home(Path(other))
            with closing(small.store):
                empty.append(small.take(range(first, first + TURN)) - drawing)
        full.append(large.take(range(first, first + TURN)) - drawing)
    return large, float(np.median(full)), float(np.median(empty))


def exported(home: Home, folder: Path) -> dict[str, float]:
    """Milliseconds a picture of each format with its sentences on losses, timed in turn."""
    dataset = snapshot(home.store, TOOL, PROJECT, home.archive)
    found: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, module in FORMATS.items():

            def work(name: str = name, module: type[coco] = module) -> None:
                module.write(dataset, folder / name)
                module.losses(dataset)

            found[name] = min(milliseconds(work, len(dataset.samples)), found.get(name, np.inf))
    return found


def main(sizes: Sequence[int] = SIZES) -> Section:
    cv2.setNumThreads(1)
    rows, goals = list[str](), list[Goal]()
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            home, full, empty = taken_in(Path(name), count)
            with closing(home.store):
                export = exported(home, Path(name) / "out")
        times = " | ".join(f"{spent:.1f} ({spent / export['coco']:.1f})" for spent in export.values())
        rows.append(f"| {count:,} | {full:.1f} | {empty:.1f} | {full / empty:.2f} | {times} |")
        of = f"in a project of {count:,} pictures"
        goals += [
            Goal(f"CPU to take a picture of ten rectangles in, {of}", full, 10, 5, unit=" ms"),
            Goal(f"the same, over that in an empty project, {of}", full / empty, 1.5, 1.1),
            Goal(f"CPU of YOLO's export a picture, {of}", export["yolo"], 5, 2, unit=" ms"),
        ]
    text = [
        "CPU-milliseconds a picture of 640 x 480 px with ten rectangles of five categories. Taken in: image",
        f"and labels, {TURN} pictures at the end of the project and in an empty one in turn, {TURNS} times.",
        "Exports, in turn, with their sentences on what is lost; in brackets, times COCO's.",
        "",
        "| pictures | taken in | in an empty project | ratio | COCO | YOLO | VOC | PNG |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]
    return Section("\n".join(text), goals)


if __name__ == "__main__":
    print(main([int(size) for size in sys.argv[1:]] or SIZES).text)
