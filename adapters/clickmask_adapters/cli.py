"""The command line."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from clickmask import segmenters as installed
from clickmask.catalogue import Catalogue
from clickmask.errors import ClickmaskError, InvalidRequest, SegmenterNotReady
from clickmask.images import FORMATS
from clickmask_adapters.app import create_app, create_images, create_weights, create_workbench
from clickmask_adapters.preparing import folder_images, prepare_images
from clickmask_adapters.preparing_progress import follow
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect
from clickmask_adapters.tools.label_studio.project_images import project_images

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Clicks and boxes become masks.")
connect_app = typer.Typer(
    no_args_is_help=True, help="Connect a labeling tool's project with a running server."
)
app.add_typer(connect_app, name="connect")
weights_app = typer.Typer(
    no_args_is_help=True, help="Checkpoints of segmenters: list, fetch and verify them."
)
app.add_typer(weights_app, name="weights")
WeightsName = Annotated[str, typer.Argument(metavar="NAME", help="As in `clickmask weights list`.")]
console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)


@contextmanager
def sentence_on_failure() -> Generator[None]:
    """End with status 1 and one line where something expected goes wrong."""
    try:
        yield
    except ClickmaskError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from error


class AnnouncingServer(uvicorn.Server):
    """Prints the address once it answers, so that scripts and people can wait for that line."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in getattr(self, "servers", []):
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                console.print(f"clickmask is ready: http://{f'[{host}]' if ':' in host else host}:{port}")
                return


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback set CLICKMASK_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port.")] = 9090,
    segmenter: Annotated[
        str | None, typer.Option(help="Default segmenter; overrides CLICKMASK_SEGMENTER.")
    ] = None,
) -> None:
    """Serve Label Studio, the API and the page."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings(segmenter=segmenter) if segmenter else Settings()
    try:
        application = create_app(settings)
    except ClickmaskError as error:
        raise typer.BadParameter(str(error)) from error
    # Without proxy_headers: whoever may set X-Forwarded-For could otherwise claim to be this machine.
    config = uvicorn.Config(
        application,
        host,
        port,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    server = AnnouncingServer(config)
    server.run()
    sys.exit(0 if server.started else 1)


@connect_app.command("label-studio")
def connect_label_studio(
    project: Annotated[int, typer.Argument(help="The project's number, as in its address.")],
    backend_url: Annotated[
        str, typer.Option(help="This server's address as Label Studio sees it.")
    ] = "http://127.0.0.1:9090",
) -> None:
    """Create or mend backend and webhook of a Label Studio project, and check both directions.

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY say where Label Studio is; CLICKMASK_TOKEN is the
    secret that it is given, if the server has one.
    """
    settings = Settings()
    client = label_studio_client(settings)
    secret = settings.token.get_secret_value() if settings.token else None
    read = create_images(settings).identify
    with sentence_on_failure():
        for done in connect(client, project, backend_url, secret, read, settings.username):
            console.print(done, markup=False)


@app.command()
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
        own = workbench.project_segmenter(what, str(project)) if project is not None else None
        chosen = segmenter or own or settings.segmenter
        if not workbench.stores(chosen):
            raise SegmenterNotReady(
                f"embeddings of {chosen} are not stored, so there is nothing to prepare: choose another "
                "segmenter" + ("" if settings.disk_bytes else ", and let CLICKMASK_DISK_BYTES be more than 0")
            )
        if project is None:
            wanted = folder_images(Path(what))
        else:
            wanted = list(project_images(label_studio_client(settings), project))
        if not wanted:
            raise InvalidRequest(f"there is no image here; clickmask reads {', '.join(FORMATS)}")
        complete = follow(prepare_images(workbench, wanted, chosen), len(wanted), console, errors)
    disk = workbench.cache_status().disk
    if disk and disk.bytes > 0.95 * disk.capacity:
        errors.print("the store is full: what was not used for longest goes; raise CLICKMASK_DISK_BYTES")
    if not complete:
        raise typer.Exit(1)


def label_studio_client(settings: Settings) -> LabelStudioClient:
    key = settings.label_studio_api_key
    return LabelStudioClient(settings.label_studio_url, key.get_secret_value() if key else None)


@app.command()
def segmenters() -> None:
    """List what is installed, and what is ready."""
    table = Table("segmenter", "ready", box=None)
    for status in Catalogue(installed, create_weights(Settings())).statuses():
        table.add_row(status.name, "yes" if status.ready else status.reason)
    console.print(table)


@weights_app.command("list")
def list_weights() -> None:
    """List the official files, and which are here."""
    weights = create_weights(Settings())
    console.print(f"folder: {weights.folder}", markup=False)
    for name, checkpoint in weights.checkpoints.items():
        state = weights.missing(name) or "here"
        console.print(f"\n{name}: {state}", markup=False)
        console.print(f"  {checkpoint.address}", markup=False)
        console.print(f"  {checkpoint.bytes:,} bytes, licence {checkpoint.licence}", markup=False)
        console.print(f"  sha256 {checkpoint.sha256}", markup=False)


@weights_app.command("fetch")
def fetch_weights(name: WeightsName) -> None:
    """Download a file, or go on with it, and verify it; CLICKMASK_WEIGHTS_MIRROR says from where else."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    weights = create_weights(Settings())
    with sentence_on_failure():
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(name, total=None)
            path = weights.fetch(name, lambda done, total: bar.update(task, completed=done, total=total))
        console.print(str(path), markup=False)


@weights_app.command("path")
def weights_path(name: WeightsName) -> None:
    """Print where a file is, once it is verified; that may be one that was put there by hand."""
    with sentence_on_failure():
        console.print(str(create_weights(Settings()).verify(name)), markup=False)


if __name__ == "__main__":
    app()
