"""The installed annotators by name. Each is loaded once, when it is first needed."""

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.models.versions import ProjectModels, folder_name
from clickmask.plugins import Families, Family
from clickmask.types import Annotator


@dataclass(frozen=True)
class Host:
    """The parts of this process that a family of annotators may use."""

    segmenters: Catalogue
    embeddings: EmbeddingCache  # shared with clicks
    models: ProjectModels | None = None
    refiner: str | None = None  # the segmenter that refines what a trained model finds


@dataclass(frozen=True)
class AnnotatorStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    labels: tuple[str, ...]  # the labels it gives to objects; empty while it is not ready


class AnnotatorFamily(Family[Host, Annotator], Protocol):
    """A `Family` of annotators that knows the labels of its objects before anything is loaded."""

    def labels(self, variant: str, host: Host) -> tuple[str, ...]: ...


class AnnotatorCatalogue(Families[Host, Annotator]):
    """The annotators, whose families are each an `AnnotatorFamily`."""

    noun = "annotator"

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
        """Name and version of a project's trained annotator, or None if none is served. Raises Failed."""
        if self._host.models is None:
            return None
        version = self._host.models.of(tool, project).served()
        refined = f" refined by {self._host.refiner}" if self._host.refiner else ""
        return version and (
            f"trained:{folder_name(tool, project)}",
            f"{version.provenance.network} {version.id}{refined}",
        )

    def why_not_trained(self, tool: str, project: str) -> str:
        """See `Models.why_not_served`."""
        return self._host.models.of(tool, project).why_not_served() if self._host.models else ""

    def statuses(self) -> list[AnnotatorStatus]:
        """Every annotator, sorted by family. Loads no model."""
        return [
            AnnotatorStatus(name, False, reason, ()) if reason else self._ready(name)
            for name, _, reason in self._all()
        ]

    def _ready(self, name: str) -> AnnotatorStatus:
        try:
            family, variant = self._find(name)
            labels = cast("AnnotatorFamily", family).labels(variant, self._host)
            return AnnotatorStatus(name, True, "", tuple(map(str, labels)))
        except Exception as error:  # noqa: BLE001 - foreign code: a broken family must not hide the others
            return AnnotatorStatus(name, False, self._broken_by(error, name), ())
