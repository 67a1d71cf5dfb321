"""The images of a whole Label Studio project."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from clickmask.errors import InvalidRequest
from clickmask_adapters.preparing import Wanted
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio.client import LabelStudioClient

log = logging.getLogger(__name__)


def project_images(client: LabelStudioClient, project: int) -> Iterator[Wanted]:
    """Every image of every task, in Label Studio's order; tasks without one are left out.

    Raises LabelStudioError where Label Studio cannot be asked.
    """
    config = label_config.parse(client.project(project).get("label_config") or "<View/>")
    for task in client.all_tasks(project):
        for to_name in config.images:
            try:
                uris = config.image_uris(to_name, task["data"])
            except InvalidRequest as error:
                log.info("task %d: %s", task["id"], error)
                continue
            for number, uri in enumerate(uris, 1):
                name = f"task {task['id']}" + (f", image {number}" if len(uris) > 1 else "")
                # Located when its turn comes: the access token of now would have expired by then.
                yield Wanted(name, partial(client.image_ref, task["id"], uri))
