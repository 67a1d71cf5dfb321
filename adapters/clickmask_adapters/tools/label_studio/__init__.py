"""Label Studio (recorded with 1.23.2): its machine learning backend, and the labels made in it."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter

from clickmask.workbench import Workbench
from clickmask_adapters.home import Home
from clickmask_adapters.tools import NamedImage, Tool
from clickmask_adapters.tools._prelabel import Step
from clickmask_adapters.tools.label_studio import connect, prelabel, pull, routes
from clickmask_adapters.tools.label_studio.client import client_of


class LabelStudio(Tool):
    name = "label_studio"

    def __init__(self, home: Home) -> None:
        self._home = home
        self._client = client_of(home.settings)
        self._labels = pull.LabelStudioLabels(self._client)

    @property
    def origin(self) -> str | None:
        return self._client.url

    @property
    def open_paths(self) -> frozenset[str]:
        return frozenset({"/health", "/setup", "/predict", "/versions", "/webhook"})

    @property
    def labels(self) -> pull.LabelStudioLabels:
        return self._labels

    def router(self, workbench: Workbench) -> APIRouter:
        return routes.router(workbench, self._home.settings)

    def images(self, project: str) -> Iterator[NamedImage]:
        return pull.project_images(self._client, pull.project_number(project))

    def connect(self, project: str, our_url: str) -> Iterator[str]:
        settings = self._home.settings
        secret = settings.token.get_secret_value() if settings.token else None
        number, read = pull.project_number(project), self._home.images.identify
        return connect.connect(self._client, number, our_url, secret, read, settings.username)

    def prelabel(self, workbench: Workbench, project: str) -> Iterator[Step]:
        return prelabel.prelabel(workbench, self._home.settings, project)


def create(home: Home) -> Tool:
    return LabelStudio(home)
