"""The plugin contract. A plugin is a module named by its file; nothing is registered.

A file in `clickmask.segmenters` or `clickmask.annotators` is a `Family`; their catalogues define its
`Host`. Networks, tools and exports say in their own package what a file there holds. Another
distribution adds a plugin by an entry point whose group is the package's full name, for example
`[project.entry-points."clickmask.segmenters"] mine = "my_package.mine"`.
"""

import functools
import importlib
import logging
import pkgutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, Protocol, TypeVar, cast

from clickmask.caches import waiting_elsewhere
from clickmask.errors import (
    NEEDS_MEMORY,
    ClickmaskError,
    Failed,
    NotFound,
    NotReady,
    OutOfMemory,
    is_out_of_memory,
)

log = logging.getLogger(__name__)

HostT = TypeVar("HostT")
HostT_contra = TypeVar("HostT_contra", contravariant=True)
PluginT = TypeVar("PluginT")
PluginT_co = TypeVar("PluginT_co", covariant=True)


@dataclass(frozen=True)
class Checkpoint:
    """A published file of weights, and those that belong to it. Its SHA-256 identifies it, wherever a copy
    came from."""

    address: str
    bytes: int
    sha256: str
    licence: str
    beside: tuple["Checkpoint", ...] = ()  # fetched into the same folder

    @property
    def file(self) -> str:
        return self.address.rpartition("/")[2]

    @property
    def files(self) -> tuple["Checkpoint", ...]:
        """Itself, and the files beside it."""
        return (self, *self.beside)


@dataclass(frozen=True)
class About:
    """What `clickmask segmenters` and the pages say of a variant, for people who choose. Nothing depends on
    it, and any of it may be left out."""

    family: str = ""  # as its paper calls it
    paper: str = ""  # "Kirillov 2023, arXiv 2304.02643"
    parameters: int = 0  # of all its networks
    prompts: tuple[str, ...] = ("points", "box")  # and "mask", if its shape counts
    candidates: int = 1  # at most, for one click
    bytes: int = 0  # of weights that are no checkpoint's
    licence: str = ""  # of what is no checkpoint's


@dataclass(frozen=True)
class Variant:
    """The facts about a variant that are known before it is loaded."""

    checkpoint: Checkpoint | None = None
    sam_decoder: str = ""  # the SAM whose decoder reads the embedding, which then MUST be `SamFeatures`
    sweeps: bool = False  # cheap enough to click all over an image; then it MUST be `GridPromptable`
    labels: tuple[str, ...] = ()  # of what it finds without a prompt; then it MUST be `Unprompted`
    about: About = About()


class Family(Protocol[HostT_contra, PluginT_co]):
    """A module that loads the variants of one segmenter or annotator. Only `load` is required.

    Without VARIANTS there is one variant, "", and the plugin has the name of its file; otherwise
    `family:variant`. A function `variants(host)` replaces it if they depend on the host. Without `missing`,
    nothing is missing.
    """

    VARIANTS: Mapping[str, Variant]

    def missing(self, variant: str, host: HostT_contra) -> str:
        """The variant's missing requirements, as a sentence; empty if there are none."""
        ...

    def load(self, variant: str, host: HostT_contra) -> PluginT_co:
        """Load the plugin, whose `name` MUST be the one that users write. Called once for each variant."""
        ...


