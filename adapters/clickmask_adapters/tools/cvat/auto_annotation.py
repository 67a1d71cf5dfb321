"""clickmask as a native function of CVAT: for `cvat-cli task auto-annotate`, and for agents.

    cvat-cli task auto-annotate 7 --function-module clickmask_adapters.tools.cvat.auto_annotation \
        -p kind=str:detector -p segmenter=str:everything:sam:vit_b

As cvat-sdk 2.80.0 has them (interactors since 2.71); its extra is `clickmask[cvat]`. cvat-sdk is
imported by `create` and not before, so that this module can be imported, and looked at, without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Literal

import PIL.Image

from clickmask.errors import InvalidRequest
from clickmask.masks import group_rings
from clickmask.simplify import simplify_mask
from clickmask.types import Mask
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat.mask_points import mask_to_points
from clickmask_adapters.tools.cvat.native_models import InProcess, Models, Prepared, Served
from clickmask_adapters.tools.cvat.translate import Pointed

Kind = Literal["detector", "interactor"]


def create(
    kind: Kind = "detector", segmenter: str = "", url: str = "", token: str = "", label: str = ""
) -> Detector | Interactor:
    """The function that CVAT calls. Loads no model.

    `segmenter` is one of `clickmask segmenters` for an interactor, default: the configured one, and
    an annotator (`everything:sam:vit_b`) for a detector, default: the first that is ready. With
    `url` a clickmask server runs it, and `token` is its secret, default: CLICKMASK_TOKEN;
    without, this process does, as CLICKMASK_* say. `label` is what a detector of one label calls
    its objects: the name of a label of the task.

    Raises InvalidRequest, AnnotatorNotReady and ServerFailed.
    """
    settings = Settings()
    secret = token or (settings.token.get_secret_value() if settings.token else None)
    models = Served(url, secret) if url else InProcess(settings)
    if kind == "interactor":
        return Interactor(models, segmenter)
    if kind == "detector":
        return Detector(models, segmenter, label, settings.min_iou)
    raise InvalidRequest(f"a function is a detector or an interactor, not {kind!r}")


class Detector:
    """A `cvat_sdk.auto_annotation.DetectionFunction`: every object of an image, as a mask or as polygons."""

    def __init__(self, models: Models, annotator: str, label: str, min_iou: float) -> None:
        self._sdk: Any = importlib.import_module("cvat_sdk.auto_annotation")
        self._models = models
        self._annotator, labels = models.labels(annotator)
        self._min_iou = min_iou
        if label and len(labels) > 1:
            raise InvalidRequest(f"{self._annotator} finds {', '.join(labels)}: which of them is {label!r}?")
        self._ids = {each: number for number, each in enumerate(labels, 1)}
        # Masks by declaration: CVAT takes them for polygons where it was asked to convert them.
        self.spec: Any = self._sdk.DetectionFunctionSpec(
            labels=[
                self._sdk.label_spec(label or each, number, type="mask") for each, number in self._ids.items()
            ]
        )

    def detect(self, context: Any, image: PIL.Image.Image) -> list[Any]:
        """Shapes of the objects whose score is not below `context.conf_threshold`, best first."""
        least_score = context.conf_threshold or 0.0
        shapes: list[Any] = []
        for number, (label, prediction) in enumerate(self._models.annotate(self._annotator, image), 1):
            if prediction.score < least_score or label not in self._ids or not prediction.mask.any():
                continue  # of a label that the spec lacks: another model is served since
            if context.conv_mask_to_poly:
                shapes += self._polygons(self._ids[label], prediction.mask, number)
            else:
                shapes.append(self._sdk.mask(self._ids[label], mask_to_points(prediction.mask)))
        return shapes

    def _polygons(self, label_id: int, mask: Mask, number: int) -> Iterator[Any]:
        """One for each part of the mask, which share a group; CVAT's polygons have no holes."""
        outlines = [outer for outer, _ in group_rings(simplify_mask(mask, self._min_iou).rings)]
        group = {"group": number} if len(outlines) > 1 else {}
        for outline in outlines:
            yield self._sdk.polygon(label_id, outline.reshape(-1).tolist(), **group)


class Interactor:
    """A `cvat_sdk.auto_annotation.InteractionFunction`: clicks and boxes, in any number."""

    def __init__(self, models: Models, segmenter: str) -> None:
        self._sdk: Any = importlib.import_module("cvat_sdk.auto_annotation")
        self._models = models
        self._segmenter = segmenter
        self.spec: Any = self._sdk.InteractionFunctionSpec(
            min_pos_points=0, min_neg_points=0, min_bounding_boxes=0
        )

    def preprocess_image(self, context: Any, image: PIL.Image.Image) -> Prepared:
        """The image's embedding, which the agent keeps for ten minutes; or the server does."""
        return self._models.prepare(self._segmenter, image)

    def detect(self, context: Any, pp_image: Prepared, prompts: Any) -> list[Any]:
        """The best mask of each box, or of the points; none where nothing was found or asked for."""
        corners = prompts.bounding_box or ()
        boxes = tuple(zip(corners[::2], corners[1::2], strict=True))
        pointed = Pointed(tuple(prompts.pos_points), tuple(prompts.neg_points), boxes)
        found = [
            self._models.propose(self._segmenter, pp_image, prompt)[0]
            for prompt in pointed.prompts(pp_image.size)
        ]
        return [self._shape(each.mask, each.score) for each in found if each.mask.any()]

    def _shape(self, mask: Mask, score: float) -> Any:
        confidence = importlib.import_module("cvat_sdk.models").AttributeValRequest(
            spec_id=int(self._sdk.InteractionResultAttributes.CONFIDENCE), value=f"{score:.4f}"
        )
        return self._sdk.InteractionResultShape(
            type="mask", points=mask_to_points(mask), attributes=[confidence]
        )
