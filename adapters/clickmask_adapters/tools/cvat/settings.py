"""The variables that CVAT's own command line uses, too, and what is CVAT's alone."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from clickmask_adapters.tools._settings import ServerUrl


class CvatSettings(BaseModel):
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
    cvat_direct_function: str | None = None
    """The function that CVAT means if it calls without a name: its nuclio method `direct`."""
    cvat_webhook_secret: SecretStr | None = Field(default=None, validation_alias="CVAT_WEBHOOK_SECRET")
    """The secret with which CVAT signs its webhooks; without it they are refused."""
