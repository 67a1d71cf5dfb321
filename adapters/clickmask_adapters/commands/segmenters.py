"""`clickmask segmenters`."""

from __future__ import annotations

import typer
from rich.table import Table

from clickmask_adapters.commands._console import console
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings


def add_to(cli: typer.Typer) -> None:
    cli.command()(segmenters)


def segmenters() -> None:
    """List what is installed, and what is ready."""
    settings = Settings()
    home = Home(settings)
    table = Table("segmenter", "ready", box=None)
    for status in home.segmenters.statuses():
        table.add_row(status.name, "yes" if status.ready else status.reason)
    console.print(table)
