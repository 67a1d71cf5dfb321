"""`clickmask serve`, and `clickmask connect TOOL PROJECT` with a server that runs."""

import logging
import socket
import sys
from typing import Annotated

import typer
import uvicorn

from clickmask.errors import ClickmaskError
from clickmask.inference.sessions import packages_of
from clickmask_adapters.app import create_app
from clickmask_adapters.commands._console import ProjectName, ToolName, console, open_home
from clickmask_adapters.home import Home
from clickmask_adapters.server.memory import freeze_gc
from clickmask_adapters.server.uvicorn import ReadTimeouts
from clickmask_adapters.settings import Settings

cli = typer.Typer()

log = logging.getLogger(__name__)


class AnnouncingServer(uvicorn.Server):
    """A server that prints its address once it answers, so that scripts and people can wait for it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        freeze_gc()
        for server in getattr(self, "servers", []):
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                console.print(f"clickmask is ready: http://{f'[{host}]' if ':' in host else host}:{port}")
                return


@cli.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback set CLICKMASK_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port.")] = 9090,
    segmenter: Annotated[
        str | None, typer.Option(help="Default segmenter; overrides CLICKMASK_SEGMENTER.")
    ] = None,
) -> None:
    """Answer Label Studio and CVAT, and serve the API and the page."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if len(both := packages_of("onnxruntime")) > 1:
        said = "%s overwrite each other: uninstall both, then install the one that you want"
        log.warning(said, " and ".join(both))
    home = Home(Settings(segmenter=segmenter) if segmenter else Settings())
    try:
        application = create_app(home)
    except ClickmaskError as error:
        home.close()
        raise typer.BadParameter(str(error)) from error
    # No proxy_headers: anybody could claim to be this machine by setting X-Forwarded-For.
    config = uvicorn.Config(
        application,
        host,
        port,
        log_level="warning",
        access_log=False,
        http=ReadTimeouts,
        proxy_headers=False,
        server_header=False,
    )
    server = AnnouncingServer(config)
    server.run()
    sys.exit(0 if server.started else 1)


@cli.command()
def connect(
    tool: ToolName,
    project: ProjectName,
    our_url: Annotated[
        str | None,
        typer.Option(
            "--our-url",
            "--backend-url",
            "--clickmask-url",
            help="This server's address as the tool sees it. Default: http://127.0.0.1:9090 for Label "
            "Studio, http://nuclio:8070 for CVAT.",
        ),
    ] = None,
) -> None:
    """Create or mend a project's connection with a running server, and check both directions.

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY say where Label Studio is; it is given the secret in
    CLICKMASK_TOKEN. CVAT_URL and CVAT_ACCESS_TOKEN (or CVAT_USERNAME and CVAT_PASSWORD) say where CVAT
    is; it signs with CVAT_WEBHOOK_SECRET, which must be the server's too.
    """
    with open_home() as home:
        chosen = home.tools[tool]
        for done in chosen.connect(project, our_url or chosen.default_our_url):
            console.print(done, markup=False)
