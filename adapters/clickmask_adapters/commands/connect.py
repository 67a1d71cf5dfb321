"""`clickmask connect TOOL PROJECT`: each tool package that has `connect_command` brings its own."""

from __future__ import annotations

import typer

from clickmask import plugins
from clickmask_adapters import tools


def add_to(cli: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Connect a labeling tool's project with a running server.")
    for name in plugins.names(tools):
        tool = plugins.load(tools, name)
        if hasattr(tool, "connect_command"):
            group.command(name.replace("_", "-"))(tool.connect_command)
    cli.add_typer(group, name="connect")
