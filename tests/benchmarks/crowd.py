"""Many annotators at the same time, on one of the servers of `beside`."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from benchmarks.beside import Photo, Place, Said, Side
from clickmask.masks.regions import mask_iou
from clickmask_adapters.tools.label_studio.shapes import brush_rle_to_mask

SAME = 0.99  # IoU: a mask that is less like the quiet answer is of another image, or of none


@dataclass
class Tally:
    """What became of clicks while others clicked."""

    waits: list[float] = field(default_factory=list)  # milliseconds, of the right answers
    failed: int = 0
    wrong: int = 0

    def count(self, said: Said, side: Side, photo: Photo, at: Place) -> None:
        if said.rle is None:
            self.failed += 1
        elif said.rle == side.quiet[photo, at] or self._alike(said.rle, side, photo, at):
            self.waits.append(said.milliseconds)
        else:
            self.wrong += 1

    @staticmethod
    def _alike(rle: list[int], side: Side, photo: Photo, at: Place) -> bool:
        return mask_iou(brush_rle_to_mask(rle, photo.size[::-1]), side.mask(photo, at)) >= SAME


def stampede(side: Side, photo: Photo, places: list[Place]) -> float:
    """Milliseconds until everybody has an answer, all of whom click on one new image at once.

    Whose click fails clicks again.
    """

    def click(at: Place) -> None:
        for _ in range(20):
            if side.click(photo, at).rle is not None:
                return
        raise AssertionError("somebody in the stampede had no answer")

    started = time.perf_counter()
    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(click, places))
    return 1000 * (time.perf_counter() - started)


def while_encoding(side: Side, known: Photo, new: Photo, places: list[Place], tally: Tally) -> float:
    """Clicks on a known image while the first one on a new image is answered, whose milliseconds it gives."""
    done = threading.Event()

    def click() -> None:
        for at in itertools.cycle(places):
            if done.is_set():
                return
            tally.count(side.click(known, at), side, known, at)
            time.sleep(0.05)

    with ThreadPoolExecutor(1) as pool:
        clicking = pool.submit(click)
        cold = side.click(new, places[0]).milliseconds
        done.set()
        clicking.result()
    return cold


def rate(side: Side, photo: Photo, places: list[Place], clients: int) -> float:
    """Clicks a second on one known image."""
    wanted = [places[number % len(places)] for number in range(3 * clients + 5)]
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        said = list(pool.map(partial(side.click, photo), wanted))
    assert all(each.rle is not None for each in said), f"a click failed: {[s.failure for s in said]}"
    return len(wanted) / (time.perf_counter() - started)


def annotate(
    side: Side, photos: tuple[Photo, Photo], places: list[Place], seconds: float, tally: Tally
) -> None:
    """Two annotators, each on an image that was clicked on before, with half a second between clicks."""
    lock, end = threading.Lock(), time.perf_counter() + seconds

    def work(photo: Photo) -> None:
        for at in itertools.cycle(places):
            if time.perf_counter() > end:
                return
            said = side.click(photo, at)
            with lock:
                tally.count(said, side, photo, at)
            time.sleep(0.5)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, photos))
