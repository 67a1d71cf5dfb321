"""Command modules, each imported only when one of its commands runs; `cli.py` reads names and help.

A module has `cli = typer.Typer()`. Functions under `@cli.command()` are commands; groups are added to it as
`typer.Typer(name=…, help=…)`. Both must be literals, as `cli.py` parses the source.
"""
