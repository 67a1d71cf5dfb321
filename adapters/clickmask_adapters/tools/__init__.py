"""One package a labeling tool, found by its name.

A package offers `create(home: Home) -> Tool`. Its events are kept under the package's name.
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


@dataclass(frozen=True)
class NamedImage:
    """An image to encode: `name` for people, `locate` says where it is and may raise a ClickmaskError."""

    name: str
    locate: Callable[[], ImageRef]


class Tool(Protocol):
    """A labeling tool as the server and the commands see it; making one asks the tool nothing.

    `name` and `router` are needed. A tool that cannot do the rest inherits what stands here.
    """

    name: str

    @property
    def origin(self) -> str | None:
        """The address that the tool is configured at; None if it is not."""
        return None

    @property
    def open_paths(self) -> frozenset[str]:
        """Paths that the tool calls without the server's secret, from trusted networks alone.

        One that ends with "/" stands for all below it; "/" alone is POST to the root, whose GET is a page.
        """
        return frozenset()

    @property
    def signed_paths(self) -> frozenset[str]:
        """Paths of POSTs that carry a signature instead of the server's secret; their routes check it."""
        return frozenset()

    @property
    def labels(self) -> LabelSource | None:
        """Where the tool's accepted labels come from; None if they are not taken in."""
        return None

    def router(self, workbench: Workbench) -> APIRouter:
        """The routes that the tool calls."""
        ...

    def images(self, project: str) -> Iterator[NamedImage]:
        """Every image of the project, in the tool's order. Raises InvalidRequest and ToolUnavailable."""
        raise InvalidRequest(f"{self.name}'s images cannot be listed")

    def connect(self, project: str, our_url: str) -> Iterator[str]:
        """Point the project at the server at `our_url` and check both directions; a sentence a step."""
        raise InvalidRequest(f"{self.name}'s projects cannot be connected")

    def prelabel(self, workbench: Workbench, project: str) -> Iterator[Step]:
        """Let the project's trained model draw in what nobody has touched."""
        raise InvalidRequest(f"{self.name}'s projects cannot be labelled ahead")
