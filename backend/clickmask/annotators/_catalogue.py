"""Installed annotators by name, each loaded once and when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from clickmask.errors import (
    AnnotatorNotReady,
    UnknownAnnotator,
)
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.models.labeller import ProjectModels, folder_name
from clickmask.plugins import Installed, Kind
from clickmask.types import Annotator


@dataclass(frozen=True)
class AnnotatorStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    labels: tuple[str, ...]  # what it gives to objects; none while it is not ready


class AnnotatorCatalogue(Installed[Annotator]):
    """Annotators; their plugins are given `segmenters`, `embeddings` and the trained `models`, if any.

    `refiner` is the segmenter that is shown what a trained model finds.
    """

    def __init__(
        self,
        package: ModuleType,
        segmenters: Catalogue,
        embeddings: EmbeddingCache,
        models: ProjectModels | None = None,
        refiner: str | None = None,
    ) -> None:
        self._models = models
        self._refiner = refiner
        super().__init__(
            package,
            Kind("annotator", UnknownAnnotator, AnnotatorNotReady),
            segmenters=segmenters,
            embeddings=embeddings,
            models=models,
            refiner=refiner,
        )

    def trained(self, tool: str, project: str) -> tuple[str, str] | None:
        """Name and version of the annotator that was trained on a project; None while none is served.

        Raises ModelDamaged.
        """
        if self._models is None:
            return None
        version = self._models.of(tool, project).served()
        refined = f" refined by {self._refiner}" if self._refiner else ""
        return version and (f"trained:{folder_name(tool, project)}", f"unet {version.id}{refined}")

    def statuses(self) -> list[AnnotatorStatus]:
        """Every annotator, sorted by family; loads no model."""
        return [
            AnnotatorStatus(name, False, reason, ()) if reason else self._ready(name)
            for name, reason in self._reasons()
        ]

    def _ready(self, name: str) -> AnnotatorStatus:
        module, variant = self.plugin(name)
        try:
            return AnnotatorStatus(name, True, "", tuple(map(str, self._call(module.labels, variant))))
        except Exception as error:  # noqa: BLE001  # foreign code must not hide the others
            return AnnotatorStatus(name, False, self._broken_by(error, name), ())
