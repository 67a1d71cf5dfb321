"""The plugins that are installed, by name, each loaded once and when it is first needed."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Generic, TypeVar

from clickmask import plugins
from clickmask.embeddings import EmbeddingCache
from clickmask.errors import (
    AnnotatorNotReady,
    ClickmaskError,
    SegmenterNotReady,
    UnknownAnnotator,
    UnknownSegmenter,
)
from clickmask.runtimes import Runtimes
from clickmask.runtimes.exports import Progress
from clickmask.training.serving import ProjectModels, folder_name
from clickmask.types import Annotator, Segmenter
from clickmask.weights import WeightsFolder

log = logging.getLogger(__name__)

LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True)
class SegmenterStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    decoder: str = ""  # the SAM whose own decoder can read this one's embeddings; empty: none


@dataclass(frozen=True)
class AnnotatorStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is
    labels: tuple[str, ...]  # what it gives to objects; none while it is not ready


@dataclass(frozen=True)
class _Kind:
    """What a catalogue holds, and how it says that it does not."""

    noun: str
    unknown: type[ClickmaskError]
    not_ready: type[ClickmaskError]


class _Installed(Generic[LoadedT]):
    """What the plugins of a package load, by `family` or `family:variant`, for any thread.

    A plugin has `load(variant, **options)`. It may have variants, listed in the tuple `VARIANTS`
    or given by `variants(**options)`, and `missing(variant, **options)`, which says in a sentence
    why one cannot be loaded.
    """

    def __init__(self, package: ModuleType, kind: _Kind, **options: object) -> None:
        self._package = package
        self._kind = kind
        self._options = options
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: dict[str, LoadedT] = {}
        self._broken: set[str] = set()

    def get(self, name: str) -> LoadedT:
        """Raises as `require` and `require_ready` do."""
        if name in self._loaded:
            return self._loaded[name]
        module, variant = self.plugin(name)
        with self._lock:
            loading = self._loading.setdefault(name, threading.Lock())
        with loading:  # of this one: gigabytes of one must not hold up the others
            if name not in self._loaded:
                self.require_ready(name)
                self._loaded[name] = self._call(module.load, variant)
            return self._loaded[name]

    def require(self, name: str) -> None:
        """Raise UnknownSegmenter or UnknownAnnotator unless `name` is installed; loads nothing."""
        self.plugin(name)

    def require_ready(self, name: str) -> None:
        """Raise SegmenterNotReady or AnnotatorNotReady, with what is missing; loads nothing."""
        module, variant = self.plugin(name)
        if reason := self._missing(module, variant):
            raise self._kind.not_ready(f"{name} cannot run: {reason}")

    def plugin(self, name: str) -> tuple[ModuleType, str]:
        """The module that loads `name`, and its variant. Raises as `require` does."""
        family, _, variant = name.partition(":")
        if family not in plugins.names(self._package):
            known = ", ".join(plugins.names(self._package))
            raise self._kind.unknown(f"there is no {self._kind.noun} {name[:80]!r}; installed: {known}")
        module, variants, reason = self._family(family)
        if module is None:
            raise self._kind.not_ready(f"{family} cannot run: {reason}")
        if variant not in variants:
            raise self._kind.unknown(
                f"{family} has no variant {variant[:80]!r}; it has: {', '.join(variants) or 'none'}"
            )
        return module, variant

    def _reasons(self) -> Iterator[tuple[str, str]]:
        """Every name, sorted by family, with what it lacks; loads no model."""
        for family in plugins.names(self._package):
            module, variants, reason = self._family(family)
            if module is None:
                yield family, reason
                continue
            for variant in variants:
                yield f"{family}:{variant}" if variant else family, self._missing(module, variant)

    def _family(self, family: str) -> tuple[ModuleType | None, tuple[str, ...], str]:
        """The module and its variants; or None, and why it cannot be imported."""
        try:
            module = plugins.load(self._package, family)
            return module, self._variants(module), ""
        except ModuleNotFoundError as error:
            return None, (), f"it needs the package {error.name}"
        except Exception as error:  # noqa: BLE001  # foreign code: one that is broken must not hide the others
            return None, (), self._broken_by(error, family)

    def _broken_by(self, error: Exception, name: str) -> str:
        """A reason to show: without the error's text, which may hold paths. The log has that, once."""
        if name not in self._broken:
            self._broken.add(name)
            log.error("the %s %s is broken", self._kind.noun, name, exc_info=error)
        return f"it is broken ({type(error).__name__}); clickmask's log has the details"

    def _variants(self, module: ModuleType) -> tuple[str, ...]:
        if hasattr(module, "variants"):
            return self._call(module.variants)
        return getattr(module, "VARIANTS", ("",))

    def _missing(self, module: ModuleType, variant: str) -> str:
        try:
            return self._call(module.missing, variant) if hasattr(module, "missing") else ""
        except Exception as error:  # noqa: BLE001  # foreign code must not hide the others
            return self._broken_by(error, f"{module.__name__} {variant}")

    def _call(self, function: Callable[..., Any], *variant: str) -> Any:
        """With those of the options that its parameters name."""
        named = inspect.signature(function).parameters
        return function(*variant, **{name: value for name, value in self._options.items() if name in named})


class Catalogue(_Installed[Segmenter[Any]]):
    """Segmenters; their plugins are given `weights` and `runtimes`."""

    def __init__(self, package: ModuleType, weights: WeightsFolder, runtimes: Runtimes | None = None) -> None:
        super().__init__(
            package,
            _Kind("segmenter", UnknownSegmenter, SegmenterNotReady),
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


class AnnotatorCatalogue(_Installed[Annotator]):
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
            _Kind("annotator", UnknownAnnotator, AnnotatorNotReady),
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
        return version and (f"unet:{folder_name(tool, project)}", f"unet {version.id}{refined}")

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
