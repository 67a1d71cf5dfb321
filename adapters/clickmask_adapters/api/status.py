"""The state of the server, at /v1/status."""

import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

import clickmask
from clickmask.errors import StoreUnavailable
from clickmask.files import Damaged, DamagedFiles
from clickmask.images.archive import ArchiveStatus
from clickmask.inference.disk_cache import DiskStatus
from clickmask.store import WriteTimes
from clickmask.store.jobs import Job
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response
from clickmask_adapters.server.failures import Failure, RecentFailures
from clickmask_adapters.server.openapi import raises


class CacheOut(BaseModel):
    """Embeddings in memory, and on the disk if they are kept there."""

    bytes: int
    capacity: Annotated[int, Field(description="Bytes")]
    entries: int
    hits: int
    misses: int
    hit_rate: Annotated[float | None, Field(description="Null before the first click")]
    disk: DiskStatus | None


class QueueOut(BaseModel):
    """Images that wait to be encoded."""

    waiting: int
    capacity: int


class FailedEventOut(BaseModel):
    event: int
    tool: str
    reason: str
    at: Annotated[float, Field(description="Seconds since 1970")]
    attempts: int
    retry_at: Annotated[float | None, Field(description="Seconds since 1970; null: not again")]


class IntakeOut(BaseModel):
    waiting: Annotated[int, Field(description="Events that are not read yet")]
    set_aside: Annotated[int, Field(description="Events of which no labels could be made")]
    newest_set_aside: list[FailedEventOut]
    kept_images: ArchiveStatus


class TroublesOut(BaseModel):
    now: Annotated[list[str], Field(description="Sentences about what needs a person")]
    damaged: Annotated[list[Damaged], Field(description="Files set aside when the server started")]
    reader_failures: Annotated[int, Field(description="Errors after which reading of events began again")]


class StatusOut(BaseModel):
    version: str
    segmenter: Annotated[str, Field(description="The default one")]
    uptime_s: float
    cache: CacheOut
    queue: QueueOut
    inbox: Annotated[
        int | None, Field(description="Events that are kept, read or not; null: they cannot be counted")
    ]
    intake: Annotated[IntakeOut | None, Field(description="Null: nothing reads the events just now")]
    left_out: Annotated[
        dict[str, int], Field(description="Regions of which no label can be made, by a word for them")
    ]
    writes: WriteTimes
    trainings: Annotated[list[Job], Field(description="Under way")]
    troubles: TroublesOut
    turned_away: Annotated[
        dict[str, int],
        Field(description="Requests and connections refused or slowed, by a word for why"),
    ]
    errors: Annotated[list[Failure], Field(description="Newest first")]


def router(workbench: Workbench, recent: RecentFailures, damaged: DamagedFiles) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["server"])
    started = time.monotonic()

    @routes.get(
        "/status",
        response_model=StatusOut,
        summary="How the server is doing, with its last 50 errors",
        responses=raises(StoreUnavailable),
    )
    async def status() -> Response:
        """Caches, queues, the labels that wait to be read or could not be, trainings under way, and the
        requests that failed last."""
        cache = asdict(workbench.cache_status())
        queue = {"waiting": cache.pop("waiting"), "capacity": cache.pop("queue_length")}
        trouble, reader_failures = workbench.reading_trouble()
        troubles = [*damaged.troubles(), *filter(None, [trouble])]
        intake, kept, left_out, trainings = None, None, dict[str, int](), list[Job]()
        try:
            kept = workbench.kept_events()
            intake = workbench.intake_status()
            left_out, trainings = workbench.left_out(), workbench.jobs_under_way()
        except StoreUnavailable as error:  # the rest is all the more worth knowing
            troubles.append(str(error))
        failed = [each._asdict() for each in intake.newest_set_aside] if intake else []
        return json_response(
            {
                "version": clickmask.__version__,
                "segmenter": workbench.default_segmenter,
                "uptime_s": round(time.monotonic() - started, 1),
                "cache": cache,
                "queue": queue,
                "inbox": kept,
                "intake": asdict(intake) | {"newest_set_aside": failed} if intake else None,
                "left_out": left_out,
                "writes": asdict(workbench.write_times()),
                "trainings": [asdict(job) for job in trainings],
                "troubles": {
                    "now": troubles,
                    "damaged": [asdict(each) for each in damaged.all()],
                    "reader_failures": reader_failures,
                },
                "turned_away": recent.counts(),
                "errors": [asdict(failure) for failure in recent.all()],
            }
        )

    return routes
