"""The settings: CLICKMASK_* variables, and the fields that each labeling tool brings.

The only reader of the environment.
"""

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clickmask import plugins
from clickmask_adapters import tools

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FieldsT = TypeVar("FieldsT", bound=BaseModel)


class CoreSettings(BaseSettings):
    """Every field that belongs to no labeling tool."""

    model_config = SettingsConfigDict(
        env_prefix="CLICKMASK_", populate_by_name=True, extra="ignore", use_attribute_docstrings=True
    )

    home: Path = Path("~/.clickmask")
    """Holds everything that clickmask writes."""
    segmenter: str = "builtin"
    """`family` or `family:variant`; the default of every surface."""
    weights_mirror: str | None = None
    """A folder, or the http(s) address of one, with the weights, instead of their official addresses."""

    runtime: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto"
    """The runtime of the networks; auto: torch on a GPU, elsewhere the one that was measured fastest."""
    precision: Literal["auto", "f32"] = "auto"
    """auto: image encoders compute in bf16 if the processor has it; f32: everything in float32."""
    threads: int | None = Field(default=None, ge=1)
    """Cores for the networks; default: all that this process may use."""

    token: SecretStr | None = None
    """The secret: `Authorization: Token …` or `Bearer …`, or the password of basic auth."""
    username: str = "clickmask"
    """The user name that basic auth must give with the token."""
    trusted_networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks whose labeling tools need no secret (they send none); comma separated."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names under which this server may be reached, beside loopback and addresses; comma separated."""

    image_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts with private addresses from which images may be read; `host` or `host:port`, comma separated."""
    image_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders from which file:// images may be read; comma separated."""
    ca_bundle: Path | None = None
    """A PEM file of the authorities that verify the servers of images, instead of certifi's."""
    max_image_bytes: int = 200 * 2**20
    """The most bytes of an image file."""
    max_image_pixels: int = 100_000_000
    """The most pixels of an image."""
    max_body_bytes: int = 300 * 2**20
    """The most bytes of a request."""
    max_points: int = 1000
    """The most points of one prompt, foreground and background together."""

    embedding_bytes: int = 2**30
    """Memory for embeddings."""
    disk_bytes: int = 10 * 2**30
    """Room for embeddings under `home`, where they survive a restart; 0: none are kept there."""
    kept_bytes: int = 50 * 2**30
    """Room under `home` for labelled images, so that later work needs no labeling tool."""
    database: SecretStr | None = None
    """The URL of a database instead of an SQLite file in `home`: postgresql+psycopg://user:password@host/name."""
    export_bytes: int = 10 * 2**30
    """The most bytes of pictures in one export over HTTP; `clickmask export` has no such limit."""
    image_bytes: int = 256 * 2**20
    """Memory for decoded images."""
    queue_length: int = 64
    """Images that may wait to be encoded; one more is answered 503."""
    min_iou: float = Field(default=0.98, gt=0, le=1)
    """The IoU with the mask that outlines must reach, in as few points as possible."""

    train_seconds: float = Field(default=1200.0, gt=0)
    """The most seconds of a project's training, in its own processor time: a busy machine takes longer."""
    train_after: int = Field(default=10, ge=0)
    """This many newly labelled images start a training by themselves; 0: they never do."""
    train_quiet: float = Field(default=120.0, ge=0)
    """Seconds without a new label before a training starts by itself."""

    refine: bool = False
    """Show the default segmenter each object that a trained model finds, and keep the better outline."""

    @field_validator("trusted_networks", "allowed_hosts", "image_hosts", "image_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("home", mode="after")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    def of(self, kind: type[FieldsT]) -> FieldsT:
        """These settings as those of a tool: `kind` is a class of fields that its package brings."""
        if not isinstance(self, kind):
            raise TypeError(f"{kind.__name__} is not among the fields that the tools bring")
        return self


if TYPE_CHECKING:
    Settings = CoreSettings  # a tool reads its own fields by `of`
else:
    # Composed from the packages that are there: a new tool's variables need no line here.
    _BROUGHT = [getattr(plugins.load(tools, name), "SETTINGS", None) for name in plugins.names(tools)]

    class Settings(CoreSettings, *filter(None, _BROUGHT)):
        """The fields of clickmask and of every labeling tool that is installed."""
