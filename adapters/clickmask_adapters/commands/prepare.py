"""`clickmask prepare`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from clickmask.errors import InvalidRequest, SegmenterNotReady
from clickmask.images import FORMATS
from clickmask_adapters.app import create_workbench
from clickmask_adapters.console import console, errors, sentence_on_failure
from clickmask_adapters.preparing import folder_images, prepare_images
from clickmask_adapters.preparing_progress import follow
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio.accepted import TOOL
from clickmask_adapters.tools.label_studio.client import client_of
from clickmask_adapters.tools.label_studio.project_images import project_images


def add_to(cli: typer.Typer) -> None:
    cli.command()(prepare)


def prepare(
    what: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder of images, or `label-studio`.")],
    project: Annotated[int | None, typer.Argument(help="The number of the Label Studio project.")] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="Default: the project's, or CLICKMASK_SEGMENTER.")
    ] = None,
) -> None:
    """Encode images ahead: those of a folder and its folders, or of a Label Studio project.

    What is stored already is skipped, so that running it again goes on where it stopped.
    """
    settings = Settings(segmenter=segmenter) if segmenter else Settings()
    if project is None:
        if not Path(what).is_dir():
            raise typer.BadParameter(f"there is no folder {what}, and a project has a number: label-studio 1")
        roots = (*settings.image_roots, Path(what).resolve())
        settings = settings.model_copy(update={"image_roots": roots})
    elif what != "label-studio":
        raise typer.BadParameter(f"{what} has no projects: give a folder, or label-studio and a number")
    with sentence_on_failure(), closing(create_workbench(settings)) as workbench:
        own = workbench.project_segmenter(TOOL, str(project)) if project is not None else None
        chosen = segmenter or own or settings.segmenter
        if not workbench.stores(chosen):
            raise SegmenterNotReady(
                f"embeddings of {chosen} are not stored, so there is nothing to prepare: choose another "
                "segmenter" + ("" if settings.disk_bytes else ", and let CLICKMASK_DISK_BYTES be more than 0")
            )
        if project is None:
            wanted = folder_images(Path(what))
        else:
            wanted = list(project_images(client_of(settings), project))
        if not wanted:
            raise InvalidRequest(f"there is no image here; clickmask reads {', '.join(FORMATS)}")
        complete = follow(prepare_images(workbench, wanted, chosen), len(wanted), console, errors)
    disk = workbench.cache_status().disk
    if disk and disk.bytes > 0.95 * disk.capacity:
        errors.print("the store is full: what was not used for longest goes; raise CLICKMASK_DISK_BYTES")
    if not complete:
        raise typer.Exit(1)
