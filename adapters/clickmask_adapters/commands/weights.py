"""`clickmask weights list|fetch|path`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from clickmask.inference.catalogue import Catalogue
from clickmask_adapters.commands._console import console, errors, sentence_on_failure
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings

WeightsName = Annotated[str, typer.Argument(metavar="NAME", help="As in `clickmask weights list`.")]


def add_to(cli: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Checkpoints of segmenters: list, fetch and verify them.")
    group.command("list")(list_weights)
    group.command("fetch")(fetch_weights)
    group.command("path")(weights_path)
    cli.add_typer(group, name="weights")


def list_weights() -> None:
    """List the official files, and which are here."""
    weights = Home(Settings()).weights
    console.print(f"folder: {weights.folder}", markup=False)
    for name, checkpoint in weights.checkpoints.items():
        state = weights.missing(name) or "here"
        console.print(f"\n{name}: {state}", markup=False)
        console.print(f"  {checkpoint.address}", markup=False)
        console.print(f"  {checkpoint.bytes:,} bytes, licence {checkpoint.licence}", markup=False)
        console.print(f"  sha256 {checkpoint.sha256}", markup=False)


def fetch_weights(name: WeightsName) -> None:
    """Download a file, or go on with it, verify it, and export it for the runtimes of this machine.

    CLICKMASK_WEIGHTS_MIRROR says from where else to download. Exporting takes minutes and needs the
    package torch, both only once; without torch here, bring the folder `runtimes` from elsewhere.
    """
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    home = Home(Settings())
    weights = home.weights
    with sentence_on_failure():
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(name, total=None)
            path = weights.fetch(name, lambda done, total: bar.update(task, completed=done, total=total))
        console.print(str(path), markup=False)
        if find_spec("torch") is not None:
            _export(name, home.segmenters)


def _export(name: str, catalogue: Catalogue) -> None:
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("exporting", total=1.0)
        exported = catalogue.export(
            name, lambda share, what: bar.update(task, completed=share, description=what)
        )
    if exported:
        console.print(f"{name} is exported: serving it needs no torch", markup=False)


def weights_path(name: WeightsName) -> None:
    """Print where a file is, once it is verified; that may be one that was put there by hand."""
    with sentence_on_failure():
        console.print(str(Home(Settings()).weights.verify(name)), markup=False)
