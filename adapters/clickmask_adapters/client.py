"""Python client of a clickmask server, which gives the core's types."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import cv2
import PIL.Image
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from clickmask.annotators._catalogue import AnnotatorStatus
from clickmask.errors import ClickmaskError, NotFound, NotReady
from clickmask.images.decode import opened_image
from clickmask.masks.controls import AS_IT_IS, Controls
from clickmask.masks.rle import mask_to_rle, rle_to_mask
from clickmask.types import Prediction, Prompt, Size

MAX_RETRIES = 60  # of a busy server, each after the delay that it asks for
TIMEOUT_S = (5.0, 600.0)  # connect, read: annotating an image without a GPU takes minutes


class ServerFailed(ClickmaskError):
    """The clickmask server cannot be reached, or refuses the request."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for prompts."""

    size: Size
    digest: str
    embedding: Any  # with the image; with a server the image's file, as the server may forget the image


class Client:
    """A clickmask server at `url`; `token` is its secret. For any thread.

    Every method waits while the server is busy, and raises ServerFailed. Images are as Pillow opened them.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a .netrc would override our header, a proxy would see it
        if token:
            self._session.headers["Authorization"] = f"Token {token}"
        # Only answers with Retry-After are retried: from a busy server, not from one that lacks weights.
        retry = Retry(
            MAX_RETRIES, connect=2, read=0, status=MAX_RETRIES, allowed_methods=None, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def labels(self, annotator: str) -> tuple[str, tuple[str, ...]]:
        """The annotator's name and labels, as `labels_of` gives them."""
        rows = self._ask("GET", "annotators").json()["annotators"]
        statuses = [
            AnnotatorStatus(row["name"], row["ready"], row["reason"], tuple(row["labels"])) for row in rows
        ]
        return labels_of(annotator, statuses)

    def annotate(self, annotator: str, opened: PIL.Image.Image) -> list[tuple[str, Prediction]]:
        """Every object that the annotator finds, with its label."""
        asked = {"image": _data(_file(opened)), "annotator": annotator, "want": ["rle"]}
        found = self._ask("POST", "annotations", asked).json()["objects"]
        return [(each["label"], _prediction(each, annotator)) for each in found]

    def prepare(self, segmenter: str, opened: PIL.Image.Image) -> Prepared:
        """Encode the image. Here and below, a `segmenter` of "" is the server's default."""
        file = _file(opened)
        known = self._ask("POST", "images", {"image": _data(file), "segmenter": segmenter or None}).json()
        return Prepared((known["height"], known["width"]), known["digest"], file)

    def propose(
        self, segmenter: str, prepared: Prepared, prompt: Prompt, controls: Controls = AS_IT_IS
    ) -> list[Prediction]:
        """Masks for the prompt, best first, never empty."""
        marks = {"foreground": prompt.foreground, "background": prompt.background, "box": prompt.box}
        asked = {
            "image": {"digest": prepared.digest},
            "prompt": marks | {"mask": None if prompt.mask is None else mask_to_rle(prompt.mask)},
            "segmenter": segmenter or None,
            "want": ["rle"],
            "controls": controls.wishes(),
        }
        answer = self._ask("POST", "proposals", asked, but=HTTPStatus.GONE)
        if answer.status_code == HTTPStatus.GONE:
            answer = self._ask("POST", "proposals", asked | {"image": _data(prepared.embedding)})
        body = answer.json()
        return [_prediction(each, body["segmenter"]) for each in body["proposals"]]

    def _ask(
        self, method: str, route: str, body: Mapping[str, Any] | None = None, but: int | None = None
    ) -> requests.Response:
        """The answer, with status 200 or `but`. Raises ServerFailed in the server's own words."""
        try:
            answer = self._session.request(method, f"{self._url}/v1/{route}", json=body, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise ServerFailed(
                f"no clickmask server answers at {self._url}: {type(error).__name__}"
            ) from error
        if answer.status_code in (HTTPStatus.OK, but):
            return answer
        try:
            sentence = str(answer.json()["error"])
        except (ValueError, KeyError, TypeError):  # not clickmask: a proxy, or another server
            sentence = answer.reason
        raise ServerFailed(f"the clickmask server refused ({answer.status_code}): {sentence}")


def labels_of(annotator: str, statuses: Sequence[AnnotatorStatus]) -> tuple[str, tuple[str, ...]]:
    """The annotator's name and labels; "" is the first that is ready. Raises NotFound and NotReady."""
    ready = {each.name: each.labels for each in statuses if each.ready}
    name = annotator or next(iter(ready), "")
    if name in ready:
        return name, ready[name]
    reasons = [f"{each.name}: {each.reason}" for each in statuses if annotator in ("", each.name)]
    known = ", ".join(each.name for each in statuses) or "none"
    if annotator and not reasons:
        raise NotFound(f"there is no annotator {annotator[:80]!r}; installed: {known}")
    raise NotReady(f"no annotator is ready: {'; '.join(reasons) or 'none is installed'}")


def _file(opened: PIL.Image.Image) -> bytes:
    """A PNG of the upright pixels. A Pillow image may be a crop, which has no file."""
    pixels = opened_image(opened).pixels
    _, file = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return file.tobytes()


def _data(file: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(file).decode("ascii")}


def _prediction(described: Mapping[str, Any], name: str) -> Prediction:
    return Prediction(partial(rle_to_mask, described["rle"]), described["score"], name)
