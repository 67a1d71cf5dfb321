"""`clickmask connect cvat`."""

from __future__ import annotations

from typing import Annotated

import typer

from clickmask_adapters.app import create_images
from clickmask_adapters.commands._console import console, sentence_on_failure
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat.client import client_of
from clickmask_adapters.tools.cvat.connect import connect


def connect_command(
    project: Annotated[int, typer.Argument(help="The project's number, as in its address.")],
    clickmask_url: Annotated[
        str, typer.Option(help="This server's address as CVAT's containers see it.")
    ] = "http://nuclio:8070",
) -> None:
    """Create or mend the webhook of a CVAT project, and check both directions.

    CVAT_URL and CVAT_ACCESS_TOKEN (or CVAT_USERNAME and CVAT_PASSWORD) say where CVAT is;
    CVAT_WEBHOOK_SECRET is what it signs with, the same as the server's.
    """
    settings = Settings()
    secret = settings.cvat_webhook_secret.get_secret_value() if settings.cvat_webhook_secret else None
    read = create_images(settings).identify
    with sentence_on_failure():
        for done in connect(client_of(settings), project, clickmask_url, secret, read):
            console.print(done, markup=False)
