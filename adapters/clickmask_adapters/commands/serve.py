"""`clickmask serve`, and `clickmask connect TOOL PROJECT` with a server that runs."""

import asyncio
import errno
import logging
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import typer
import uvicorn
from fastapi import FastAPI

import clickmask
import clickmask_adapters
from clickmask.errors import ClickmaskError, InvalidRequest, NotFound, NotReady
from clickmask.inference.sessions import packages_of
from clickmask_adapters.app import create_app
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    console,
    open_home,
    sentence_on_failure,
    working_tool,
)
from clickmask_adapters.home import Home
from clickmask_adapters.server.connections import BoundedConnection, Connections, raise_file_limit
from clickmask_adapters.server.failures import RecentFailures
from clickmask_adapters.server.log_budget import LogBudget
from clickmask_adapters.server.memory import freeze_gc
from clickmask_adapters.server.shutdown import ANSWERS_S, end_in_time
from clickmask_adapters.settings import read_settings

cli = typer.Typer()

log = logging.getLogger(__name__)
MIN_THREADS = 28  # the reader's, the encoder's and the store's, those that prepare, and some that answer


class HomeServer(uvicorn.Server):
    """A server that says what it is once it answers; its address comes first, for those who wait for it. A
    signal ends it in time, with status 0."""

    def __init__(self, application: FastAPI, host: str, home: Home, recent: RecentFailures) -> None:
        connections = Connections(raise_file_limit(), recent.count)
        # No proxy_headers: anybody could claim to be this machine by setting X-Forwarded-For.
        config = uvicorn.Config(
            application,
            host,
            home.settings.port,
            log_level="warning",
            access_log=False,
            http=cast("Any", partial(BoundedConnection, connections=connections)),
            backlog=connections.backlog,
            timeout_graceful_shutdown=ANSWERS_S,
            ws="none",
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)
        self._home, self._connections = home, connections
        self._ending = threading.Event()
        end_in_time(self._ending)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. uvicorn's own would raise the signal again at the end, and so change the status."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._ending.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._connections.close_idle()
        with suppress(NotReady):  # a training has time to save its checkpoint while others get their answers
            self._home.workbench.supervisor.begin_to_close()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._connections.failed)
        await super().startup(sockets)
        freeze_gc()
        addresses = [
            each.getsockname()[:2] for server in getattr(self, "servers", []) for each in server.sockets
        ]
        # Once this has returned: a signal before that keeps older uvicorns from shutting down in order.
        for address in addresses[:1]:
            asyncio.get_running_loop().call_soon(self._announce, *address)

    def _announce(self, host: str, port: int) -> None:
        console.print(f"clickmask is ready: http://{f'[{host}]' if ':' in host else host}:{port}")
        for line in described(self._home):
            console.print(f"  {line}", markup=False)
        asyncio.get_running_loop().run_in_executor(None, self._say_segmenter)

    def _say_segmenter(self) -> None:
        """Wait until the default segmenter is loaded, and say where it runs."""
        bench = self._home.workbench
        try:
            told = ", ".join(filter(None, (bench.default_segmenter, bench.default_runs_on())))
        except ClickmaskError as error:
            told = str(error)  # it begins with the name
        console.print(f"  segmenter: {told}", markup=False)


def described(home: Home) -> list[str]:
    """Lines about the home, the tools and who is let in. They show no secret, and no second address."""
    settings = home.settings
    tools: list[str] = []
    for name, tool in home.tools.items():
        where = (
            f"at {urlsplit(tool.origin).netloc}" if tool.origin else f"not connected, set {name.upper()}_URL"
        )
        tools.append(f"{name.replace('_', '-')} {where}")
    networks = ", ".join(map(str, settings.trusted_networks))
    trusted = f", and labeling tools in {networks}" if networks else ""
    access = f"only this machine is let in{trusted}, since CLICKMASK_TOKEN is not set"
    if settings.token:
        access = f"whoever has the secret of CLICKMASK_TOKEN is let in{trusted}"
    return [f"home: {settings.home}", f"tools: {'; '.join(tools)}", f"access: {access}"]


def require_free(host: str, port: int) -> None:
    """Raise InvalidRequest if nothing can listen there: uvicorn would find out after the server has begun to
    read events and to train."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        socket.create_server((host, port), family=found[0][0]).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidRequest(f"port {port} is taken: use --port or CLICKMASK_PORT") from error
        reason = str(error.strerror).partition(" (while")[0]
        said = f"{host}, port {port}, cannot be listened on ({reason})"
        raise InvalidRequest(f"{said}: check --host, and --port or CLICKMASK_PORT") from error


def require_threads(count: int) -> None:
    """Start and end `count` threads, to find out now, not under load, whether the system gives so many.
    Raises RuntimeError if it does not."""
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            started.append(threading.Thread(target=end.wait))
            started[-1].start()
    finally:
        end.set()
    for thread in started:
        thread.join()


@cli.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback set CLICKMASK_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="0: any free port. Default: CLICKMASK_PORT, or 9090."),
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="Default segmenter; overrides CLICKMASK_SEGMENTER.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"] | None,
        typer.Option(case_sensitive=False, help="Overrides CLICKMASK_LOG_LEVEL."),
    ] = None,
) -> None:
    """Answer Label Studio and CVAT, and serve the API and the page."""
    options = {"segmenter": segmenter, "port": port, "log_level": log_level}
    with sentence_on_failure():
        settings = read_settings(**{name: each for name, each in options.items() if each is not None})
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    handler = logging.StreamHandler()
    handler.addFilter(LogBudget())
    # Debugging lines of other packages hold the signed addresses of images.
    logging.basicConfig(
        level=max(level, logging.INFO),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler],
    )
    for package in (clickmask.__name__, clickmask_adapters.__name__):
        logging.getLogger(package).setLevel(level)
    if len(both := packages_of("onnxruntime")) > 1:
        said = "%s overwrite each other: uninstall both, then install the one that you want"
        log.warning(said, " and ".join(both))
    home, recent = Home(settings), RecentFailures()
    with ExitStack() as context:
        with sentence_on_failure():
            try:
                context.enter_context(home.held())
                application = create_app(home, recent)
                require_free(host, settings.port)
                require_threads(MIN_THREADS)
            except Exception as error:  # whatever it is, it goes on once the home is closed
                home.close()
                if isinstance(error, NotFound | NotReady):
                    raise typer.BadParameter(str(error)) from error
                raise
        server = HomeServer(application, host, home, recent)
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
            help="This server's address as the tool sees it. Default: http://127.0.0.1:PORT for Label "
            "Studio, http://nuclio.internal:8070 for CVAT.",
        ),
    ] = None,
) -> None:
    """Create or mend a project's connection with a running server, and check both directions.

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY say where Label Studio is; it is given the secret in
    CLICKMASK_TOKEN. CVAT_URL and CVAT_ACCESS_TOKEN (or CVAT_USERNAME and CVAT_PASSWORD) say where CVAT
    is; it signs with CVAT_WEBHOOK_SECRET, which must be the server's too.
    """
    if our_url and not our_url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{our_url[:80]!r} is not an address such as http://host:9090")
    with open_home() as home:
        chosen = working_tool(home, tool)
        for done in chosen.connect(project, our_url or chosen.default_our_url):
            console.print(done, markup=False)
