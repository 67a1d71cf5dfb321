"""The models offered to CVAT, described as nuclio's dashboard describes its functions. Pure.

CVAT 2.73.0 reads every description before it shows any, so one mistake takes down its page of models: a list
instead of an object, a text that is not a number, a missing description, labels that are not JSON.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from clickmask.annotators._catalogue import AnnotatorStatus
from clickmask.errors import InvalidInput
from clickmask.inference.catalogue import SegmenterStatus
from clickmask.masks.controls import AS_IT_IS, Controls, read_controls

SAM_PLUGIN = "pth-facebookresearch-sam-vit-h"
"""The id at which CVAT's page asks for an embedding, and decodes it itself: with ViT-H's decoder."""
VIT_H = "sam:vit_h"
MAX_LABEL_CHARS = 64
PROMPTS = "Click on the object, right-click on what is not part of it, or draw a box round it."
Kind = Literal["interactor", "embedding", "detector"]


@dataclass(frozen=True)
class Function:
    """One entry of CVAT's AI tools. Raises ValueError for one that CVAT could not read."""

    id: str
    kind: Kind
    runs: str  # the segmenter or the annotator
    title: str
    description: str
    labels: tuple[str, ...] = ()  # of a detector
    controls: Controls = AS_IT_IS  # of an interactor's masks

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9_.-]+", self.id):  # as CVAT's own addresses allow it
            raise ValueError(
                f"{self.id!r} cannot be the name of a CVAT function: letters, digits, _ . - only"
            )
        if (self.kind == "detector") != bool(self.labels):
            raise ValueError(f"{self.id}: a detector has labels, and nothing else has")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"{self.id}: a label stands twice among {self.labels}")
        for label in self.labels:
            if not label.strip() or len(label) > MAX_LABEL_CHARS:
                wanted = f"1 to {MAX_LABEL_CHARS} characters"
                raise ValueError(f"{self.id}: {label[:80]!r} cannot be a label: {wanted}")

    def described(self, port: int) -> dict[str, Any]:
        """The entry as JSON. CVAT would call `port` with its nuclio method `direct`."""
        annotations = {"name": self.title, "spec": "", "version": "2", "animated_gif": ""}
        if self.kind == "detector":
            numbered = enumerate(self.labels, 1)
            labels = [{"id": number, "name": label, "type": "mask"} for number, label in numbered]
            annotations |= {"type": "detector", "spec": orjson.dumps(labels).decode()}
        else:
            # No `startswith_box`: CVAT reads any text as true, even "false".
            annotations |= {
                "type": "interactor",
                "min_pos_points": "0",
                "min_neg_points": "0",
                "startswith_box_optional": "true",
                "help_message": PROMPTS,
            }
        metadata = {"name": self.id, "namespace": "nuclio", "labels": {"nuclio.io/project-name": "cvat"}}
        return {
            "metadata": {**metadata, "annotations": annotations},
            "spec": {"description": self.description},
            "status": {"state": "ready", "httpPort": port},
        }


def split_variants(text: str) -> tuple[str, ...]:
    """Comma separated variants, each a segmenter and its controls. Raises ValueError for wrong controls."""
    variants = tuple(" ".join(part.split()) for part in text.split(",") if part.strip())
    for variant in variants:
        try:
            read_controls(variant.split()[1:])
        except InvalidInput as error:
            raise ValueError(f"{variant}: {error}") from error
    return variants


def functions(
    segmenters: Sequence[SegmenterStatus],
    annotators: Sequence[AnnotatorStatus],
    default: str,
    variants: Sequence[str] = (),
) -> tuple[dict[str, Function], list[str]]:
    """The functions that are ready, by id, the default segmenter first; and why others are left out.
    `variants` are as `split_variants` gives them: more interactors, after those without controls."""
    ready = sorted((each for each in segmenters if each.ready), key=lambda each: each.name != default)
    wanted: list[tuple[str, Kind, str, str, str, tuple[str, ...], Controls]] = []
    asked = [(each.name, "") for each in ready] + [each.partition(" ")[::2] for each in variants]
    for name, words in asked:
        title = f"clickmask {name} {words}".rstrip()
        said = f"Masks from clicks and boxes, by {name} on clickmask's server"
        own = f"clickmask-{name.replace(':', '-')}" + re.sub(r"(^|[ =])(?=.)", "-", words)
        wanted.append((own, "interactor", name, title, said, (), read_controls(words.split())))
    fit = [each.name for each in ready if each.decoder == VIT_H]
    if fit:
        name = VIT_H if VIT_H in fit else fit[0]  # the original before its imitations
        title = "Segment Anything in the browser" + ("" if name == VIT_H else f" (embeddings of {name})")
        said = f"Masks that the browser decodes, from embeddings that {name} makes on clickmask's server"
        wanted.append((SAM_PLUGIN, "embedding", name, title, said, (), AS_IT_IS))
    for each in (each for each in annotators if each.ready):
        own = f"clickmask-detect-{each.name.replace(':', '-')}"
        said = f"Masks of the whole image, without a prompt, by {each.name} on clickmask's server"
        wanted.append((own, "detector", each.name, f"clickmask {each.name}", said, each.labels, AS_IT_IS))
    found: dict[str, Function] = {}
    left_out: list[str] = []
    for fields in wanted:
        try:
            function = Function(*fields)
            if function.kind == "interactor" and function.runs not in {each.name for each in ready}:
                raise ValueError(f"{function.title}: the segmenter {function.runs} is not ready")
            if function.id in found:
                raise ValueError(f"{function.runs}: {found[function.id].runs} is {function.id} already")
            found[function.id] = function
        except ValueError as error:
            left_out.append(str(error))
    return found, left_out
