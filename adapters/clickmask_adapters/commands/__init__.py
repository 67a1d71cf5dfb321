"""Commands, in modules that are imported when one of theirs is run; `cli.py` reads their names and help.

A module has `cli = typer.Typer()`. Each function under `@cli.command()` is a command, and each
`typer.Typer(name=…, help=…)` that is added to `cli` is a group of them; both are written out literally.
"""
