"""`clickmask import FORMAT PLACE TOOL PROJECT`: an existing dataset becomes accepted labels."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from clickmask import plugins
from clickmask.errors import Failed
from clickmask.ingest.imports import ImportProgress, take_in
from clickmask_adapters import imports
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    end,
    errors,
    open_home,
    progress,
)

cli = typer.Typer()


def format_name(text: str) -> str:
    """The module of a format. Raises BadParameter if there is none."""
    if text not in (known := plugins.names(imports)):
        raise typer.BadParameter(f"there is no format {text[:40]!r}: it is one of {', '.join(known)}")
    return text


@cli.command("import")
def import_dataset(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", parser=format_name, help="`coco`, `yolo`, `voc` or `png`.")
    ],
    place: Annotated[
        Path, typer.Argument(metavar="FOLDER", exists=True, help="The dataset's folder or file.")
    ],
    tool: ToolName,
    project: ProjectName,
) -> None:
    """Take an existing dataset in as accepted labels: pictures, labels and sides.

    The pictures are copied. Sides are kept (train, val, test), or chosen as for accepted labels. The same
    command goes on where an interrupt stopped it, and changes nothing the second time. What our own `export`
    wrote comes back as it was, as far as its format tells.
    """
    with open_home() as home:
        try:
            module = plugins.load(imports, form)
        except Exception as error:  # foreign code: what is wrong is said
            raise Failed(f"the import {form} is broken ({type(error).__name__})") from error
        dataset = module.read(place)
        done, interrupted = ImportProgress(), False
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), "{task.description}")
        steps = take_in(dataset, tool, project, home.store, home.images, home.archive)
        with progress(*columns) as show, closing(steps):
            try:
                for done in steps:
                    show(done.done, len(dataset.images), _summary(done))
            except KeyboardInterrupt:
                interrupted = True
    for sentence in dataset.remarks:
        errors.print(sentence, markup=False)
    end(_summary(done), done.left_out, interrupted)


def _summary(done: ImportProgress) -> str:
    return f"{done.taken} images with {done.labels} labels taken in, {done.known} known already"
