"""What becomes of a project's images when its trained model draws on them before people do."""

from __future__ import annotations

from dataclasses import dataclass

from clickmask.errors import AnnotatorNotReady
from clickmask.workbench import Workbench


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
        """Both together."""
        return Step(
            after.remaining,
            self.images + after.images,
            self.containers + after.containers,
            self.objects + after.objects,
            self.untouched + after.untouched,
            (*self.left_out, *after.left_out),
        )


def require_trained(workbench: Workbench, tool: str, project: str) -> tuple[str, str]:
    """The project's annotator, and its version just now. Raises AnnotatorNotReady."""
    trained = workbench.trained_annotator(tool, project)
    if trained is None:
        raise AnnotatorNotReady(
            f"no model of the {tool.replace('_', ' ')} project {project[:40]!r} is served yet: `clickmask "
            "train` makes one"
        )
    return trained
