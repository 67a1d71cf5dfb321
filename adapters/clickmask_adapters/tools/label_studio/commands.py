"""`clickmask connect label-studio`."""

from __future__ import annotations

from typing import Annotated

import typer

from clickmask_adapters.app import create_images
from clickmask_adapters.commands._console import console, sentence_on_failure
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio.client import client_of
from clickmask_adapters.tools.label_studio.connect import connect


def connect_command(
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
    client = client_of(settings)
    secret = settings.token.get_secret_value() if settings.token else None
    read = create_images(settings).identify
    with sentence_on_failure():
        for done in connect(client, project, backend_url, secret, read, settings.username):
            console.print(done, markup=False)
