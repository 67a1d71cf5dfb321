"""`clickmask segmenters` and `clickmask weights list|fetch|path`."""

from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from clickmask_adapters.commands._console import console, errors, open_home

cli = typer.Typer()
weights = typer.Typer(
    name="weights", no_args_is_help=True, help="Checkpoints of segmenters: list, fetch and verify them."
)
cli.add_typer(weights)
WeightsName = Annotated[str, typer.Argument(metavar="NAME", help="As in `clickmask weights list`.")]


@cli.command()
def segmenters() -> None:
    """List what is installed, and what is ready."""
    table = Table("segmenter", "ready", box=None)
    with open_home() as home:
        for status in home.segmenters.statuses():
            table.add_row(status.name, "yes" if status.ready else status.reason)
    console.print(table)


@weights.command("list")
def list_weights() -> None:
    """List the official files, and which are here."""
    with open_home() as home:
        console.print(f"folder: {home.weights.folder}", markup=False)
        for name, checkpoint in home.weights.checkpoints.items():
            console.print(f"\n{name}: {home.weights.missing(name) or 'here'}", markup=False)
            for file in checkpoint.files:
                console.print(f"  {file.address}", markup=False)
                console.print(f"  {file.bytes:,} bytes, licence {file.licence}", markup=False)
                console.print(f"  sha256 {file.sha256}", markup=False)


@weights.command("fetch")
def fetch_weights(name: WeightsName) -> None:
    """Download a file, or go on with it, verify it, and export it for the runtimes of this machine.

    CLICKMASK_WEIGHTS_MIRROR names another source. Exporting takes minutes and needs the package torch, both
    only once: nothing is downloaded where torch is missing. Without it, copy the folder `runtimes` from
    another machine.
    """
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with open_home() as home:
        home.weights.checkpoint(name)  # a name without weights has a sentence of its own
        home.segmenters.require_all_but_weights(name)
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(name, total=None)
            path = home.weights.fetch(name, lambda done, total: bar.update(task, completed=done, total=total))
        console.print(str(path), markup=False)
        with Progress(BarColumn(), "{task.description}", console=errors, transient=True) as bar:
            task = bar.add_task("exporting", total=1.0)
            exported = home.segmenters.export(
                name, lambda share, what: bar.update(task, completed=share, description=what)
            )
    if exported:
        console.print(f"{name} is exported: serving it needs no torch", markup=False)


@weights.command("path")
def weights_path(name: WeightsName) -> None:
    """Print where a file is, once it is verified; that may be one that was put there by hand."""
    with open_home() as home:
        console.print(str(home.weights.verify(name)), markup=False)
