"""The variables that Label Studio's own machine learning backends use, too."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr

from clickmask_adapters.tools._settings import ServerUrl


class LabelStudioSettings(BaseModel):
    label_studio_url: ServerUrl = Field(default=None, validation_alias="LABEL_STUDIO_URL")
    label_studio_api_key: SecretStr | None = Field(default=None, validation_alias="LABEL_STUDIO_API_KEY")
    """A legacy or a personal access token; default installations refuse the one that /setup carries."""
