"""CVAT (read and measured with 2.73.0): its interactors and detectors, without nuclio, and its labels."""

from __future__ import annotations

from fastapi import APIRouter

from clickmask.workbench import Workbench
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import routes as cvat
from clickmask_adapters.tools.cvat.commands import connect_command
from clickmask_adapters.tools.cvat.prelabel import prelabel
from clickmask_adapters.tools.cvat.pull import accepting
from clickmask_adapters.tools.cvat.routes import signed_paths

__all__ = ("accepting", "connect_command", "prelabel", "router", "signed_paths")


def router(workbench: Workbench, settings: Settings) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    routes.include_router(cvat.router(workbench, settings))
    routes.include_router(cvat.webhook_router(workbench, settings))
    return routes
