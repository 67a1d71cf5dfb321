"""The three routes of nuclio's dashboard that CVAT calls, answered without nuclio."""

from __future__ import annotations

from fastapi import APIRouter

from clickmask.workbench import Workbench
from clickmask_adapters.settings import Settings


def router(workbench: Workbench, settings: Settings) -> APIRouter:
    return APIRouter(include_in_schema=False)
