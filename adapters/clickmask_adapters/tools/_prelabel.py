"""A project's images, drawn on by its trained model before people do: the parts that both tools share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from clickmask.errors import Busy, ImageUnavailable, InvalidInput, NotReady, Refused, TooLarge
from clickmask.types import ImageRef, Prediction
from clickmask.workbench import Proposal, Workbench

UNREADABLE = (InvalidInput, TooLarge, Refused, ImageUnavailable)  # this image is left out; the others go on


@dataclass(frozen=True)
class Step:
    """One step of a tool's `prelabel`, or several together. `remaining` images are to come after it."""

    remaining: int
    images: int = 0  # that were looked at
    containers: int = 0  # tasks or jobs that were given what was found in them
    objects: int = 0  # in these
    untouched: int = 0  # tasks or jobs in which somebody, or this model, has been already
    left_out: tuple[str, ...] = ()  # sentences about what could not be done

    def then(self, after: Step) -> Step:
        """Both steps together."""
        return Step(
            after.remaining,
            self.images + after.images,
            self.containers + after.containers,
            self.objects + after.objects,
            self.untouched + after.untouched,
            (*self.left_out, *after.left_out),
        )


def require_trained(workbench: Workbench, tool: str, project: str) -> tuple[str, str]:
    """The project's annotator and its version. Raises NotReady.

    Ask before each image: another model may have been promoted since the one before.
    """
    trained = workbench.trained_annotator(tool, project)
    if trained is None:
        raise NotReady(
            f"no model of the {tool.replace('_', ' ')} project {project[:40]!r} is served yet: `clickmask "
            "train` makes one"
        )
    return trained


def draw(
    workbench: Workbench,
    locate: Callable[[], ImageRef],
    annotator: str,
    tool: str,
    can_be_drawn: Callable[[str, Prediction], bool],
    until: float = math.inf,
) -> list[tuple[str, Proposal]]:
    """The objects that `annotator` finds and that `can_be_drawn`, each with its label.

    Waits while others keep the model busy; raises Busy after `until`, in seconds of `time.monotonic`.
    The image is located again for each try: an access token may have expired meanwhile.
    """
    while True:
        try:
            return workbench.prelabel(locate(), annotator, tool, can_be_drawn)
        except Busy as error:
            if time.monotonic() + error.retry_after > until:
                raise
            time.sleep(error.retry_after)
