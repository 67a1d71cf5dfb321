"""Where the commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.store import Store

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


ProjectName = Annotated[
    str,
    typer.Argument(metavar="PROJECT", help="Its number; `task-NUMBER` for a CVAT task without a project."),
]
ToolName = Annotated[
    str | None, typer.Option("--tool", help="label-studio or cvat, where both have a project of that name.")
]


def find_project(store: Store, project: str, tool: str | None) -> tuple[str, str]:
    """Tool and name of a project with accepted labels. Raises InvalidRequest unless it is one."""
    wanted = tool.replace("-", "_") if tool else None
    found = [
        each.tool for each in store.projects() if each.project == project and wanted in (None, each.tool)
    ]
    if len(found) == 1:
        return found[0], project
    if found:
        tools = " and ".join(each.replace("_", "-") for each in found)
        raise InvalidRequest(f"{tools} both have a project {project}: say which with --tool")
    there = ", ".join(f"{each.project} of {each.tool.replace('_', '-')}" for each in store.projects())
    raise InvalidRequest(
        f"no labels of a project {project} are kept here; there are: {there or 'none'}. "
        "`clickmask pull TOOL PROJECT` takes them in"
    )
