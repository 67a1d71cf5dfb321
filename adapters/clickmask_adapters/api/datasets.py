"""Datasets over HTTP: statistics, reports on the assistance, and zipped exports."""

import inspect
import itertools
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Response
from fastapi import Path as UrlPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from clickmask import plugins
from clickmask.datasets.snapshot import Dataset, Pictures
from clickmask.errors import Busy, Failed, InvalidRequest, NotFound, StoreUnavailable, TooLarge
from clickmask.images.decode import ImageLimits
from clickmask.labels.submissions import Unlabelled
from clickmask.metrics.report import report_to_json
from clickmask.reports.assistance import Axis, Summary, measure_segmenters, read, summarise
from clickmask.reports.statistics import Statistics, count
from clickmask.store import Store
from clickmask.workbench import Workbench
from clickmask_adapters import exports
from clickmask_adapters.api import ProjectName, ToolName, json_response
from clickmask_adapters.api.projects import MeasuresOut
from clickmask_adapters.exports import _folder
from clickmask_adapters.server.openapi import raises
from clickmask_adapters.settings import Settings

MAX_EXPORTS = 2  # written at one time
MAX_ZIPS = 16  # read at one time, however slowly
ZIP_TTL_S = 3600.0  # within which a zip must be read
CHUNK = 2**20
ABANDONED_AFTER_S = 24 * 3600.0  # after which nobody reads a zip any longer
MAX_FLAWS = 1000  # in one answer
Polygons = Literal["source", "exact", "simplified"]  # as in exports/coco.py, which takes long to import
_EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every member, so that the same dataset gives the same zip


class ZipResponse(StreamingResponse):
    media_type = "application/zip"


@dataclass(frozen=True, kw_only=True)
class StatisticsOut(Statistics):
    """Counts and flaws of a dataset. It lists at most 1000 flaws."""

    digest: str
    unlabelled: Unlabelled
    flaw_count: int


class AssistanceOut(BaseModel):
    """`all` in one line, and the same by category, segmenter and ISO 8601 week."""

    all: Summary
    category: list[Summary]
    segmenter: list[Summary]
    week: list[Summary]


class SegmenterReportOut(BaseModel):
    name: str
    objects: Annotated[int, Field(description="Accepted ones it was asked for; of an annotator, drawn ones")]
    first: Annotated[MeasuresOut, Field(description="On the answers to the first prompts")]
    last: Annotated[MeasuresOut | None, Field(description="On the accepted answers; null for an annotator")]


class SegmenterReportsOut(BaseModel):
    segmenters: list[SegmenterReportOut]


