"""The settings: CLICKMASK_* variables, and the fields that each labeling tool brings.

The only reader of the environment.
"""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clickmask import plugins
from clickmask.errors import InvalidRequest
from clickmask.images.memory import DECODE_BYTES
from clickmask_adapters import tools

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FieldsT = TypeVar("FieldsT", bound=BaseModel)


def variables(name: str, field: FieldInfo) -> list[str]:
    """The environment variables that set a field, the first of them that is set."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [str(alias or f"CLICKMASK_{name.upper()}")]


class CoreSettings(BaseSettings):
    """Every field that belongs to no labeling tool."""

    model_config = SettingsConfigDict(
        env_prefix="CLICKMASK_",
        env_ignore_empty=True,  # compose files pass on variables that are not set
        populate_by_name=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    home: Path = Path("~/.clickmask")
    """Holds everything that clickmask writes."""
    segmenter: str = "builtin"
    """`family` or `family:variant`; the default of every surface."""
    weights_mirror: str | None = None
    """A folder, or the http(s) address of one, with the weights, instead of their official addresses."""

    port: int = Field(default=9090, ge=0, le=65535)
    """The port that `clickmask serve` listens on; 0: any free one."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        default="info", validation_alias=AliasChoices("CLICKMASK_LOG_LEVEL", "LOG_LEVEL")
    )
    """The least serious lines that `clickmask serve` logs."""

    runtime: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto"
    """The runtime of the networks; auto: torch on a GPU, elsewhere the one that was measured fastest."""
    precision: Literal["auto", "f32"] = "auto"
    """auto: image encoders compute in bf16 if the processor has it; f32: everything in float32."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Cores for the networks; default: all that this process may use."""

    token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("CLICKMASK_TOKEN", "BASIC_AUTH_PASS")
    )
    """The secret: `Authorization: Token …` or `Bearer …`, or the password of basic auth."""
    username: str = Field(
        default="clickmask", validation_alias=AliasChoices("CLICKMASK_USERNAME", "BASIC_AUTH_USER")
    )
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
    max_image_bytes: int = Field(default=200 * 2**20, ge=1)
    """The most bytes of an image file."""
    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """The most pixels of an image."""
    max_body_bytes: int = Field(default=300 * 2**20, ge=1)
    """The most bytes of a request."""
    max_points: int = Field(default=1000, ge=1)
    """The most points of one prompt, foreground and background together."""

    embedding_bytes: int = Field(default=2**30, ge=0)
    """Memory for embeddings."""
    disk_bytes: int = Field(default=10 * 2**30, ge=0)
    """Room for embeddings under `home`, where they survive a restart; 0: none are kept there."""
    kept_bytes: int = Field(default=50 * 2**30, ge=0)
    """Room under `home` for labelled images, so that later work needs no labeling tool."""
    database: SecretStr | None = None
    """The URL of a database instead of an SQLite file in `home`: postgresql+psycopg://user:password@host/name."""
    export_bytes: int = Field(default=10 * 2**30, ge=0)
    """The most bytes of pictures in one export over HTTP; `clickmask export` has no such limit."""
    image_bytes: int = Field(default=256 * 2**20, ge=0)
    """Memory for decoded images."""
    decode_bytes: int = Field(default=DECODE_BYTES, ge=1)
    """Memory for everything that is decoded at a time, decoded images included; what does not fit waits."""
    queue_length: int = Field(default=64, ge=1)
    """Images that may wait to be encoded; one more is answered 503."""
    min_iou: float = Field(default=0.98, gt=0, le=1)
    """The IoU with the mask that outlines must reach, in as few points as possible."""

    train_seconds: float = Field(default=1200.0, gt=0, allow_inf_nan=False)
    """The most seconds of a project's training, in its own processor time: a busy machine takes longer."""
    train_after: int = Field(default=10, ge=0)
    """This many newly labelled images start a training by themselves; 0: they never do."""
    train_quiet: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    """Seconds without a new label before a training starts by itself."""

    network: str = "unet"
    """The network that projects train: `unet`, or another one that is installed."""
    encoder: Path | None = None
    """A safetensors file of weights that its encoder starts from, instead of those of installed packages."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """What trains; auto: a GPU of NVIDIA or Apple if torch can use one, else the processor."""

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
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("there is no user of this name") from None

    @field_validator("port", mode="before")
    @classmethod
    def _not_of_kubernetes(cls, value: object) -> object:
        """Kubernetes sets CLICKMASK_PORT to tcp://… beside a service that is called clickmask."""
        return 9090 if isinstance(value, str) and value.startswith("tcp://") else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        lower = value.lower() if isinstance(value, str) else value
        return {"warn": "warning", "fatal": "critical"}.get(str(lower), lower)  # Python's own second names

    def of(self, kind: type[FieldsT]) -> FieldsT:
        """These settings as those of a tool: `kind` is a class of fields that its package brings."""
        if not isinstance(self, kind):
            raise TypeError(f"{kind.__name__} is not among the fields that the tools bring")
        return self


if TYPE_CHECKING:
    Settings = CoreSettings  # a tool reads its own fields by `of`
else:
    # Composed from the packages that are there: a new tool's variables need no line here.
    def _brought() -> Iterator[type]:
        for name in plugins.names(tools):
            with suppress(Exception):  # foreign code: `home` logs it, and leaves the tool out
                if fields := getattr(plugins.load(tools, name), "SETTINGS", None):
                    yield fields

    class Settings(CoreSettings, *_brought()):
        """The fields of clickmask and of every labeling tool that is installed."""


def read_settings(**given: Any) -> Settings:
    """The settings of the environment, except those that are `given`. Raises InvalidRequest with a sentence
    about each variable that makes no sense."""
    try:
        return Settings(**given)
    except ValidationError as error:
        names = {name: variables(name, field) for name, field in Settings.model_fields.items()}
        sentences: dict[str, str] = {}  # one for each: what is no network is neither one of IPv4 nor of IPv6
        for each in error.errors():
            place = str(each["loc"][0])  # a field or one of its variables
            known = next((found for name, found in names.items() if place in (name, *found)), [place])
            variable = next(filter(os.environ.get, known), known[0])
            value = str(each["input"])
            shown = "" if "@" in value else f" is {value[:80]!r}"  # an address may hold a password
            said = each["msg"].removeprefix("Value error, ").replace("Input", "it", 1)
            sentences.setdefault(variable, f"{variable}{shown}: {said}")
        raise InvalidRequest("\n".join(sentences.values())) from error
