"""One module per format, found by its file name. Modules that begin with `_` are shared."""

from pathlib import Path
from typing import Protocol

from clickmask.ingest.imports import ImportedDataset


class Import(Protocol):
    """A module that reads datasets of one format. The first line of its docstring is the command's help."""

    def read(self, place: Path) -> ImportedDataset:
        """The dataset in the folder or file `place`. It MUST give what `exports` wrote back as far as the
        format can say it, and only pictures inside the folder. Raises InvalidRequest if there is none."""
        ...
