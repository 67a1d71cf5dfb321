"""clickmask as a native function of CVAT: for `cvat-cli task auto-annotate`, and for agents.

    cvat-cli task auto-annotate 7 --function-module clickmask_adapters.tools.cvat.native \
        -p kind=str:detector -p segmenter=str:everything:sam:vit_b

As cvat-sdk 2.80.0 has them (interactors since 2.71); its extra is `clickmask[cvat]`. cvat-sdk is
imported by `create` and not before, so that this module can be imported, and looked at, without it.

The models run in this process, or are those of a clickmask server. Both give the core's vocabulary for
what Pillow has opened, and both may be called from any thread.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, Protocol

import cv2
import PIL.Image
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from clickmask.annotators._catalogue import AnnotatorStatus
from clickmask.errors import AnnotatorNotReady, ClickmaskError, InvalidRequest, UnknownAnnotator
from clickmask.images.decode import opened_image
from clickmask.inference import driver
from clickmask.inference.refinement import Refinement
from clickmask.masks.polygons import group_rings
from clickmask.masks.rle import rle_to_mask
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Prediction, Prompt, Size
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat.mask_points import mask_to_points
from clickmask_adapters.tools.cvat.prompts import Pointed

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


MAX_RETRIES = 60  # times that a busy server is asked again, after as long as it says
_TIMEOUT = (5.0, 600.0)  # connect, read: an image is annotated in minutes where there is no GPU


class ServerFailed(ClickmaskError):
    """The clickmask server cannot be reached, or refuses what it was asked."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for prompts."""

    size: Size
    digest: str
    embedding: Any  # of the segmenter; of a server's, the file, as it may forget the image


class Models(Protocol):
    def labels(self, annotator: str) -> tuple[str, tuple[str, ...]]:
        """The annotator's name and what it finds; of "" the first that is ready. Loads no model.

        Raises UnknownAnnotator, AnnotatorNotReady and ServerFailed.
        """
        ...

    def annotate(self, annotator: str, opened: PIL.Image.Image) -> list[tuple[str, Prediction]]: ...

    def prepare(self, segmenter: str, opened: PIL.Image.Image) -> Prepared:
        """`segmenter` may be "" for the default one, here and below."""
        ...

    def propose(self, segmenter: str, prepared: Prepared, prompt: Prompt) -> list[Prediction]:
        """Best first, never empty. Raises as `Workbench.propose` does, or ServerFailed."""
        ...


class InProcess:
    """What is installed here, as the settings say; keeps no labels and no proposals."""

    def __init__(self, settings: Settings) -> None:
        home = Home(settings.model_copy(update={"disk_bytes": 0}))
        home.weights.verify_new()
        self._default = settings.segmenter
        self._segmenters, self._annotators = home.segmenters, home.annotators
        self._refinement = Refinement()

    def labels(self, annotator: str) -> tuple[str, tuple[str, ...]]:
        return _labels(annotator, self._annotators.statuses())

    def annotate(self, annotator: str, opened: PIL.Image.Image) -> list[tuple[str, Prediction]]:
        return driver.annotate(self._annotators.get(annotator), opened_image(opened))

    def prepare(self, segmenter: str, opened: PIL.Image.Image) -> Prepared:
        image = opened_image(opened)
        embedding = driver.encode(self._segmenters.get(segmenter or self._default), image)
        return Prepared(image.size, image.digest, embedding)

    def propose(self, segmenter: str, prepared: Prepared, prompt: Prompt) -> list[Prediction]:
        chosen = self._segmenters.get(segmenter or self._default)
        prompt.require_inside(prepared.size)
        return self._refinement.decode(chosen, prepared.embedding, prompt, prepared.digest, prepared.size)


class Served:
    """What the clickmask server at `url` offers. Waits while it is busy; `token` is its secret."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a .netrc would override our header, a proxy would see it
        if token:
            self._session.headers["Authorization"] = f"Token {token}"
        # Of refusals only those are tried again that say when: a busy server, not one without weights.
        retry = Retry(
            total=MAX_RETRIES,
            connect=2,
            read=0,
            status=MAX_RETRIES,
            allowed_methods=None,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def labels(self, annotator: str) -> tuple[str, tuple[str, ...]]:
        rows = self._ask("GET", "annotators").json()["annotators"]
        return _labels(
            annotator,
            [AnnotatorStatus(row["name"], row["ready"], row["reason"], tuple(row["labels"])) for row in rows],
        )

    def annotate(self, annotator: str, opened: PIL.Image.Image) -> list[tuple[str, Prediction]]:
        asked = {"image": _data(_file(opened)), "annotator": annotator, "want": ["rle"]}
        found = self._ask("POST", "annotations", asked).json()["objects"]
        return [(each["label"], _prediction(each, annotator)) for each in found]

    def prepare(self, segmenter: str, opened: PIL.Image.Image) -> Prepared:
        file = _file(opened)
        known = self._ask("POST", "images", {"image": _data(file), "segmenter": segmenter or None}).json()
        return Prepared((known["height"], known["width"]), known["digest"], file)

    def propose(self, segmenter: str, prepared: Prepared, prompt: Prompt) -> list[Prediction]:
        asked = {
            "image": {"digest": prepared.digest},
            "prompt": {"foreground": prompt.foreground, "background": prompt.background, "box": prompt.box},
            "segmenter": segmenter or None,
            "want": ["rle"],
        }
        answer = self._ask("POST", "proposals", asked, but=HTTPStatus.GONE)
        if answer.status_code == HTTPStatus.GONE:
            answer = self._ask("POST", "proposals", asked | {"image": _data(prepared.embedding)})
        body = answer.json()
        return [_prediction(each, body["segmenter"]) for each in body["proposals"]]

    def _ask(
        self, method: str, route: str, body: Mapping[str, Any] | None = None, but: int | None = None
    ) -> requests.Response:
        """The answer, of status 200 or `but`. Raises ServerFailed with the server's own sentence."""
        try:
            answer = self._session.request(method, f"{self._url}/v1/{route}", json=body, timeout=_TIMEOUT)
        except requests.RequestException as error:
            raise ServerFailed(
                f"no clickmask server answers at {self._url}: {type(error).__name__}"
            ) from error
        if answer.status_code not in (HTTPStatus.OK, but):
            raise ServerFailed(f"the clickmask server refused ({answer.status_code}): {_sentence(answer)}")
        return answer


def _labels(annotator: str, statuses: Sequence[AnnotatorStatus]) -> tuple[str, tuple[str, ...]]:
    ready = {each.name: each.labels for each in statuses if each.ready}
    name = annotator or next(iter(ready), "")
    if name in ready:
        return name, ready[name]
    reasons = [f"{each.name}: {each.reason}" for each in statuses if annotator in ("", each.name)]
    known = ", ".join(each.name for each in statuses) or "none"
    if annotator and not reasons:
        raise UnknownAnnotator(f"there is no annotator {annotator[:80]!r}; installed: {known}")
    raise AnnotatorNotReady(f"no annotator is ready: {'; '.join(reasons) or 'none is installed'}")


def _file(opened: PIL.Image.Image) -> bytes:
    """A PNG of the upright pixels: what Pillow has opened may be a crop, which has no file."""
    pixels = opened_image(opened).pixels
    _, file = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return file.tobytes()


def _data(file: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(file).decode("ascii")}


def _prediction(described: Mapping[str, Any], name: str) -> Prediction:
    return Prediction(partial(rle_to_mask, described["rle"]), described["score"], name)


def _sentence(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):  # not clickmask: a proxy, or another server
        return answer.reason
