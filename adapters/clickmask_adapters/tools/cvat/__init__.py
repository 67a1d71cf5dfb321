"""CVAT (read and measured with 2.73.0): its interactors and detectors, without nuclio, and its labels."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter

from clickmask.errors import InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.home import Home
from clickmask_adapters.tools import Tool
from clickmask_adapters.tools._prelabel import Step
from clickmask_adapters.tools.cvat import connect, prelabel, pull, routes
from clickmask_adapters.tools.cvat.client import client_of


class Cvat(Tool):
    name = "cvat"

    def __init__(self, home: Home) -> None:
        self._home = home
        self._client = client_of(home.settings)
        self._labels = pull.CvatLabels(self._client)

    @property
    def origin(self) -> str | None:
        return self._client.url

    @property
    def open_paths(self) -> frozenset[str]:
        return frozenset({"/", "/api/", "/webhooks/"})

    @property
    def signed_paths(self) -> frozenset[str]:
        return frozenset({routes.PATH})

    @property
    def labels(self) -> pull.CvatLabels:
        return self._labels

    def router(self, workbench: Workbench) -> APIRouter:
        both = APIRouter(include_in_schema=False)
        both.include_router(routes.router(workbench, self._home.settings))
        both.include_router(routes.webhook_router(workbench, self._home.settings))
        return both

    def connect(self, project: str, our_url: str) -> Iterator[str]:
        if not project.isascii() or not project.isdigit():
            raise InvalidRequest(f"{project[:40]!r} is not the number of a CVAT project")
        settings = self._home.settings
        secret = settings.cvat_webhook_secret.get_secret_value() if settings.cvat_webhook_secret else None
        return connect.connect(self._client, int(project), our_url, secret, self._home.images.identify)

    def prelabel(self, workbench: Workbench, project: str) -> Iterator[Step]:
        return prelabel.prelabel(workbench, self._home.settings, project)


def create(home: Home) -> Tool:
    return Cvat(home)
