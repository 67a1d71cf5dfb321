"""`clickmask connect TOOL PROJECT`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from clickmask_adapters.commands._console import console, sentence_on_failure
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings

OUR_URL = {"label_studio": "http://127.0.0.1:9090", "cvat": "http://nuclio:8070"}  # as each tool sees it


def add_to(cli: typer.Typer) -> None:
    cli.command()(connect)


def connect(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="`label-studio` or `cvat`.")],
    project: Annotated[str, typer.Argument(help="The project's number, as in its address.")],
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

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY say where Label Studio is; CLICKMASK_TOKEN is the secret
    that it is given. CVAT_URL and CVAT_ACCESS_TOKEN (or CVAT_USERNAME and CVAT_PASSWORD) say where CVAT
    is; CVAT_WEBHOOK_SECRET is what it signs with, the same as the server's.
    """
    with closing(Home(Settings())) as home, sentence_on_failure():
        name = tool.replace("-", "_")
        if name not in home.tools:
            known = " or ".join(each.replace("_", "-") for each in home.tools)
            raise typer.BadParameter(f"there is no tool {tool[:40]!r}: it is {known}")
        for done in home.tools[name].connect(project, our_url or OUR_URL.get(name, "http://127.0.0.1:9090")):
            console.print(done, markup=False)
