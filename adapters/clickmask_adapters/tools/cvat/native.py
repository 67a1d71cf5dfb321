"""clickmask as a native function of CVAT, for `cvat-cli task auto-annotate` and for agents.

    cvat-cli task auto-annotate 7 --function-module clickmask_adapters.tools.cvat.native \
        -p kind=str:detector -p segmenter=str:everything:sam:vit_b

Functions follow cvat-sdk 2.80.0 (interactors since 2.71); its extra is `clickmask[cvat]`. `create` imports
it, so that this module can be imported without it. The models run in this process, or on a clickmask server.
"""

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import PIL.Image

from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.images.decode import opened_image
from clickmask.inference import driver, second_look
from clickmask.inference.refinement import Refinement
from clickmask.masks.controls import Controls, read_controls
from clickmask.masks.polygons import group_rings
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Prediction, Prompt
from clickmask_adapters.client import Client, Prepared, labels_of
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings, read_settings
from clickmask_adapters.tools.cvat.mask_points import mask_to_points
from clickmask_adapters.tools.cvat.prompts import Pointed


@contextmanager
def critical_in_cvat_cli() -> Generator[None]:
    """In cvat-cli, make a ClickmaskError its CriticalError too, the only kind of which it shows the sentence
    alone (read in 2.80.0); others end in a traceback. An agent's worker sends it on as it was."""
    try:
        yield
    except ClickmaskError as error:
        critical = getattr(sys.modules.get("cvat_cli._internal.common"), "CriticalError", None)
        if critical is None:
            raise
        kind, given = type(error), error.args

        def reduce(_: object) -> tuple[object, ...]:
            return kind, given

        raise type(kind.__name__, (kind, critical), {"__reduce__": reduce})(*given) from error


class InProcess:
    """The models that are installed here, as configured, with the methods of `Client`. For any thread. Keeps
    no labels and no proposals."""

    def __init__(self, settings: Settings) -> None:
        home = Home(settings.model_copy(update={"disk_bytes": 0}))
        home.weights.verify_new()
        self._default = settings.segmenter
        self._segmenters, self._annotators = home.segmenters, home.annotators
        self._refinement = Refinement()

    def labels(self, annotator: str) -> tuple[str, tuple[str, ...]]:
        """Name and labels, as `labels_of` gives them, without loading a model."""
        return labels_of(annotator, self._annotators.statuses())

    def annotate(self, annotator: str, opened: PIL.Image.Image) -> list[tuple[str, Prediction]]:
        return driver.annotate(self._annotators.get(annotator), opened_image(opened))

    def prepare(self, segmenter: str, opened: PIL.Image.Image) -> Prepared:
        """Encode the image. Here and below, a `segmenter` of "" is the default one."""
        image = opened_image(opened)
        embedding = driver.encode(self._segmenters.get(segmenter or self._default), image)
        return Prepared(image.size, image.digest, (image, embedding))

    def propose(
        self, segmenter: str, prepared: Prepared, prompt: Prompt, controls: Controls
    ) -> list[Prediction]:
        """Masks, best first, never empty. Raises as `Workbench.propose` does."""
        chosen = self._segmenters.get(segmenter or self._default)
        prompt.require_inside(prepared.size)
        image, embedding = prepared.embedding
        return second_look.decode(chosen, self._refinement, embedding, image, prompt, controls)


