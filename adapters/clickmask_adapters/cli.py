"""The command line: every file in `commands` adds its own."""

from __future__ import annotations

import typer

from clickmask import plugins
from clickmask_adapters import commands


def create_cli() -> typer.Typer:
    cli = typer.Typer(
        no_args_is_help=True, pretty_exceptions_enable=False, help="Clicks and boxes become masks."
    )
    for name in plugins.names(commands):
        plugins.load(commands, name).add_to(cli)
    return cli


app = create_cli()

if __name__ == "__main__":
    app()
