"""Prelabelling with a project's trained model, or with another annotator: the parts that both tools share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

from clickmask.caches import waiting_elsewhere
from clickmask.errors import Busy, ImageUnavailable, InvalidInput, NotReady, Refused, TooLarge
from clickmask.types import ImageRef, Prediction
from clickmask.workbench import Proposal, Workbench

UNREADABLE = (InvalidInput, TooLarge, Refused, ImageUnavailable)  # leave out one image, not the others


@dataclass(frozen=True)
class Step:
    """One step of a tool's `prelabel`, or the sum of several. `remaining` images follow it."""

    remaining: int
    images: int = 0  # looked at
    containers: int = 0  # tasks or jobs that got their objects
    objects: int = 0  # drawn in these
    untouched: int = 0  # tasks or jobs that somebody, or this model, had worked on before
    left_out: tuple[str, ...] = ()  # sentences on what could not be done

    def then(self, after: Step) -> Step:
        """The sum of both steps."""
        sums = [before + added for before, added in zip(astuple(self), astuple(after), strict=True)]
        return Step(after.remaining, *sums[1:])


def require_annotator(
    workbench: Workbench, tool: str, project: str, annotator: str | None = None
) -> tuple[str, str]:
    """`annotator`, which is its own version, or the project's trained one and its version; ask before each
    image, as they change. Raises NotReady, and NotFound if there is no such annotator."""
    if annotator is not None:
        workbench.require_annotator(annotator)
        return annotator, annotator
    trained = workbench.trained_annotator(tool, project)
    if trained is None:
        named = f"{tool.replace('_', ' ')} project {project[:40]!r}"
        raise NotReady(f"no model of the {named} is served yet: {workbench.why_not_trained(tool, project)}")
    return trained


def draw(
    workbench: Workbench,
    locate: Callable[[], ImageRef],
    annotator: str,
    tool: str,
    can_be_drawn: Callable[[str, Prediction], bool],
    until: float = math.inf,
) -> list[tuple[str, Proposal]]:
    """The objects that `annotator` finds and that `can_be_drawn`, each with its label. Waits while the model
    is busy; raises Busy after `until`, in seconds of `time.monotonic`. Each try locates the image again,
    because an access token may have expired."""
    while True:
        try:
            return workbench.prelabel(locate(), annotator, tool, can_be_drawn)
        except Busy as error:
            if time.monotonic() + error.retry_after > until:
                raise
            with waiting_elsewhere():
                time.sleep(error.retry_after)
