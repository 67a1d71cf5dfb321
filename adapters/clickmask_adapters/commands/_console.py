"""Shared parts of the commands: printing, failing, and the arguments TOOL PROJECT."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table

from clickmask import plugins
from clickmask.errors import (
    NEEDS_MEMORY,
    ClickmaskError,
    InvalidRequest,
    NotReady,
    ToolUnavailable,
    is_out_of_memory,
)
from clickmask.store import Store
from clickmask.store.projects import Project
from clickmask_adapters import tools
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings, read_settings
from clickmask_adapters.tools import Tool

console = Console(highlight=False, soft_wrap=True)  # results
errors = Console(highlight=False, soft_wrap=True, stderr=True)  # everything else

SHOWN = 20  # sentences on what is left out
LINE_EVERY_S = 5.0  # seconds between two lines of progress if there is no terminal


@contextmanager
def progress(
    *columns: str | ProgressColumn, plain: str = "{done:.0f} of {total:.0f}: ", every: float | None = None
) -> Generator[Callable[[float, float | None, str], None]]:
    """A function that shows a number done, the total or None, and a text: a bar of `columns` on a terminal.

    Elsewhere, such as in a log, it prints the text after `plain`, if that is new and the last line is `every`
    seconds old (default: LINE_EVERY_S, also before the first line, so that short work prints nothing).
    """
    if errors.is_terminal:
        with Progress(*columns, console=errors, transient=True, speed_estimate_period=300) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, said: bar.update(task, completed=done, total=total, description=said)
        return
    pause = LINE_EVERY_S if every is None else every
    shown, last = "", time.monotonic() if every is None else -math.inf

    def show(done: float, total: float | None, said: str) -> None:
        nonlocal shown, last
        line = said if total is None else plain.format(done=done, total=total) + said
        if line != shown and time.monotonic() - last >= pause:
            shown, last = line, time.monotonic()
            errors.print(line, markup=False)

    yield show


def working_tool(home: Home, name: str) -> Tool:
    """The tool of this name. Raises NotReady if it is broken, InvalidRequest if it is clickmask itself."""
    if name == tools.OWN and name not in home.tools:
        raise InvalidRequest(f"projects of {name} are clickmask's own: there is no labeling tool to ask")
    if name not in home.tools:
        raise NotReady(f"the tool {name.replace('_', '-')} is broken; clickmask's log has the details")
    return home.tools[name]


@contextmanager
def sentence_on_failure() -> Generator[None]:
    """Turn a ClickmaskError, and a lack of memory, into one line and exit status 1."""
    try:
        yield
    except Exception as error:  # a lack of memory has many types; all others go on
        if not isinstance(error, ClickmaskError) and not is_out_of_memory(error):
            raise
        said = str(error) if isinstance(error, ClickmaskError) else f"clickmask {NEEDS_MEMORY}"
        errors.print(said, markup=False)
        raise typer.Exit(1) from error


@contextmanager
def open_home(settings: Settings | None = None, **given: Any) -> Generator[Home]:
    """The home of `settings`, or of the environment and what is `given`; closed at the end. Errors become
    sentences."""
    with sentence_on_failure(), closing(Home(settings or read_settings(**given))) as home:
        yield home


def tool_name(text: str) -> str:
    """Package name of a tool, which people write with hyphens. Raises BadParameter if it is not installed."""
    name = text.replace("-", "_")
    if name != tools.OWN and name not in plugins.names(tools):
        *others, last = (each.replace("_", "-") for each in dict.fromkeys((*plugins.names(tools), tools.OWN)))
        known = f"{', '.join(others)} or {last}"
        raise typer.BadParameter(f"there is no tool {text[:40]!r}: it is {known}, and its project comes next")
    return name


ToolName = Annotated[
    str, typer.Argument(metavar="TOOL", parser=tool_name, help="`label-studio`, `cvat`, or `page`.")
]
ProjectName = Annotated[
    str,
    typer.Argument(
        metavar="PROJECT",
        help="Its number; `task-NUMBER` for a CVAT task without a project; any name on `page`.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="All of it, as JSON.")]


def find_project(store: Store, tool: str, project: str) -> Project:
    """A project with accepted labels. Raises InvalidRequest, which names those that exist."""
    kept = store.projects()
    for each in kept:
        if (each.tool, each.project) == (tool, project):
            return each
    there = ", ".join(f"{each.project} of {each.tool.replace('_', '-')}" for each in kept)
    raise InvalidRequest(
        f"no labels of a project {project} of {tool.replace('_', '-')} are kept here; there are: "
        f"{there or 'none'}. `clickmask pull TOOL PROJECT` takes them in"
    )


def find_tool(home: Home, name: str, moved: bool = False) -> Tool:
    """A tool whose address is configured, and is the one that the labels here came from.

    `moved` accepts its address as a new one of the same tool. Raises ToolUnavailable and Conflict.
    """
    tool = working_tool(home, name)
    if not tool.origin:
        raise ToolUnavailable(f"no {name.replace('_', '-')} is configured: set {name.upper()}_URL")
    home.store.require_origin(name, tool.origin, moved)
    return tool


def end(summary: str, left_out: Sequence[str], interrupted: bool, most: int = SHOWN) -> None:
    """Say what a command that goes on from an interrupt has done, and at most so many sentences on what is
    left out. Exit status 130 after an interrupt, 1 if something is left out."""
    for sentence in left_out[:most]:
        errors.print(sentence, markup=False)
    if hidden := len(left_out[most:]):
        errors.print(f"and {hidden} more")
    console.print(summary)
    if interrupted:
        errors.print("interrupted; the same command goes on from there")
        raise typer.Exit(130)
    if left_out:
        raise typer.Exit(1)


def new_table(texts: Iterable[str], numbers: Iterable[str]) -> Table:
    """A table with columns of text, which may fold, and then of numbers, which may not."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
