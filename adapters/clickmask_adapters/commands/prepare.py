"""`clickmask prepare FOLDER` and `clickmask prepare TOOL PROJECT`."""

import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import PIL.Image
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from clickmask.errors import Busy, Failed, InvalidRequest, NotReady
from clickmask.images.decode import readable_formats
from clickmask.types import ImageRef
from clickmask.workbench import Workbench
from clickmask_adapters.commands._console import (
    console,
    errors,
    open_home,
    sentence_on_failure,
    tool_name,
    working_tool,
)
from clickmask_adapters.settings import read_settings
from clickmask_adapters.tools import NamedImage

MAX_CONCURRENT = 2  # one is fetched and decoded while the other is encoded

cli = typer.Typer()


@cli.command()
def prepare(
    what: Annotated[
        str, typer.Argument(metavar="FOLDER|TOOL", help="A folder of images, or a labeling tool.")
    ],
    project: Annotated[
        str | None, typer.Argument(metavar="PROJECT", help="The number of the tool's project.")
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="Default: the project's, or CLICKMASK_SEGMENTER.")
    ] = None,
) -> None:
    """Encode images ahead: those of a folder and its folders, or of a labeling tool's project.

    Images that are stored already are skipped, so running it again goes on where it stopped.
    """
    with sentence_on_failure():
        settings = read_settings(**({"segmenter": segmenter} if segmenter else {}))
    if project is None:
        if not Path(what).is_dir():
            raise typer.BadParameter(
                f"there is no folder {what}, and a project has a number: clickmask prepare TOOL PROJECT"
            )
        roots = (*settings.image_roots, Path(what).resolve())
        settings = settings.model_copy(update={"image_roots": roots})
    tool = "" if project is None else tool_name(what)
    with open_home(settings) as home:
        own = home.workbench.project_segmenter(tool, project) if project else None
        chosen = segmenter or own or settings.segmenter
        if not home.workbench.stores(chosen):
            raise NotReady(
                f"embeddings of {chosen} are not stored, so there is nothing to prepare: choose another "
                "segmenter" + ("" if settings.disk_bytes else ", and let CLICKMASK_DISK_BYTES be more than 0")
            )
        wanted = list(working_tool(home, tool).images(project)) if project else folder_images(Path(what))
        if not wanted:
            raise InvalidRequest(f"there is no image here; clickmask reads {', '.join(readable_formats())}")
        complete = follow(prepare_images(home.workbench, wanted, chosen), len(wanted), console, errors)
        disk = home.workbench.cache_status().disk
    if disk and disk.bytes > 0.95 * disk.capacity:
        errors.print("the store is full: what was not used for longest goes; raise CLICKMASK_DISK_BYTES")
    if not complete:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Prepared:
    name: str
    was_there: bool
    error: str = ""


def folder_images(folder: Path) -> list[NamedImage]:
    """Images below `folder` that clickmask reads, judged by their endings; hidden files are left out."""
    PIL.Image.init()
    known = readable_formats()
    endings = {ending for ending, name in PIL.Image.registered_extensions().items() if name in known}
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        NamedImage(str(path), partial(ImageRef, (folder.resolve() / path).as_uri()))
        for path in inside
        if path.suffix.lower() in endings and not any(part.startswith(".") for part in path.parts)
    ]


def prepare_images(workbench: Workbench, wanted: Sequence[NamedImage], segmenter: str) -> Generator[Prepared]:
    """Encode the images in order, one result each; a stored embedding costs no encode.

    Closing the generator or an interrupt stops it. Closing the workbench waits for the encode under way.
    """
    stopping = threading.Event()

    def prepare(image: NamedImage) -> Prepared:
        try:
            ref, waited = image.locate(), False
            while True:  # as long as it takes, unlike a click
                try:
                    return Prepared(image.name, workbench.encode(ref, segmenter) and not waited)
                except Busy as error:
                    waited = True
                    if stopping.wait(error.retry_after):
                        raise
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the other images go on
            inner = error.__cause__ if isinstance(error, Failed) else None  # only the user sees this
            return Prepared(image.name, False, str(inner or error) or type(error).__name__)

    waiting = iter(wanted)
    pool = ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="prepare")
    running = deque(pool.submit(prepare, each) for each in islice(waiting, MAX_CONCURRENT))
    try:
        while running:
            yield running[0].result()
            running.popleft()
            running.extend(pool.submit(prepare, each) for each in islice(waiting, 1))
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} images/s" if task.speed else "")


def follow(prepared: Generator[Prepared], total: int, out: Console, err: Console) -> bool:
    """Show a bar, then a summary. True if all images are prepared; an interrupt ends it early."""
    columns = (BarColumn(20), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), "{task.description}")
    encoded, kept, interrupted, began = 0, 0, False, time.perf_counter()
    failed: list[Prepared] = []
    with Progress(*columns, console=err, speed_estimate_period=300) as bar, closing(prepared):
        task = bar.add_task("", total=total)
        try:
            for image in prepared:
                encoded += not image.was_there and not image.error
                kept += image.was_there
                failed += [image] if image.error else []
                said = f"{encoded} encoded, {kept} there already, {len(failed)} failed"
                bar.update(task, advance=1, description=said)
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.perf_counter() - began
    for image in failed:
        err.print(f"{image.name}: {image.error}", markup=False)
    out.print(f"{encoded} encoded, {kept} there already, {len(failed)} failed, in {seconds:.0f} s")
    if interrupted:
        err.print("interrupted, once the image under way is done; the same command goes on from there")
    return not interrupted and not failed
