"""The state of the server, at /v1/status."""

import time
from dataclasses import asdict

from fastapi import APIRouter, Response

import clickmask
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response
from clickmask_adapters.server.failures import RecentFailures


def router(workbench: Workbench, recent: RecentFailures) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    started = time.monotonic()

    @routes.get("/status", summary="How the server is doing, with its last 50 errors")
    async def status() -> Response:
        cache = asdict(workbench.cache_status())
        queue = {"waiting": cache.pop("waiting"), "capacity": cache.pop("queue_length")}
        intake = workbench.intake_status()
        failed = [each._asdict() for each in intake.newest_set_aside] if intake else []
        return json_response(
            {
                "version": clickmask.__version__,
                "segmenter": workbench.default_segmenter,
                "uptime_s": round(time.monotonic() - started, 1),
                "cache": cache,
                "queue": queue,
                "inbox": workbench.kept_events(),
                "intake": asdict(intake) | {"newest_set_aside": failed} if intake else None,
                "left_out": workbench.left_out(),
                "writes": asdict(workbench.write_times()),
                "trainings": [asdict(job) for job in workbench.jobs_under_way()],
                "errors": [asdict(failure) for failure in recent.all()],
            }
        )

    return routes
