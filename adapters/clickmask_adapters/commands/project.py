"""`clickmask project`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from clickmask.labels.submissions import Unlabelled
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    console,
    find_project,
    sentence_on_failure,
)
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings


def add_to(cli: typer.Typer) -> None:
    cli.command()(project)


def project(
    name: ProjectName,
    tool: ToolName = None,
    unlabelled: Annotated[
        Unlabelled | None,
        typer.Option(help="What area without a label is: background, or unknown, and ignored in training."),
    ] = None,
) -> None:
    """Show what is kept of a project, and say what its area without a label is."""
    with sentence_on_failure(), closing(Home(Settings())) as home:
        chosen, _ = find_project(home.store, name, tool)
        if unlabelled:
            home.store.set_unlabelled(chosen, name, unlabelled)
        found = next(each for each in home.store.projects() if (each.tool, each.project) == (chosen, name))
        area = home.store.unlabelled(chosen, name)
    console.print(f"{found.tool.replace('_', '-')} {found.project}: {found.title}", markup=False)
    console.print(f"categories: {', '.join(found.categories) or 'not told yet'}", markup=False)
    console.print(f"{found.images} images, {found.labels} labels, of all annotators")
    console.print(f"area without a label: {area}")
