"""The plugins that are installed, by name, each loaded once and when it is first needed."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from clickmask.types import Annotator, Segmenter
from clickmask.weights import WeightsFolder

LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True)
class SegmenterStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is


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
        try:
            module = plugins.load(self._package, family)
        except ImportError as error:
            raise self._kind.not_ready(f"{family} cannot run: it needs the package {error.name}") from error
        variants = self._variants(module)
        if variant not in variants:
            raise self._kind.unknown(
                f"{family} has no variant {variant[:80]!r}; it has: {', '.join(variants) or 'none'}"
            )
        return module, variant

    def _reasons(self) -> Iterator[tuple[str, str]]:
        """Every name, sorted by family, with what it lacks; loads no model."""
        for family in plugins.names(self._package):
            try:
                module = plugins.load(self._package, family)
            except ImportError as error:
                yield family, f"it needs the package {error.name}"
                continue
            for variant in self._variants(module):
                yield f"{family}:{variant}" if variant else family, self._missing(module, variant)

    def _variants(self, module: ModuleType) -> tuple[str, ...]:
        if hasattr(module, "variants"):
            return self._call(module.variants)
        return getattr(module, "VARIANTS", ("",))

    def _missing(self, module: ModuleType, variant: str) -> str:
        return self._call(module.missing, variant) if hasattr(module, "missing") else ""

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

    def statuses(self) -> list[SegmenterStatus]:
        """Every segmenter, sorted by family; loads no model."""
        return [SegmenterStatus(name, not reason, reason) for name, reason in self._reasons()]


class AnnotatorCatalogue(_Installed[Annotator]):
    """Annotators; their plugins are given `segmenters` and `embeddings`."""

    def __init__(self, package: ModuleType, segmenters: Catalogue, embeddings: EmbeddingCache) -> None:
        super().__init__(
            package,
            _Kind("annotator", UnknownAnnotator, AnnotatorNotReady),
            segmenters=segmenters,
            embeddings=embeddings,
        )

    def statuses(self) -> list[AnnotatorStatus]:
        """Every annotator, sorted by family; loads no model."""
        return [
            AnnotatorStatus(name, not reason, reason, () if reason else self._labels(name))
            for name, reason in self._reasons()
        ]

    def _labels(self, name: str) -> tuple[str, ...]:
        module, variant = self.plugin(name)
        return self._call(module.labels, variant)
