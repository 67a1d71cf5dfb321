"""The command line."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Annotated

import typer
import uvicorn
from rich.console import Console
from rich.table import Table

from clickmask.catalogue import Catalogue
from clickmask.errors import ClickmaskError
from clickmask_adapters.app import create_app, create_images
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Clicks and boxes become masks.")
connect_app = typer.Typer(
    no_args_is_help=True, help="Connect a labeling tool's project with a running server."
)
app.add_typer(connect_app, name="connect")
console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)


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
    try:
        for done in connect(client, project, backend_url, secret, read, settings.username):
            console.print(done, markup=False)
    except ClickmaskError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(1) from error


@app.command()
def segmenters() -> None:
    """List what is installed, and what is ready."""
    table = Table("segmenter", "ready", box=None)
    for status in Catalogue().statuses():
        table.add_row(status.name, "yes" if status.ready else status.reason)
    console.print(table)


if __name__ == "__main__":
    app()
