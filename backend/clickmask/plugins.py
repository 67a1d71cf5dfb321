"""A plugin is a module: its file name is its name, and nothing has to be registered.

Packages from elsewhere bring theirs by an entry point in the group of the folder's full name,
e.g. `[project.entry-points."clickmask.segmenters"] mine = "my_package.mine"`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from clickmask.errors import (
    ClickmaskError,
)

log = logging.getLogger(__name__)


def names(package: ModuleType) -> list[str]:
    """Names of the plugins in `package` and of those that other distributions bring, sorted."""
    inside = {module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"}
    return sorted(inside | {point.name for point in _brought(package)})


def load(package: ModuleType, name: str) -> ModuleType:
    """The module of the plugin `name`; KeyError if there is none. Ours win over foreign ones."""
    if name in {module.name for module in pkgutil.iter_modules(package.__path__)}:
        return importlib.import_module(f"{package.__name__}.{name}")
    for point in _brought(package):
        if point.name == name:
            return point.load()
    raise KeyError(name)


def _brought(package: ModuleType) -> tuple[EntryPoint, ...]:
    return _entry_points(package.__name__, tuple(sys.path))


@functools.lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Of everything that is installed on `path`, read once: that takes 15 to 40 ms."""
    return tuple(entry_points(group=group))


LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True)
class Kind:
    """What a catalogue holds, and how it says that it does not."""

    noun: str
    unknown: type[ClickmaskError]
    not_ready: type[ClickmaskError]


class Installed(Generic[LoadedT]):
    """What the plugins of a package load, by `family` or `family:variant`, for any thread.

    A plugin has `load(variant, **options)`. It may have variants, listed in the tuple `VARIANTS`
    or given by `variants(**options)`, and `missing(variant, **options)`, which says in a sentence
    why one cannot be loaded.
    """

    def __init__(self, package: ModuleType, kind: Kind, **options: object) -> None:
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
        if family not in names(self._package):
            known = ", ".join(names(self._package))
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
        for family in names(self._package):
            module, variants, reason = self._family(family)
            if module is None:
                yield family, reason
                continue
            for variant in variants:
                yield f"{family}:{variant}" if variant else family, self._missing(module, variant)

    def _family(self, family: str) -> tuple[ModuleType | None, tuple[str, ...], str]:
        """The module and its variants; or None, and why it cannot be imported."""
        try:
            module = load(self._package, family)
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
