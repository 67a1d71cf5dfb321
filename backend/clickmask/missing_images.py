"""Labelled images that are not kept any more, fetched again from the tool that they came from."""

from __future__ import annotations

import logging
from collections.abc import Callable

from clickmask.errors import ClickmaskError, StoreUnavailable, ToolUnavailable
from clickmask.image_source import ImageSource
from clickmask.intake import Accepting
from clickmask.kept_images import KeptImages
from clickmask.labels import Submission
from clickmask.store import Store

log = logging.getLogger(__name__)


def fetch_missing(
    name: str,
    tool: Accepting,
    project: str,
    store: Store,
    images: ImageSource,
    kept: KeptImages,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Keep what `tool`, called `name`, still has of the project's missing images; how many stay missing.

    The tool is asked for the whole project, as only it knows where they are; not at all where none
    is missing. An image that is another one by now is no use. Raises ToolUnavailable and
    StoreUnavailable.
    """
    missing = {image.digest for image in store.images(name, project)}
    missing = {digest for digest in missing if not kept.holds(digest)}
    if not missing:
        return 0
    log.info("%s %s: %d labelled images are fetched again", name, project, len(missing))
    for part in tool.pull(project):
        for change in part.changes:
            if stopped() or not missing:
                return len(missing)
            known = store.known_image(change) if isinstance(change, Submission) else None
            if known is None or known.digest not in missing or not isinstance(change, Submission):
                continue
            try:
                image, raw = images.read(tool.locate(change))
            except (StoreUnavailable, ToolUnavailable):
                raise
            except ClickmaskError as error:
                log.info("%s: the image of task %s stays missing: %s", name, change.task, error)
                continue
            if image.digest not in missing:
                continue
            if not kept.keep(image.digest, raw):
                return len(missing)  # there is no room, for others neither
            missing.discard(image.digest)
    return len(missing)
