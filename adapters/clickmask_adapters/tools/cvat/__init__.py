"""CVAT (read and measured with 2.73.0): its interactors and detectors, without nuclio, and its labels."""

from __future__ import annotations

from fastapi import APIRouter

from clickmask.workbench import Workbench
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import gateway, webhook
from clickmask_adapters.tools.cvat.commands import connect_command
from clickmask_adapters.tools.cvat.prelabelling import prelabel
from clickmask_adapters.tools.cvat.pulling import accepting
from clickmask_adapters.tools.cvat.webhook import signed_paths

__all__ = ("accepting", "connect_command", "prelabel", "router", "signed_paths")


def router(workbench: Workbench, settings: Settings) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    routes.include_router(gateway.router(workbench, settings))
    routes.include_router(webhook.router(workbench, settings))
    return routes
