"""A plugin is a module: its file name is its name, and nothing has to be registered.

Packages from elsewhere bring theirs by an entry point in the group of the folder's full name,
e.g. `[project.entry-points."clickmask.segmenters"] mine = "my_package.mine"`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType


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
