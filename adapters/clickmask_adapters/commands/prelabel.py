"""`clickmask prelabel`: each tool package that has `prelabel` brings its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clickmask.errors import ToolUnavailable
from clickmask_adapters.commands._console import console, errors, sentence_on_failure
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools._prelabel import Step


def add_to(cli: typer.Typer) -> None:
    cli.command()(prelabel)


def prelabel(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="`label-studio` or `cvat`.")],
    project: Annotated[
        str, typer.Argument(help="Its number; `task-NUMBER` for a CVAT task without a project.")
    ],
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Show the default segmenter each object, and keep the better outline of the two. Default: "
            "CLICKMASK_REFINE.",
        ),
    ] = None,
) -> None:
    """Let the project's trained model draw in every task that nobody has touched.

    Label Studio gets predictions, in tasks without annotations and drafts; CVAT gets shapes, in new jobs
    without annotations. What has them already is left as it is, so that the same command, interrupted,
    goes on where it stopped.
    """
    settings = Settings() if refine is None else Settings(refine=refine)
    name = tool.replace("-", "_")
    with sentence_on_failure(), closing(Home(settings)) as home:
        if name not in home.tools:
            known = " and ".join(each.replace("_", "-") for each in sorted(home.tools))
            raise typer.BadParameter(f"what can be labelled ahead is in {known}, not in {tool}")
        origin = home.tools[name].origin
        if not origin:
            raise ToolUnavailable(f"no {tool} is configured: set {name.upper()}_URL")
        home.workbench.require_origin(name, origin)
        done, interrupted = _follow(home.tools[name].prelabel(home.workbench, project))
    for sentence in done.left_out:
        errors.print(sentence, markup=False)
    console.print(_summary(done))
    if interrupted:
        errors.print("interrupted; the same command goes on from there")
        raise typer.Exit(130)
    if done.left_out:
        raise typer.Exit(1)


def _follow(steps: Iterator[Step]) -> tuple[Step, bool]:
    """Show a bar; what was done, and whether an interrupt ended it."""
    done = Step(0)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True, speed_estimate_period=300) as bar:
        shown = bar.add_task("", total=None)
        try:
            for step in steps:
                done = done.then(step)
                bar.update(
                    shown,
                    completed=done.images,
                    total=done.images + done.remaining,
                    description=_summary(done),
                )
        except KeyboardInterrupt:
            return done, True
    return done, False


def _summary(done: Step) -> str:
    return (
        f"{done.objects} objects drawn in {done.containers}, {done.untouched} left as they were, "
        f"{len(done.left_out)} left out"
    )
