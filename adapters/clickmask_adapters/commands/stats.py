"""`clickmask stats`."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from clickmask.reports.statistics import Statistics, count
from clickmask_adapters.api.datasets import describe, open_dataset
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    console,
    errors,
    find_project,
    sentence_on_failure,
)
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings

SHOWN_FLAWS = 20


def add_to(cli: typer.Typer) -> None:
    cli.command()(stats)


def stats(
    project: ProjectName,
    tool: ToolName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every flaw, not the first twenty.")] = False,
) -> None:
    """Count the accepted labels of a project, by category, and name what looks wrong in them.

    The least, median and most area are in pixels; small labels have fewer than 32 x 32 of them, large
    ones more than 96 x 96.
    Points are those of polygons, as they were drawn.
    """
    settings = Settings()
    with sentence_on_failure(), closing(Home(settings)) as home:
        chosen, name = find_project(home.store, project, tool)
        dataset = open_dataset(home.store, chosen, name, home.archive, settings)
    if as_json:
        console.print_json(json.dumps(describe(dataset)))
        return
    counted = count(dataset)
    console.print(_table(counted))
    sides = ", ".join(f"{images} {side}" for side, images in counted.sides.items() if images)
    nothing = f", {counted.unlabelled_images} of them with nothing on it" if counted.unlabelled_images else ""
    console.print(f"{counted.images} images{nothing}: {sides}")
    console.print(f"dataset {dataset.digest[:12]}")
    if counted.too_few:
        errors.print("too few images to be split: models are cross-validated")
    shown = counted.flaws if every else counted.flaws[:SHOWN_FLAWS]
    for flaw in shown:
        errors.print(f"{flaw.kind}: {flaw.sentence}", markup=False)
    if hidden := len(counted.flaws) - len(shown):
        errors.print(f"and {hidden} more: --all")


def _table(counted: Statistics) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("category", overflow="fold")
    for heading in ("labels", "images", "least", "median", "most", "small", "medium", "large", "points"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in counted.categories:
        numbers = (each.labels, each.images, *(each.areas or ("",) * 3), each.small, each.medium, each.large)
        points = "" if each.points is None else f"{each.points:g}"
        table.add_row(Text(each.category), *map(str, numbers), points)
    return table