def router(workbench: Workbench, settings: Settings, pictures: Pictures) -> APIRouter:
    routes = APIRouter(prefix="/v1/projects/{tool}/{project}", tags=["labels"])
    reads = raises(NotFound, StoreUnavailable)
    reads_dataset = raises(NotFound, StoreUnavailable, InvalidRequest)
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    writers, readers = threading.BoundedSemaphore(MAX_EXPORTS), threading.BoundedSemaphore(MAX_ZIPS)

    def written_zip(write: Callable[[Path], Path]) -> Path:
        """A zip that holds a reader's place until it is read; slow readers keep nobody from writing."""
        if not readers.acquire(blocking=False):
            raise Busy("other exports are being read; try again in a moment", retry_after=10)
        try:
            if not writers.acquire(blocking=False):
                raise Busy("other exports are under way; try again in a moment", retry_after=10)
            try:
                return _zip(settings.home / "zips", write)
            finally:
                writers.release()
        except BaseException:
            readers.release()
            raise

    def dataset(tool: str, project: str) -> Dataset:
        return workbench.dataset(tool, project, pictures, limits)

    @routes.get(
        "/stats",
        response_model=StatisticsOut,
        summary="What is in the dataset, counted, and what looks wrong in it",
        responses=reads_dataset,
    )
    def stats(tool: ToolName, project: ProjectName) -> Response:
        """Images, labels and areas by category, sides of the split, and labels that somebody should check."""
        return json_response(describe(dataset(tool, project)))

    @routes.get(
        "/assist", response_model=AssistanceOut, summary="What the assistance was worth", responses=reads
    )
    def assist(tool: ToolName, project: ProjectName) -> Response:
        """How many accepted objects came from proposals, untouched or edited, with how many clicks and in how
        many seconds."""
        return json_response(workbench.report(assistance, tool, project))

    @routes.get(
        "/segmenters",
        response_model=SegmenterReportsOut,
        summary="What was proposed, measured against what was accepted",
        responses=reads,
    )
    def segmenters(tool: ToolName, project: ProjectName) -> Response:
        """One report for each segmenter and annotator of which an object was accepted."""
        return json_response(workbench.report(proposal_reports, tool, project))

    @routes.get(
        "/export/{name}",
        summary="The dataset as a zip",
        response_class=ZipResponse,
        responses=raises(NotFound, StoreUnavailable, InvalidRequest, TooLarge, Busy)
        | {200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    def export(
        tool: ToolName,
        project: ProjectName,
        name: Annotated[str, UrlPath(description="The format: coco, yolo, voc, png", examples=["coco"])],
        polygons: Annotated[Polygons | None, Query(description="COCO: which polygons are written")] = None,
        for_cvat: Annotated[bool | None, Query(description="COCO: as CVAT imports it")] = None,
        by_side: Annotated[bool | None, Query(description="COCO: a file for each side")] = None,
    ) -> Response:
        """Pictures and labels, as `clickmask export` writes them to a folder. The zip must be read within an
        hour. Datasets larger than CLICKMASK_EXPORT_BYTES are refused: the command exports them."""
        if name not in (known := plugins.names(exports)):
            raise NotFound(f"there is no export to {name[:40]!r}; there is: {', '.join(known)}")
        write = plugins.load(exports, name).write
        given = {"polygons": polygons, "for_cvat": for_cvat, "by_side": by_side}
        options = {option: value for option, value in given.items() if value is not None}
        if unknown := options.keys() - inspect.signature(write).parameters.keys():
            raise InvalidRequest(f"an export to {name} has no option {min(unknown)}")
        made = dataset(tool, project)
        copies = {sample.image: len({each.known_as for each in sample.shown_as}) for sample in made.samples}
        total = sum(
            pictures.size_of(sample.image) * (max(1, copies[sample.image]) if for_cvat else 1)
            for sample in made.samples
        )
        if total > settings.export_bytes:
            raise TooLarge(
                f"the pictures have {total} bytes, more than CLICKMASK_EXPORT_BYTES: run `clickmask export`"
            )
        path = written_zip(lambda folder: write(made, folder, **options))
        file_name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{tool}-{project}-{name}.zip")
        attached = f'attachment; filename="{file_name}"'
        headers = {"Content-Disposition": attached, "Content-Length": str(path.stat().st_size)}
        chunks = _read(path, readers.release)
        whole = itertools.chain([next(chunks)], chunks)  # from here on, the zip is removed in any case
        return ZipResponse(whole, headers=headers)

    return routes


def describe(dataset: Dataset) -> dict[str, Any]:
    """Statistics of a dataset as JSON, with at most MAX_FLAWS flaws."""
    named = {"digest": dataset.digest, "unlabelled": dataset.unlabelled}
    counted = asdict(count(dataset))
    flaws = counted.pop("flaws")
    return named | counted | {"flaw_count": len(flaws), "flaws": flaws[:MAX_FLAWS]}


def assistance(store: Store, tool: str, project: str) -> dict[str, Any]:
    """The worth of the assistance as JSON: overall, and by category, segmenter and week."""
    entries = read(store, tool, project)
    (together,) = summarise(entries)
    axes = {axis: [asdict(each) for each in summarise(entries, axis)] for axis in get_args(Axis)}
    return {"all": asdict(together), **axes}


def proposal_reports(store: Store, tool: str, project: str) -> dict[str, Any]:
    """Quality of each segmenter's and annotator's first and accepted answers, as JSON."""
    found = [
        vars(each) | {"first": report_to_json(each.first), "last": each.last and report_to_json(each.last)}
        for each in measure_segmenters(store, tool, project)
    ]
    return {"segmenters": found}


def _zip(where: Path, write: Callable[[Path], Path]) -> Path:
    """Zip the folder that `write` makes, in a new folder in `where`. Raises Failed."""
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_abandoned(where)
        above = Path(tempfile.mkdtemp(dir=where))  # not the system's temporary folder, which may be in memory
    except OSError as error:
        raise Failed(f"nothing can be written in CLICKMASK_HOME: {error.strerror}") from error
    try:
        folder = above / "export"
        write(folder)
        with zipfile.ZipFile(above / "export.zip", "w") as archive:
            for file in sorted(file for file in folder.rglob("*") if file.is_file()):
                if file.name == _folder.MANIFEST:
                    continue
                member = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
                member.file_size = file.stat().st_size
                member.external_attr = 0o644 << 16
                # Pictures are compressed already.
                is_picture = {"images", "JPEGImages"} & set(file.relative_to(folder).parts)
                member.compress_type = zipfile.ZIP_STORED if is_picture else zipfile.ZIP_DEFLATED
                with archive.open(member, "w") as into, file.open("rb") as content:
                    shutil.copyfileobj(content, into, CHUNK)
        shutil.rmtree(folder)
    except BaseException as error:
        shutil.rmtree(above, ignore_errors=True)
        if isinstance(error, OSError):
            raise Failed(f"the export cannot be written in CLICKMASK_HOME: {error.strerror}") from error
        raise
    return above / "export.zip"


def _read(path: Path, done: Callable[[], None]) -> Generator[bytes]:
    """The zip in chunks. After the last, or after any failure, it is removed and `done` is called."""
    until = time.monotonic() + ZIP_TTL_S
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
                if time.monotonic() > until:
                    raise Failed("the export was not read in time")
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)
        done()


def _remove_abandoned(where: Path) -> None:
    """Remove zips that a killed process left behind."""
    for folder in where.iterdir():
        try:
            made = folder.stat().st_mtime
        except FileNotFoundError:  # another export has just ended
            continue
        if time.time() - made > ABANDONED_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)