def names(package: ModuleType) -> list[str]:
    """Names of the plugins in `package` and from other distributions, sorted."""
    inside = {module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"}
    return sorted(inside | {point.name for point in _entry_points(package.__name__, tuple(sys.path))})


def load(package: ModuleType, name: str) -> ModuleType:
    """The module of the plugin `name`; KeyError if there is none. Built-in plugins win over foreign ones."""
    if name in {module.name for module in pkgutil.iter_modules(package.__path__)}:
        return importlib.import_module(f"{package.__name__}.{name}")
    for point in _entry_points(package.__name__, tuple(sys.path)):
        if point.name == name:
            return point.load()
    raise KeyError(name)


@functools.lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of everything installed on `path`. Cached, since reading them takes 15 to 40 ms."""
    return tuple(entry_points(group=group))


def checkpoints(package: ModuleType) -> dict[str, Checkpoint]:
    """Checkpoints of the families in `package`, by full name. Broken families are left out."""
    found: dict[str, Checkpoint] = {}
    for family in names(package):
        try:
            variants = _variants(load(package, family))
        except Exception:  # noqa: BLE001, S112 - foreign code; its catalogue reports that it is broken
            continue
        found |= {
            _full_name(family, name): each.checkpoint for name, each in variants.items() if each.checkpoint
        }
    return found


class Families(Generic[HostT, PluginT]):
    """The families in a package, by `family` or `family:variant`. Variants load once. For any thread.
    Subclasses set the noun for a plugin."""

    noun: str

    def __init__(self, package: ModuleType, host: HostT) -> None:
        self._package = package
        self._host = host
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: dict[str, PluginT] = {}
        self._broken: set[str] = set()

    def get(self, name: str) -> PluginT:
        """The loaded plugin. Raises Failed, and whatever `require` and `require_ready` raise."""
        if name in self._loaded:
            return self._loaded[name]
        family, variant = self._find(name)
        with self._lock:
            loading = self._loading.setdefault(name, threading.Lock())
        with waiting_elsewhere():
            loading.acquire()  # one lock per name: loading gigabytes must not hold up other plugins
        try:
            if name not in self._loaded:
                self.require_ready(name)
                try:
                    plugin = family.load(variant, self._host)
                except ClickmaskError:
                    raise
                except Exception as error:  # foreign code may raise anything
                    if is_out_of_memory(error):
                        raise OutOfMemory(f"{name} {NEEDS_MEMORY}") from error
                    raise Failed(f"{name} cannot run: {self._broken_by(error, name)}") from error
                if (own := getattr(plugin, "name", None)) != name:  # embeddings are kept under this name
                    raise Failed(f"the {self.noun} {name} calls itself {str(own)[:80]!r}")
                self._loaded[name] = plugin
            return self._loaded[name]
        finally:
            loading.release()

    def require(self, name: str) -> None:
        """Raise NotFound unless `name` is installed. Loads nothing."""
        self._find(name)

    def require_ready(self, name: str) -> None:
        """Raise NotReady with what is missing. Loads nothing."""
        if reason := self._missing(*self._find(name)):
            raise NotReady(f"{name} cannot run: {reason}")

    def variants(self) -> dict[str, Variant]:
        """Every variant by its full name, sorted by family. Loads none. Broken families are left out."""
        return {name: variant for name, variant, _ in self._all() if variant}

    def _all(self) -> Iterator[tuple[str, Variant | None, str]]:
        """Every name, sorted by family, its variant (None if the family is broken), and what is missing."""
        for name in names(self._package):
            family, variants, reason = self._family(name)
            if family is None:
                yield name, None, reason
                continue
            for variant, described in variants.items():
                yield _full_name(name, variant), described, self._missing(family, variant)

    def _find(self, name: str) -> tuple[Family[HostT, PluginT], str]:
        """The module that loads `name`, and its variant. Raises what `require` raises."""
        family, _, variant = name.partition(":")
        if family not in (installed := names(self._package)):
            raise NotFound(f"there is no {self.noun} {name[:80]!r}; installed: {', '.join(installed)}")
        module, variants, reason = self._family(family)
        if module is None:
            raise NotReady(f"{family} cannot run: {reason}")
        if variant not in variants:
            known = ", ".join(variants) or "none"
            raise NotFound(f"{family} has no variant {variant[:80]!r}; it has: {known}")
        return module, variant

    def _family(self, name: str) -> tuple[Family[HostT, PluginT] | None, Mapping[str, Variant], str]:
        """The module, its variants and ""; or None, no variants and why it cannot be used."""
        try:
            module = load(self._package, name)
            return cast("Family[HostT, PluginT]", module), _variants(module, self._host), ""
        except Exception as error:  # noqa: BLE001 - foreign code: a broken family must not hide the others
            return None, {}, self._broken_by(error, name)

    def _missing(self, family: Family[HostT, PluginT], variant: str) -> str:
        try:
            return family.missing(variant, self._host) if hasattr(family, "missing") else ""
        except Exception as error:  # noqa: BLE001 - foreign code: a broken family must not hide the others
            return self._broken_by(error, f"{family} {variant}")

    def _broken_by(self, error: Exception, name: str) -> str:
        """A reason without the error's text, which may hold paths. The error is logged once."""
        if is_out_of_memory(error):  # it may be there later
            return f"it {NEEDS_MEMORY}"
        if isinstance(error, ModuleNotFoundError):
            return f"it needs the package {error.name}"
        if name not in self._broken:
            self._broken.add(name)
            log.error("the %s %s is broken", self.noun, name, exc_info=error)
        return f"it is broken ({type(error).__name__}); clickmask's log has the details"


def _full_name(family: str, variant: str) -> str:
    return f"{family}:{variant}" if variant else family


def _variants(module: ModuleType, host: object = None) -> Mapping[str, Variant]:
    found: object = getattr(module, "VARIANTS", {"": Variant()})
    if host is not None and hasattr(module, "variants"):
        found = module.variants(host)
    if not isinstance(found, Mapping):
        raise TypeError("VARIANTS is not a mapping")
    variants = cast("Mapping[str, object]", found)
    if not all(isinstance(variant, Variant) for variant in variants.values()):
        raise TypeError("VARIANTS holds something else than Variant")
    return cast("Mapping[str, Variant]", variants)
