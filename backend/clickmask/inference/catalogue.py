"""The plugins that are installed, by name, each loaded once and when it is first needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from clickmask.errors import (
    SegmenterNotReady,
    UnknownSegmenter,
)
from clickmask.inference.onnx_exports import Progress
from clickmask.inference.runtimes import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Installed, Kind
from clickmask.types import Segmenter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmenterStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    decoder: str = ""  # the SAM whose own decoder can read this one's embeddings; empty: none


class Catalogue(Installed[Segmenter[Any]]):
    """Segmenters; their plugins are given `weights` and `runtimes`."""

    def __init__(self, package: ModuleType, weights: WeightsFolder, runtimes: Runtimes | None = None) -> None:
        super().__init__(
            package,
            Kind("segmenter", UnknownSegmenter, SegmenterNotReady),
            weights=weights,
            runtimes=runtimes or Runtimes(),
        )

    def export(self, name: str, progress: Progress) -> bool:
        """Make now what loading `name` would first have to make, for minutes; whether there is such a thing.

        Raises as `require` does, and SegmenterNotReady.
        """
        module, variant = self.plugin(name)
        if not hasattr(module, "export"):
            return False
        return self._call(partial(module.export, progress=progress), variant) is not None

    def statuses(self) -> list[SegmenterStatus]:
        """Every segmenter, sorted by family; loads no model."""
        return [
            SegmenterStatus(name, False, reason) if reason else self._ready(name)
            for name, reason in self._reasons()
        ]

    def _ready(self, name: str) -> SegmenterStatus:
        module, variant = self.plugin(name)
        try:
            return SegmenterStatus(name, True, "", getattr(module, "DECODERS", {}).get(variant, ""))
        except Exception as error:  # noqa: BLE001  # foreign code must not hide the others
            return SegmenterStatus(name, False, self._broken_by(error, name))
