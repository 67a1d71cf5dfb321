"""One module a format; each offers `write(dataset, folder) -> Path` and `losses(dataset) -> list[str]`.

`write` makes `folder`, whole or not at all, in place of an earlier export if there is one, and returns
the path of its main file. It writes the same bytes for datasets of the same digest. It raises
InvalidRequest if the folder holds anything else, ExportFailed if the files do not read back as they
were meant. `losses` says in sentences what the format cannot express of this dataset.

Options are keywords with defaults, annotated with `typer.Option`: the command line and the HTTP API
read them from the signature of `write`; `losses` gets those that it names. Modules that begin with
`_` are shared.
"""
