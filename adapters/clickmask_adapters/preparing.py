"""Encode many images ahead, so that nobody waits for the first click on one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import PIL.Image

from clickmask.errors import Busy
from clickmask.images import FORMATS
from clickmask.types import ImageRef
from clickmask.workbench import Workbench

AT_ONCE = 2  # one is fetched and decoded while the other is encoded


@dataclass(frozen=True)
class Wanted:
    """An image to encode: `name` for people, `locate` says where it is and may raise a ClickmaskError."""

    name: str
    locate: Callable[[], ImageRef]


@dataclass(frozen=True)
class Prepared:
    name: str
    was_there: bool
    error: str = ""  # why it could not be prepared


def folder_images(folder: Path) -> list[Wanted]:
    """The files below `folder` that are named as images that clickmask reads; hidden ones are not."""
    PIL.Image.init()
    endings = {ending for ending, name in PIL.Image.registered_extensions().items() if name in FORMATS}
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        Wanted(str(path), partial(ImageRef, (folder.resolve() / path).as_uri()))
        for path in inside
        if path.suffix.lower() in endings and not any(part.startswith(".") for part in path.parts)
    ]


def prepare_images(workbench: Workbench, wanted: Sequence[Wanted], segmenter: str) -> Generator[Prepared]:
    """Encode the images in their order, one result each. Those whose embedding is kept cost no encode.

    Closing the generator, or an interrupt, stops it at once; whoever closes the workbench then waits
    for the encode under way, and it is kept.
    """
    stopping = threading.Event()

    def prepare(image: Wanted) -> Prepared:
        try:
            return Prepared(image.name, _encode(workbench, image.locate(), segmenter, stopping))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the other images go on
            return Prepared(image.name, False, str(error) or type(error).__name__)

    waiting = iter(wanted)
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="prepare")
    running: deque[Future[Prepared]] = deque(pool.submit(prepare, each) for each in islice(waiting, AT_ONCE))
    try:
        while running:
            yield running[0].result()
            running.popleft()
            running.extend(pool.submit(prepare, each) for each in islice(waiting, 1))
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _encode(workbench: Workbench, ref: ImageRef, segmenter: str, stopping: threading.Event) -> bool:
    """Unlike a click, this waits for as long as an encode takes."""
    waited = False
    while True:
        try:
            return workbench.encode(ref, segmenter) and not waited
        except Busy as error:
            waited = True
            if stopping.wait(error.retry_after):
                raise
