"""What runs behind CVAT's native functions: models in this process, or those of a clickmask server.

Both give the core's vocabulary for what Pillow has opened, and both may be called from any thread.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import cv2
import PIL.Image
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from clickmask import annotators, segmenters
from clickmask.catalogue import AnnotatorCatalogue, AnnotatorStatus, Catalogue
from clickmask.embeddings import EmbeddingCache
from clickmask.errors import AnnotatorNotReady, ClickmaskError, UnknownAnnotator
from clickmask.images import opened_image
from clickmask.masks import rle_to_mask
from clickmask.refinement import Refinement
from clickmask.types import Prediction, Prompt, Size
from clickmask_adapters.app import create_models, create_runtimes, create_weights, refiner
from clickmask_adapters.settings import Settings

PATIENCE = 60  # times that a busy server is asked again, after as long as it says

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
        weights = create_weights(settings)
        weights.verify_new()
        self._default = settings.segmenter
        self._segmenters = Catalogue(segmenters, weights, create_runtimes(settings))
        self._annotators = AnnotatorCatalogue(
            annotators,
            self._segmenters,
            EmbeddingCache(settings.embedding_bytes),
            create_models(settings),
            refiner(settings),
        )
        self._refinement = Refinement()

    def labels(self, annotator: str) -> tuple[str, tuple[str, ...]]:
        return _labels(annotator, self._annotators.statuses())

    def annotate(self, annotator: str, opened: PIL.Image.Image) -> list[tuple[str, Prediction]]:
        return self._annotators.get(annotator).annotate(opened_image(opened))

    def prepare(self, segmenter: str, opened: PIL.Image.Image) -> Prepared:
        image = opened_image(opened)
        embedding = self._segmenters.get(segmenter or self._default).encode(image)
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
            total=PATIENCE, connect=2, read=0, status=PATIENCE, allowed_methods=None, raise_on_status=False
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
