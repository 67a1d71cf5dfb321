"""The installed segmenters by name. Each is loaded once, when it is first needed."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from clickmask.errors import NotReady
from clickmask.inference.onnx_exports import Progress
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Families
from clickmask.types import Segmenter


@dataclass(frozen=True)
class Host:
    """The parts of this process that a family of segmenters may use."""

    weights: WeightsFolder
    runtimes: Runtimes = field(default_factory=Runtimes)

    @property
    def threads(self) -> int:
        """Threads that one computation may use."""
        return self.runtimes.cores


@dataclass(frozen=True)
class SegmenterStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    decoder: str = ""  # the SAM whose decoder can read this one's embeddings; empty if there is none


class Catalogue(Families[Host, Segmenter[Any]]):
    """The segmenters. A family may also offer `export(variant, host, progress)`; see `export` below."""

    noun = "segmenter"

    def __init__(self, package: ModuleType, weights: WeightsFolder, runtimes: Runtimes | None = None) -> None:
        super().__init__(package, Host(weights, runtimes or Runtimes()))

    def export(self, name: str, progress: Progress) -> bool:
        """Export now what loading `name` would wait minutes for; False if nothing. Raises NotFound,
        NotReady."""
        family, variant = self._find(name)
        export: Any = getattr(family, "export", None)
        return export is not None and export(variant, self._host, progress) is not None

    def require_all_but_weights(self, name: str) -> None:
        """Raise NotReady if more than its weights is missing, which should be known before a download. Raises
        NotFound."""
        reason = self._missing(*self._find(name))
        if reason and reason != self._host.weights.missing(name):
            raise NotReady(f"{name} cannot run: {reason}")

    def statuses(self) -> list[SegmenterStatus]:
        """Every segmenter, sorted by family. Loads no model."""
        return [
            SegmenterStatus(name, not reason, reason, variant.sam_decoder if variant and not reason else "")
            for name, variant, reason in self._all()
        ]
