"""What CVAT is offered, described as nuclio's dashboard describes its functions. Pure.

CVAT 2.73.0 reads every description before it shows any: a list instead of an object, a text that is
no number, a missing description, labels that are no JSON: each takes the whole page of models down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import orjson

from clickmask.annotators._catalogue import AnnotatorStatus
from clickmask.inference.catalogue import SegmenterStatus

SAM_PLUGIN = "pth-facebookresearch-sam-vit-h"
"""The id at which CVAT's page asks for an embedding, and decodes it itself: with ViT-H's decoder."""
VIT_H = "sam:vit_h"

NAME = re.compile(r"[a-zA-Z0-9_.-]+")  # of a function: what CVAT's own addresses take
MAX_LABEL_CHARS = 64  # characters
PROMPTS = "Click on the object, right-click on what is not part of it, or draw a box round it."

Kind = Literal["interactor", "embedding", "detector"]


@dataclass(frozen=True)
class Function:
    """One entry of CVAT's AI tools. A wrong one cannot be written: ValueError."""

    id: str
    kind: Kind
    runs: str  # the segmenter or the annotator
    title: str
    description: str
    labels: tuple[str, ...] = ()  # of a detector

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.id):
            raise ValueError(
                f"{self.id!r} cannot be the name of a CVAT function: letters, digits, _ . - only"
            )
        if (self.kind == "detector") != bool(self.labels):
            raise ValueError(f"{self.id}: a detector has labels, and nothing else has")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"{self.id}: a label stands twice among {self.labels}")
        for label in self.labels:
            if not label.strip() or len(label) > MAX_LABEL_CHARS:
                raise ValueError(
                    f"{self.id}: {label[:80]!r} cannot be a label: 1 to {MAX_LABEL_CHARS} characters"
                )

    def described(self, port: int) -> dict[str, Any]:
        """As JSON; `port` is where CVAT would call if its nuclio method were `direct`."""
        annotations = {"name": self.title, "spec": "", "version": "2", "animated_gif": ""}
        if self.kind == "detector":
            labels = [
                {"id": number, "name": label, "type": "mask"} for number, label in enumerate(self.labels, 1)
            ]
            annotations |= {"type": "detector", "spec": orjson.dumps(labels).decode()}
        else:
            # No `startswith_box`: CVAT takes any text for true, "false" too.
            annotations |= {
                "type": "interactor",
                "min_pos_points": "0",
                "min_neg_points": "0",
                "startswith_box_optional": "true",
                "help_message": PROMPTS,
            }
        return {
            "metadata": {
                "name": self.id,
                "namespace": "nuclio",
                "labels": {"nuclio.io/project-name": "cvat"},
                "annotations": annotations,
            },
            "spec": {"description": self.description},
            "status": {"state": "ready", "httpPort": port},
        }


def functions(
    segmenters: Sequence[SegmenterStatus], annotators: Sequence[AnnotatorStatus], default: str
) -> tuple[dict[str, Function], list[str]]:
    """Everything that is ready, by id, the default segmenter first; and why something is left out."""
    ready = sorted((each for each in segmenters if each.ready), key=lambda each: each.name != default)
    found: dict[str, Function] = {}
    left_out: list[str] = []
    wanted: list[Callable[[], Function]] = [partial(_interactor, each.name) for each in ready]
    fit = [each.name for each in ready if each.decoder == VIT_H]
    if fit:  # the real one before what imitates it
        wanted.append(partial(_embedding, VIT_H if VIT_H in fit else fit[0]))
    wanted += [partial(_detector, each.name, each.labels) for each in annotators if each.ready]
    for make in wanted:
        try:
            function = make()
        except ValueError as error:
            left_out.append(str(error))
            continue
        if function.id in found:
            left_out.append(f"{function.runs}: {found[function.id].runs} is {function.id} already")
        else:
            found[function.id] = function
    return found, left_out


def _interactor(segmenter: str) -> Function:
    return Function(
        f"clickmask-{_name(segmenter)}",
        "interactor",
        segmenter,
        f"clickmask {segmenter}",
        f"Masks from clicks and boxes, by {segmenter} on clickmask's server",
    )


def _embedding(segmenter: str) -> Function:
    mark = "" if segmenter == VIT_H else f" (embeddings of {segmenter})"
    return Function(
        SAM_PLUGIN,
        "embedding",
        segmenter,
        f"Segment Anything in the browser{mark}",
        f"Masks that the browser decodes, from embeddings that {segmenter} makes on clickmask's server",
    )


def _detector(annotator: str, labels: tuple[str, ...]) -> Function:
    return Function(
        f"clickmask-detect-{_name(annotator)}",
        "detector",
        annotator,
        f"clickmask {annotator}",
        f"Masks of the whole image, without a prompt, by {annotator} on clickmask's server",
        labels,
    )


def _name(runs: str) -> str:
    return runs.replace(":", "-")