class Detector:
    """A `cvat_sdk.auto_annotation.DetectionFunction`: every object of an image, as a mask or as polygons."""

    def __init__(self, models: Client | InProcess, annotator: str, label: str, min_iou: float) -> None:
        self._sdk = sdk = importlib.import_module("cvat_sdk.auto_annotation")
        self._models = models
        self._annotator, labels = models.labels(annotator)
        self._min_iou = min_iou
        if label and len(labels) > 1:
            raise InvalidRequest(f"{self._annotator} finds {', '.join(labels)}: which of them is {label!r}?")
        self._ids = {each: number for number, each in enumerate(labels, 1)}
        # Declared as masks: CVAT accepts polygons for them if it was asked to convert masks.
        specs = [sdk.label_spec(label or each, number, type="mask") for each, number in self._ids.items()]
        self.spec: Any = sdk.DetectionFunctionSpec(labels=specs)

    @critical_in_cvat_cli()
    def detect(self, context: Any, image: PIL.Image.Image) -> list[Any]:
        """Shapes of the objects with a score of at least `context.conf_threshold`, best first."""
        least_score = context.conf_threshold or 0.0
        shapes: list[Any] = []
        for number, (label, prediction) in enumerate(self._models.annotate(self._annotator, image), 1):
            if prediction.score < least_score or label not in self._ids or not prediction.mask.any():
                continue  # a label that the spec lacks is from a newer model
            if context.conv_mask_to_poly:
                # One polygon per part of the mask, all in one group; CVAT's polygons have no holes.
                rings = simplify_mask(prediction.mask, self._min_iou).rings
                outlines = [outer.reshape(-1).tolist() for outer, _ in group_rings(rings)]
                group = {"group": number} if len(outlines) > 1 else {}
                shapes += [self._sdk.polygon(self._ids[label], each, **group) for each in outlines]
            else:
                shapes.append(self._sdk.mask(self._ids[label], mask_to_points(prediction.mask)))
        return shapes


class Interactor:
    """A `cvat_sdk.auto_annotation.InteractionFunction`: clicks and boxes, in any number."""

    def __init__(self, models: Client | InProcess, segmenter: str, controls: Controls) -> None:
        self._sdk = sdk = importlib.import_module("cvat_sdk.auto_annotation")
        self._models = models
        self._segmenter, self._controls = segmenter, controls
        self.spec: Any = sdk.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    @critical_in_cvat_cli()
    def preprocess_image(self, context: Any, image: PIL.Image.Image) -> Prepared:
        """Encode the image. The agent keeps the result for ten minutes."""
        return self._models.prepare(self._segmenter, image)

    @critical_in_cvat_cli()
    def detect(self, context: Any, pp_image: Prepared, prompts: Any) -> list[Any]:
        """The best mask for each box, or for the points; none if nothing was found or asked for."""
        corners = prompts.bounding_box or ()
        boxes = tuple(zip(corners[::2], corners[1::2], strict=True))
        pointed = Pointed(tuple(prompts.pos_points), tuple(prompts.neg_points), boxes)
        attribute = importlib.import_module("cvat_sdk.models").AttributeValRequest
        confidence = int(self._sdk.InteractionResultAttributes.CONFIDENCE)
        shape = self._sdk.InteractionResultShape
        shapes: list[Any] = []
        for prompt in pointed.prompts(pp_image.size):
            best = self._models.propose(self._segmenter, pp_image, prompt, self._controls)[0]
            if best.mask.any():
                value = attribute(spec_id=confidence, value=f"{best.score:.4f}")
                shapes.append(shape(type="mask", points=mask_to_points(best.mask), attributes=[value]))
        return shapes


@critical_in_cvat_cli()
def create(
    kind: str = "detector",
    segmenter: str = "",
    url: str = "",
    token: str = "",
    label: str = "",
    controls: str = "",
) -> Detector | Interactor:
    """The function that CVAT calls. Loads no model. Raises InvalidRequest, NotReady and ServerFailed.

    `segmenter` is one of `clickmask segmenters` for an interactor (default: the configured one), and an
    annotator (`everything:sam:vit_b`) for a detector (default: the first that is ready). A server at `url`
    with the secret `token` (default: CLICKMASK_TOKEN) runs it; without `url` this process does. `label`
    renames a detector's only label. `controls` shape an interactor's masks: "smooth=2 max_parts=1".
    """
    settings = read_settings()
    secret = token or (settings.token.get_secret_value() if settings.token else None)
    models = Client(url, secret) if url else InProcess(settings)
    if kind == "interactor":
        return Interactor(models, segmenter, read_controls(controls.split()))
    if kind == "detector":
        return Detector(models, segmenter, label, settings.min_iou)
    raise InvalidRequest(f"a function is a detector or an interactor, not {kind!r}")
