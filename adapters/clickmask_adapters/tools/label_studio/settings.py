"""The variables that Label Studio's own machine learning backends use, too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from clickmask_adapters.tools._settings import ServerUrl


class LabelStudioSettings(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    label_studio_url: ServerUrl = Field(default=None, validation_alias="LABEL_STUDIO_URL")
    """The address of Label Studio, from which it is asked for tasks, labels and images."""
    label_studio_api_key: SecretStr | None = Field(default=None, validation_alias="LABEL_STUDIO_API_KEY")
    """A legacy or a personal access token; default installations refuse the one that /setup carries."""
