"""`clickmask connect TOOL PROJECT`."""

from __future__ import annotations

from typing import Annotated

import typer

from clickmask_adapters.commands._console import ProjectName, ToolName, console, open_home

cli = typer.Typer()


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
