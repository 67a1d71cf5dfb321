"""The installed annotators by name, each loaded once and when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

from clickmask.errors import NotFound, NotReady
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.models.labeller import ProjectModels, folder_name
from clickmask.plugins import Families, Family
from clickmask.types import Annotator


@dataclass(frozen=True)
class Host:
    """What a family of annotators may use of this process."""

    segmenters: Catalogue
    embeddings: EmbeddingCache  # the one that clicks use too
    models: ProjectModels | None = None  # trained here
    refiner: str | None = None  # the segmenter that is shown what a trained model finds


@dataclass(frozen=True)
class AnnotatorStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    labels: tuple[str, ...]  # what it gives to objects; none while it is not ready


class AnnotatorFamily(Family[Host, Annotator], Protocol):
    """A module that loads annotators: a `Family` that says its labels before anything is loaded."""

    def labels(self, variant: str, host: Host) -> tuple[str, ...]:
        """What the variant calls the objects that it finds."""
        ...


class AnnotatorCatalogue(Families[Host, Annotator]):
    """Annotators; their families are each an `AnnotatorFamily`."""

    noun = "annotator"
    unknown = NotFound
    not_ready = NotReady

    def __init__(
        self,
        package: ModuleType,
        segmenters: Catalogue,
        embeddings: EmbeddingCache,
        models: ProjectModels | None = None,
        refiner: str | None = None,
    ) -> None:
        super().__init__(package, Host(segmenters, embeddings, models, refiner))

    def trained(self, tool: str, project: str) -> tuple[str, str] | None:
        """Name and version of the annotator that was trained on a project; None while none is served.

        Raises Failed.
        """
        if self._host.models is None:
            return None
        version = self._host.models.of(tool, project).served()
        refined = f" refined by {self._host.refiner}" if self._host.refiner else ""
        return version and (f"trained:{folder_name(tool, project)}", f"unet {version.id}{refined}")

    def statuses(self) -> list[AnnotatorStatus]:
        """Every annotator, sorted by family; loads no model."""
        return [
            AnnotatorStatus(name, False, reason, ()) if reason else self._ready(name)
            for name, _, reason in self._all()
        ]

    def _ready(self, name: str) -> AnnotatorStatus:
        try:
            family, variant = self._find(name)
            labels = cast("AnnotatorFamily", family).labels(variant, self._host)
            return AnnotatorStatus(name, True, "", tuple(map(str, labels)))
        except Exception as error:  # noqa: BLE001 - foreign code: a broken one must not hide the others
            return AnnotatorStatus(name, False, self._broken_by(error, name), ())
