"""One module a format; each offers `write(dataset, folder) -> Path` and `losses(dataset) -> list[str]`.

`write` makes `folder`, whole or not at all, in place of an earlier export if there is one, and gives
the path of its main file. It writes the same bytes for datasets of the same digest, and raises
InvalidRequest for a folder that holds anything else, ExportFailed where what was written does not
read back as what was meant. `losses` says in sentences what the format cannot express of this dataset.

Options are keywords with defaults, annotated with `typer.Option`: the command line and the HTTP API
read them from the signature of `write`; `losses` gets those that it names. Modules that begin with
`_` are shared.
"""
