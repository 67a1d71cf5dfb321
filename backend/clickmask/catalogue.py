"""The segmenters that are installed, by name, each loaded once and when it is first needed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from clickmask import plugins
from clickmask.errors import SegmenterNotReady, UnknownSegmenter
from clickmask.types import Segmenter
from clickmask.weights import WeightsFolder


@dataclass(frozen=True)
class SegmenterStatus:
    name: str
    ready: bool
    reason: str  # why it is not ready; empty if it is


class Catalogue:
    """Segmenters by `family` or `family:variant`, for any thread.

    A plugin has `load(variant, weights=...)`, and may have `VARIANTS`, a tuple of names, and
    `missing(variant, weights=...)`, which says in a sentence why it cannot be loaded.
    """

    def __init__(self, package: ModuleType, weights: WeightsFolder) -> None:
        self._package = package
        self._weights = weights
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: dict[str, Segmenter[Any]] = {}

    def get(self, name: str) -> Segmenter[Any]:
        """Raises UnknownSegmenter, or SegmenterNotReady with what is missing."""
        if name in self._loaded:
            return self._loaded[name]
        _, module, variant = self._find(name)
        with self._lock:
            loading = self._loading.setdefault(name, threading.Lock())
        with loading:  # of this one: gigabytes of one segmenter must not hold up the others' clicks
            if name not in self._loaded:
                self.require_ready(name)
                self._loaded[name] = module.load(variant, weights=self._weights)
            return self._loaded[name]

    def require(self, name: str) -> None:
        """Raise UnknownSegmenter unless `name` is installed; loads nothing."""
        self._find(name)

    def require_ready(self, name: str) -> None:
        """Raise as `get` does; loads nothing."""
        _, module, variant = self._find(name)
        if reason := self._missing(module, variant):
            raise SegmenterNotReady(f"{name} cannot run: {reason}")

    def statuses(self) -> list[SegmenterStatus]:
        """Every segmenter, sorted by family; loads no model."""
        found: list[SegmenterStatus] = []
        for family in plugins.names(self._package):
            try:
                module = plugins.load(self._package, family)
            except ImportError as error:
                found.append(SegmenterStatus(family, False, f"it needs the package {error.name}"))
                continue
            for variant in _variants(module):
                reason = self._missing(module, variant)
                found.append(
                    SegmenterStatus(f"{family}:{variant}" if variant else family, not reason, reason)
                )
        return found

    def _find(self, name: str) -> tuple[str, ModuleType, str]:
        family, _, variant = name.partition(":")
        if family not in plugins.names(self._package):
            known = ", ".join(plugins.names(self._package))
            raise UnknownSegmenter(f"there is no segmenter {name[:80]!r}; installed: {known}")
        try:
            module = plugins.load(self._package, family)
        except ImportError as error:
            raise SegmenterNotReady(f"{family} cannot run: it needs the package {error.name}") from error
        if variant not in _variants(module):
            raise UnknownSegmenter(
                f"{family} has no variant {variant[:80]!r}; it has: {', '.join(_variants(module)) or 'none'}"
            )
        return family, module, variant

    def _missing(self, module: ModuleType, variant: str) -> str:
        return module.missing(variant, weights=self._weights) if hasattr(module, "missing") else ""


def _variants(module: ModuleType) -> tuple[str, ...]:
    return getattr(module, "VARIANTS", ("",))
