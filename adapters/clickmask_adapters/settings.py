"""The settings: CLICKMASK_* variables, and the names that the labeling tools' own backends use.

The only reader of the environment.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="CLICKMASK_", populate_by_name=True, extra="ignore", use_attribute_docstrings=True
    )

    home: Path = Path("~/.clickmask")
    """Holds everything that clickmask writes."""
    segmenter: str = "builtin"
    """`family` or `family:variant`; the default of every surface."""
    weights_mirror: str | None = None
    """The folder, or http(s) address of one, that weights are fetched from instead of officially."""

    runtime: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto"
    """What runs the networks; auto: torch on a GPU, elsewhere what was measured to be the fastest."""
    precision: Literal["auto", "f32"] = "auto"
    """auto: image encoders compute in bf16 where the processor has it; f32: everything in float32."""
    threads: int | None = Field(default=None, ge=1)
    """Cores for the networks; default: all that this process may use."""

    token: SecretStr | None = None
    """The secret: `Authorization: Token …` or `Bearer …`, or the password of basic auth."""
    username: str = "clickmask"
    """The user name that basic auth must give beside the token."""
    trusted_networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks whose labeling tools need no secret (they send none); comma separated."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names under which this server may be reached, beside loopback and addresses; comma separated."""

    image_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts with private addresses from which images may be read; comma separated, `host` or `host:port`."""
    image_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders from which file:// images may be read; comma separated."""
    ca_bundle: Path | None = None
    """A PEM file of the authorities that images' servers are verified with, instead of certifi's."""
    max_image_bytes: int = 200 * 2**20
    max_image_pixels: int = 100_000_000
    max_body_bytes: int = 300 * 2**20
    max_points: int = 1000
    """Points of one prompt, foreground and background together."""

    embedding_bytes: int = 2**30
    """Memory for embeddings."""
    disk_bytes: int = 10 * 2**30
    """Room for embeddings under `home`, where they survive a restart; 0: none are kept there."""
    kept_bytes: int = 50 * 2**30
    """Room under `home` for the images that labels are on, so that later work needs no labeling tool."""
    database: SecretStr | None = None
    """The URL of a database instead of an SQLite file in `home`: postgresql+psycopg://user:password@host/name."""
    export_bytes: int = 10 * 2**30
    """The pictures of one export over HTTP, together; `clickmask export` has no such limit."""
    image_bytes: int = 256 * 2**20
    """Memory for decoded images."""
    queue_length: int = 64
    """Images that may wait to be encoded; one more is answered 503."""
    min_iou: float = Field(default=0.98, gt=0, le=1)
    """The IoU with the mask that outlines must reach, in as few points as that takes."""

    train_seconds: float = Field(default=1200.0, gt=0)
    """How long a training of a project's model takes at most, stops not counted."""
    train_after: int = Field(default=10, ge=0)
    """So many newly labelled images begin a training by themselves; 0: none ever do."""
    train_quiet: float = Field(default=120.0, ge=0)
    """Seconds without a new label, after which a training begins by itself."""

    refine: bool = False
    """Show the default segmenter each object that a trained model finds, and keep the better outline."""

    label_studio_url: str | None = Field(default=None, validation_alias="LABEL_STUDIO_URL")
    label_studio_api_key: SecretStr | None = Field(default=None, validation_alias="LABEL_STUDIO_API_KEY")
    """A legacy or a personal access token; default installations refuse the one that /setup carries."""

    cvat_url: str | None = Field(default=None, validation_alias="CVAT_URL")
    cvat_access_token: SecretStr | None = Field(default=None, validation_alias="CVAT_ACCESS_TOKEN")
    """A personal access token; or else a user name and password."""
    cvat_username: str | None = Field(default=None, validation_alias="CVAT_USERNAME")
    cvat_password: SecretStr | None = Field(default=None, validation_alias="CVAT_PASSWORD")
    cvat_candidates: bool = False
    """Answer a click in CVAT with all the masks that the segmenter considers, not with the best alone."""
    cvat_direct_function: str | None = None
    """The function that CVAT means where it calls without a name: its nuclio method `direct`."""
    cvat_webhook_secret: SecretStr | None = Field(default=None, validation_alias="CVAT_WEBHOOK_SECRET")
    """What CVAT signs its webhooks with; without it they are refused."""

    @field_validator("trusted_networks", "allowed_hosts", "image_hosts", "image_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("home", mode="after")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("label_studio_url", "cvat_url", mode="after")
    @classmethod
    def _strip_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else None
