"""The command line."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer
import uvicorn
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from clickmask import segmenters as installed
from clickmask.catalogue import Catalogue
from clickmask.errors import ClickmaskError
from clickmask_adapters.app import create_app, create_images, create_weights
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Clicks and boxes become masks.")
connect_app = typer.Typer(
    no_args_is_help=True, help="Connect a labeling tool's project with a running server."
)
app.add_typer(connect_app, name="connect")
weights_app = typer.Typer(no_args_is_help=True, help="The files that segmenters have learned into.")
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
    key = settings.label_studio_api_key
    client = LabelStudioClient(settings.label_studio_url, key.get_secret_value() if key else None)
    secret = settings.token.get_secret_value() if settings.token else None
    read = create_images(settings).identify
    with sentence_on_failure():
        for done in connect(client, project, backend_url, secret, read, settings.username):
            console.print(done, markup=False)


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
