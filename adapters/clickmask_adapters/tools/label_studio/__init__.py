"""Label Studio (recorded with 1.23.2): its machine learning backend, and the labels made in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr

from clickmask_adapters.tools import NamedImage, Tool
from clickmask_adapters.tools._settings import ServerUrl

if TYPE_CHECKING:
    from fastapi import APIRouter

    from clickmask.workbench import Workbench
    from clickmask_adapters.home import Home
    from clickmask_adapters.tools._prelabel import Step
    from clickmask_adapters.tools.label_studio.client import LabelStudioClient
    from clickmask_adapters.tools.label_studio.pull import LabelStudioLabels

TOOL = "label_studio"


class LabelStudioSettings(BaseModel):
    """The variables that Label Studio's own machine learning backends use, too."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    label_studio_url: ServerUrl = Field(
        default=None, validation_alias=AliasChoices("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST")
    )
    """The address of Label Studio, from which it is asked for tasks, labels and images."""
    label_studio_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN")
    )
    """A legacy or a personal access token; default installations refuse the one that /setup carries."""


SETTINGS = LabelStudioSettings


class LabelStudio(Tool):
    name = TOOL
    open_paths = frozenset({"/health", "/setup", "/predict", "/versions", "/webhook"})

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def default_our_url(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # never set
        return f"http://127.0.0.1:{self._home.settings.port or 9090}"

    @property
    def origin(self) -> str | None:
        return self._client.url

    @property
    def labels(self) -> LabelStudioLabels:
        return self._labels

    @cached_property
    def _labels(self) -> LabelStudioLabels:
        from clickmask_adapters.tools.label_studio.pull import LabelStudioLabels

        return LabelStudioLabels(self._client)

    def router(self, workbench: Workbench) -> APIRouter:
        from clickmask_adapters.tools.label_studio import routes

        return routes.router(workbench, self._client, self._home.settings.min_iou)

    def images(self, project: str) -> Iterator[NamedImage]:
        from clickmask_adapters.tools.label_studio.pull import project_images

        return project_images(self._client, project)

    def connect(self, project: str, our_url: str) -> Iterator[str]:
        from clickmask_adapters.tools.label_studio.connect import connect

        settings, read = self._home.settings, self._home.images.identify
        secret = settings.token.get_secret_value() if settings.token else None
        return connect(self._client, project, our_url, secret, read, settings.username)

    def prelabel(self, workbench: Workbench, project: str, annotator: str | None = None) -> Iterator[Step]:
        from clickmask_adapters.tools.label_studio.prelabel import prelabel

        return prelabel(workbench, self._client, project, self._home.settings.min_iou, annotator)

    @cached_property
    def _client(self) -> LabelStudioClient:
        from clickmask_adapters.tools.label_studio.client import client_of

        return client_of(self._home.settings.of(LabelStudioSettings))


def create(home: Home) -> Tool:
    return LabelStudio(home)
