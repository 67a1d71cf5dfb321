"""One module per format, found by its file name. Modules that begin with `_` are shared."""

from pathlib import Path
from typing import Protocol

from clickmask.datasets.snapshot import Dataset


class Export(Protocol):
    """A module that writes datasets in one format. The first line of its docstring is the command's help.

    Options are keywords of `write` with defaults and a `typer.Option`; the command line and the HTTP API read
    them from its signature. `losses` gets those that it names.
    """

    def write(self, dataset: Dataset, folder: Path) -> Path:
        """Write `folder`, whole or not at all, in place of an earlier export, and return its main file.

        Equal digests MUST give equal bytes. Raises InvalidRequest if the folder holds anything but an export,
        Failed if the result does not read back as intended.
        """
        ...

    def losses(self, dataset: Dataset) -> list[str]:
        """Sentences on what the dataset loses in this format."""
        ...
