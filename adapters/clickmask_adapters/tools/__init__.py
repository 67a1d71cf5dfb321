"""One package a labeling tool.

Each offers `router(workbench, settings) -> APIRouter`, and may offer `connect_command`, a function that
is the command `clickmask connect TOOL`, and `signed_paths`, the paths of POSTs that carry a signature
instead of the server's secret: their routes check it. With `accepting(settings)`, an `LabelSource` of
`clickmask.ingest.apply`, its labels are taken in; its events are kept under the package's name. With
`prelabel(workbench, settings, project) -> Iterator[Prelabelled]` a project's model draws in it, for
`clickmask prelabel TOOL`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clickmask.types import ImageRef


@dataclass(frozen=True)
class NamedImage:
    """An image to encode: `name` for people, `locate` says where it is and may raise a ClickmaskError."""

    name: str
    locate: Callable[[], ImageRef]
