"""One module a format; each offers `write(dataset, folder) -> Path` and `losses(dataset) -> list[str]`.

`write` makes `folder`, whole or not at all, in place of an earlier export if there is one, and gives
the path of its main file. It writes the same bytes for datasets of the same digest, and raises
InvalidRequest for a folder that holds anything else, ExportFailed where what was written does not
read back as what was meant. `losses` says in sentences what the format cannot express of this
dataset. Both may take options by keyword that have defaults. Modules that begin with `_` are shared.
"""
