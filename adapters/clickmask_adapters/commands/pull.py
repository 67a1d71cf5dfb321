"""`clickmask pull`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clickmask.errors import ToolUnavailable
from clickmask.ingest import pull as pulling
from clickmask_adapters.commands._console import console, errors, sentence_on_failure
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings


def add_to(cli: typer.Typer) -> None:
    cli.command()(pull)


def pull(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="`label-studio` or `cvat`.")],
    project: Annotated[
        str, typer.Argument(help="Its number; `task-NUMBER` for a CVAT task without a project.")
    ],
    moved: Annotated[
        bool, typer.Option("--moved", help="The tool is the same one at a new address.")
    ] = False,
) -> None:
    """Take in all accepted labels of a project: those from before it was connected, or missed since.

    Interrupted, the same command goes on where it stopped. What is kept already costs nothing; what was
    deleted in the tool goes here too.
    """
    with sentence_on_failure(), closing(Home(Settings())) as home:
        name = tool.replace("-", "_")
        tools = home.label_sources
        if name not in tools:
            known = " and ".join(each.replace("_", "-") for each in sorted(tools))
            raise typer.BadParameter(f"labels are pulled from {known}, not from {tool}")
        chosen = tools[name]
        if not chosen.origin:
            raise ToolUnavailable(f"no {tool} is configured: set {name.upper()}_URL")
        home.store.require_origin(name, chosen.origin, moved)
        done = _follow(pulling.pull(name, chosen, project, home.store, home.ingester))
        kept = home.archive.status()
    for sentence in done.left_out:
        errors.print(sentence, markup=False)
    console.print(_summary(done))
    if kept.refused:
        errors.print(f"{kept.refused} images are not kept, for want of room: raise CLICKMASK_KEPT_BYTES")
    if done.left_out:
        raise typer.Exit(1)


def _follow(steps: Generator[pulling.Progress]) -> pulling.Progress:
    """Show a bar; an interrupt ends it with status 130, and the next pull goes on."""
    done = pulling.Progress()
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True) as bar, closing(steps):
        shown = bar.add_task("", total=None)
        try:
            for done in steps:
                total = None if done.remaining is None else done.read + done.remaining
                bar.update(shown, completed=done.read, total=total, description=_summary(done))
        except KeyboardInterrupt:
            errors.print("interrupted; the same command goes on from there")
            raise typer.Exit(130) from None
    return done


def _summary(done: pulling.Progress) -> str:
    return (
        f"{done.taken} taken in, {done.known} known already, {done.gone} gone, {len(done.left_out)} left out"
    )
