"""Datasets over HTTP: counted, measured against what was proposed, and as a zip of an export."""

from __future__ import annotations

import inspect
import io
import itertools
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from clickmask import ledger, plugins
from clickmask.dataset_statistics import count
from clickmask.datasets import Dataset, Pictures, snapshot
from clickmask.errors import Busy, ExportFailed, ExportTooLarge, InvalidRequest
from clickmask.images import ImageLimits
from clickmask.reports import report_to_json
from clickmask.segmenter_reports import measure_segmenters
from clickmask.store import Store
from clickmask.workbench import Workbench
from clickmask_adapters import exports
from clickmask_adapters.exports import _folder
from clickmask_adapters.projects import require_project
from clickmask_adapters.settings import Settings

AT_ONCE = 2  # exports over HTTP
CHUNK = 2**20
ABANDONED = 24 * 3600.0  # seconds after which nobody can be reading a zip any more
MOST_FLAWS = 1000  # of one answer
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member, so that the same dataset is the same zip


def router(workbench: Workbench, settings: Settings, pictures: Pictures) -> APIRouter:
    routes = APIRouter(prefix="/v1/projects/{tool}/{project}")
    places = threading.BoundedSemaphore(AT_ONCE)

    def dataset(tool: str, project: str) -> Dataset:
        require_project(workbench.store, tool, project)
        return open_dataset(workbench.store, tool, project, pictures, settings)

    @routes.get("/stats", summary="What is in the dataset, counted, and what looks wrong in it")
    def stats(tool: str, project: str) -> Response:
        return _json(describe(dataset(tool, project)))

    @routes.get("/assist", summary="What the assistance was worth")
    def assist(tool: str, project: str) -> Response:
        require_project(workbench.store, tool, project)
        return _json(assistance(workbench.store, tool, project))

    @routes.get("/segmenters", summary="What was proposed, measured against what was accepted")
    def segmenters(tool: str, project: str) -> Response:
        require_project(workbench.store, tool, project)
        return _json(proposal_reports(workbench.store, tool, project))

    @routes.get("/export/{name}", summary="The dataset as a zip", response_class=StreamingResponse)
    def export(
        tool: str,
        project: str,
        name: str,
        polygons: Annotated[
            Literal["source", "exact", "simplified"] | None,
            Query(description="COCO: which polygons are written"),
        ] = None,
        for_cvat: Annotated[bool | None, Query(description="COCO: masks have iscrowd 1")] = None,
    ) -> Response:
        given = {"polygons": polygons, "for_cvat": for_cvat}
        options = {option: value for option, value in given.items() if value is not None}
        write = find_export(name).write
        if unknown := options.keys() - inspect.signature(write).parameters.keys():
            raise InvalidRequest(f"an export to {name} has no option {min(unknown)}")
        made = dataset(tool, project)
        total = sum(pictures.size_of(sample.image) for sample in made.samples)
        if total > settings.export_bytes:
            raise ExportTooLarge(
                f"the pictures have {total} bytes, more than CLICKMASK_EXPORT_BYTES: run `clickmask export`"
            )
        if not places.acquire(blocking=False):
            raise Busy("other exports are under way; try again in a moment", retry_after=10)
        chunks = _zip(settings.home / "zips", lambda folder: write(made, folder, **options), places.release)
        # What goes wrong before the first chunk is still an error with a status.
        first = next(chunks)
        called = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{tool}-{project}-{name}.zip")
        headers = {"Content-Disposition": f'attachment; filename="{called}"'}
        return StreamingResponse(
            itertools.chain([first], chunks), headers=headers, media_type="application/zip"
        )

    return routes


def open_dataset(store: Store, tool: str, project: str, pictures: Pictures, settings: Settings) -> Dataset:
    """Raises InvalidRequest where nothing was accepted in the project."""
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    return snapshot(store, tool, project, pictures, limits)


def find_export(name: str) -> Any:
    """The module of a format. Raises InvalidRequest for one that there is not."""
    known = plugins.names(exports)
    if name not in known:
        raise InvalidRequest(f"there is no export to {name[:40]!r}; there is: {', '.join(known)}")
    return plugins.load(exports, name)


def describe(dataset: Dataset) -> dict[str, Any]:
    """As JSON; of flaws the first thousand."""
    counted = asdict(count(dataset))
    flaws = counted.pop("flaws")
    return {
        "digest": dataset.digest,
        "unlabelled": dataset.unlabelled,
        **counted,
        "flaw_count": len(flaws),
        "flaws": flaws[:MOST_FLAWS],
    }


def assistance(store: Store, tool: str, project: str) -> dict[str, Any]:
    """As JSON: of all, and by category, segmenter and week."""
    entries = ledger.read(store, tool, project)
    axes: tuple[ledger.Axis, ...] = ("category", "segmenter", "week")
    (together,) = ledger.summarise(entries)
    return {
        "all": asdict(together),
        **{axis: [asdict(each) for each in ledger.summarise(entries, axis)] for axis in axes},
    }


def proposal_reports(store: Store, tool: str, project: str) -> dict[str, Any]:
    """As JSON: by segmenter and annotator, of the first answers and of the accepted ones."""
    return {
        "segmenters": [
            {
                "name": each.name,
                "objects": each.objects,
                "first": report_to_json(each.first),
                "last": each.last and report_to_json(each.last),
            }
            for each in measure_segmenters(store, tool, project)
        ]
    }


def _zip(where: Path, write: Callable[[Path], Path], done: Callable[[], None]) -> Generator[bytes]:
    """The folder that `write` makes in `where`, as a zip, in chunks; `done` is called whatever happens."""
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_abandoned(where)
        above = Path(tempfile.mkdtemp(dir=where))  # not where temporary files are: that may be memory
    except OSError as error:
        done()
        raise ExportFailed(f"nothing can be written in CLICKMASK_HOME: {error.strerror}") from error
    try:
        folder = above / "export"
        write(folder)
        sink = _Sink()
        with zipfile.ZipFile(sink, "w") as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                if path.name == _folder.MANIFEST:
                    continue
                member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
                member.file_size = path.stat().st_size
                member.external_attr = 0o644 << 16
                # Pictures are compressed already.
                member.compress_type = zipfile.ZIP_STORED if "images" in path.parts else zipfile.ZIP_DEFLATED
                with archive.open(member, "w") as into, path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        into.write(chunk)
                        yield sink.taken()
        yield sink.taken()
    finally:
        shutil.rmtree(above, ignore_errors=True)
        done()


def _remove_abandoned(where: Path) -> None:
    """What a process that was killed has left."""
    for folder in where.iterdir():
        try:
            made = folder.stat().st_mtime
        except FileNotFoundError:  # another export has just ended
            continue
        if time.time() - made > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)


class _Sink(io.RawIOBase):
    """What was written since it was last taken; nothing can be rewound, so zipfile streams."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, b: Any, /) -> int:
        self._chunks.append(bytes(b))
        return len(b)

    def taken(self) -> bytes:
        taken, self._chunks = b"".join(self._chunks), []
        return taken


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
