"""Where the commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console

from clickmask.errors import ClickmaskError

console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)


@contextmanager
def sentence_on_failure() -> Generator[None]:
    """End with status 1 and one line where something expected goes wrong."""
    try:
        yield
    except ClickmaskError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from error
