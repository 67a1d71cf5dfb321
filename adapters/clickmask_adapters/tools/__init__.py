"""One package or module per labeling tool, found by its name.

It offers `create(home: Home) -> Tool` and, if it has variables of its own, `SETTINGS`: a pydantic BaseModel
whose field names begin with the tool's name. Events, labels and projects are stored under the package's name.
Importing it must be cheap, so methods import FastAPI, OpenCV and the like when they need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from clickmask.errors import InvalidRequest
from clickmask.types import ImageRef

if TYPE_CHECKING:
    from fastapi import APIRouter

    from clickmask.ingest.apply import LabelSource
    from clickmask.workbench import Workbench
    from clickmask_adapters.tools._prelabel import Step

OWN = "page"  # in the place of a tool's name: projects of clickmask's own, without a labeling tool


@dataclass(frozen=True)
class NamedImage:
    """An image to encode. `name` is for people; `locate` gives its address, or raises a ClickmaskError."""

    name: str
    locate: Callable[[], ImageRef]


class Tool(Protocol):
    """A labeling tool, for the server and the commands. Creating one sends no request.

    `name` and `router` are required; the rest has defaults. `project` is a project's name as people give it:
    methods raise InvalidRequest if it is not one, and ToolUnavailable if the tool does not answer.
    """

    name: str
    default_our_url: str = "http://127.0.0.1:9090"
    """The address of clickmask as the tool sees it, unless a user gives another."""
    open_paths: frozenset[str] = frozenset()
    """Paths that the tool calls from trusted networks without the server's secret.
    A path that ends with "/" is a prefix, except "/" itself: the root alone, for POSTs."""
    signed_paths: frozenset[str] = frozenset()
    """Paths of POSTs that carry a signature instead of the server's secret; their routes MUST check it."""

    @property
    def origin(self) -> str | None:
        """The tool's configured address; None if there is none."""
        return None

    @property
    def labels(self) -> LabelSource | None:
        """The source of the tool's accepted labels; None if they are not ingested."""
        return None

    def router(self, workbench: Workbench) -> APIRouter:
        """The routes that the tool calls."""
        ...

    def images(self, project: str) -> Iterator[NamedImage]:
        """Every image of the project, in the tool's order."""
        raise InvalidRequest(f"{self.name}'s images cannot be listed")

    def connect(self, project: str, our_url: str) -> Iterator[str]:
        """Point the project at the server at `our_url` and check both directions; one sentence per step."""
        raise InvalidRequest(f"{self.name}'s projects cannot be connected")

    def prelabel(self, workbench: Workbench, project: str, annotator: str | None = None) -> Iterator[Step]:
        """Let the project's trained model, or `annotator`, draw in everything that nobody has touched."""
        raise InvalidRequest(f"{self.name}'s projects cannot be prelabelled")
