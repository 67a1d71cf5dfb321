"""`clickmask segmenters`."""

from __future__ import annotations

import typer
from rich.table import Table

from clickmask import segmenters as installed
from clickmask.inference.catalogue import Catalogue
from clickmask_adapters.app import create_runtimes, create_weights
from clickmask_adapters.commands._console import console
from clickmask_adapters.settings import Settings


def add_to(cli: typer.Typer) -> None:
    cli.command()(segmenters)


def segmenters() -> None:
    """List what is installed, and what is ready."""
    settings = Settings()
    table = Table("segmenter", "ready", box=None)
    for status in Catalogue(installed, create_weights(settings), create_runtimes(settings)).statuses():
        table.add_row(status.name, "yes" if status.ready else status.reason)
    console.print(table)
