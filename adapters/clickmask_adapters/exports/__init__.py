"""One module a format, found by its file name. Modules that begin with `_` are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clickmask.datasets.snapshot import Dataset


class Export(Protocol):
    """A module that writes datasets in one format. The first line of its docstring is the command's help.

    Options are keywords of `write` with defaults, annotated with `typer.Option`: the command line and the
    HTTP API read them from its signature. `losses` gets those that it names.
    """

    def write(self, dataset: Dataset, folder: Path) -> Path:
        """Make `folder`, whole or not at all, in place of an earlier export; the path of its main file.

        Datasets of the same digest MUST give the same bytes. Raises InvalidRequest if the folder holds
        anything but an export, Failed if what was written does not read back as what was meant.
        """
        ...

    def losses(self, dataset: Dataset) -> list[str]:
        """What the format cannot express of this dataset, in sentences."""
        ...
