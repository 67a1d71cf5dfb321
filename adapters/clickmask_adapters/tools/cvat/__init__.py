"""CVAT (read and measured with 2.73.0): its interactors and detectors, without nuclio, and its labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from clickmask_adapters.tools import NamedImage, Tool
from clickmask_adapters.tools._settings import ServerUrl

if TYPE_CHECKING:
    from fastapi import APIRouter

    from clickmask.workbench import Workbench
    from clickmask_adapters.home import Home
    from clickmask_adapters.tools._prelabel import Step
    from clickmask_adapters.tools.cvat.client import CvatClient
    from clickmask_adapters.tools.cvat.pull import CvatLabels

WEBHOOK = "/webhooks/cvat"


class CvatSettings(BaseModel):
    """The variables that CVAT's own command line uses, too, and what is CVAT's alone."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cvat_url: ServerUrl = Field(default=None, validation_alias="CVAT_URL")
    """The address of CVAT, from which it is asked for jobs, labels and frames."""
    cvat_access_token: SecretStr | None = Field(default=None, validation_alias="CVAT_ACCESS_TOKEN")
    """A personal access token; or else a user name and password."""
    cvat_username: str | None = Field(default=None, validation_alias="CVAT_USERNAME")
    """The user name, if there is no access token."""
    cvat_password: SecretStr | None = Field(default=None, validation_alias="CVAT_PASSWORD")
    """The password of that user."""
    cvat_candidates: bool = False
    """Answer a click in CVAT with every mask that the segmenter considers, not with the best alone."""
    cvat_controls: Annotated[tuple[str, ...], NoDecode] = ()
    """More interactors, each a segmenter and the controls of its masks: `builtin smooth=2 max_parts=1`."""
    cvat_direct_function: str | None = None
    """The function that CVAT means if it calls without a name: its nuclio method `direct`."""
    cvat_webhook_secret: SecretStr | None = Field(default=None, validation_alias="CVAT_WEBHOOK_SECRET")
    """The secret with which CVAT signs its webhooks; without it they are refused."""

    @field_validator("cvat_controls", mode="before")
    @classmethod
    def _variants(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        from clickmask_adapters.tools.cvat.functions import split_variants

        return split_variants(value)


SETTINGS = CvatSettings


class Cvat(Tool):
    name = "cvat"
    default_our_url = "http://nuclio.internal:8070"  # CVAT refuses webhooks to a host without a dot
    open_paths = frozenset({"/api/", "/webhooks/", "/"})  # the root: nuclio's method `direct` posts there
    signed_paths = frozenset({WEBHOOK})

    def __init__(self, home: Home) -> None:
        self._home = home
        self._settings = home.settings.of(CvatSettings)

    @property
    def origin(self) -> str | None:
        return self._client.url

    @property
    def labels(self) -> CvatLabels:
        return self._labels

    @cached_property
    def _labels(self) -> CvatLabels:
        from clickmask_adapters.tools.cvat.pull import CvatLabels

        return CvatLabels(self._client)

    def router(self, workbench: Workbench) -> APIRouter:
        from clickmask_adapters.tools.cvat import routes

        return routes.router(workbench, self._settings, self._home.settings.min_iou)

    def images(self, project: str) -> Iterator[NamedImage]:
        from clickmask_adapters.tools.cvat.pull import project_images

        return project_images(self._client, project)

    def connect(self, project: str, our_url: str) -> Iterator[str]:
        from clickmask_adapters.tools.cvat.connect import connect

        secret = self._settings.cvat_webhook_secret
        plain = secret.get_secret_value() if secret else None
        return connect(self._client, project, our_url, plain, self._home.images.identify)

    def prelabel(self, workbench: Workbench, project: str, annotator: str | None = None) -> Iterator[Step]:
        from clickmask_adapters.tools.cvat.prelabel import prelabel

        return prelabel(workbench, self._client, project, self._home.settings.min_iou, annotator)

    @cached_property
    def _client(self) -> CvatClient:
        from clickmask_adapters.tools.cvat.client import client_of

        return client_of(self._settings)


def create(home: Home) -> Tool:
    return Cvat(home)
