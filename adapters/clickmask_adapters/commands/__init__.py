"""One module a group of commands; each offers `add_to(cli: typer.Typer) -> None`."""
