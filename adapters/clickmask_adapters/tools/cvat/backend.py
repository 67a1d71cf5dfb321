"""Calls of CVAT's functions: bodies in, answers out, and answers that come too late."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
from fastapi import Response

from clickmask.caches import Lru
from clickmask.errors import Busy, Gone, NotReady
from clickmask.types import ImageRef, Prediction, SamFeatures
from clickmask.workbench import Workbench
from clickmask_adapters.tools.cvat import answers, prompts
from clickmask_adapters.tools.cvat.functions import Function
from clickmask_adapters.tools.cvat.images import split_image
from clickmask_adapters.tools.cvat.labels import TOOL
from clickmask_adapters.tools.cvat.prompts import Pointed

log = logging.getLogger(__name__)
Begin = Callable[[], Coroutine[Any, Any, Response]]
T = TypeVar("T")
FEATURES = (256, 64, 64)  # shape of the embeddings that SAM's decoder reads
MAX_RESULTS = 4  # each may have many megabytes
RESULT_TTL_S = 900.0  # a model trained since would answer differently


class Invoker:
    """Calls of functions, answered by the workbench. For any thread."""

    def __init__(self, workbench: Workbench, min_iou: float, *, every_candidate: bool) -> None:
        self._workbench = workbench
        self._min_iou = min_iou
        self._every_candidate = every_candidate

    def answer(self, function: Function, body: bytes, user_agent: str) -> Response:
        """The answer as JSON. Raises InvalidRequest and what `propose` or `annotate` raises."""
        asked, text = split_image(body)
        least_score = prompts.threshold(asked)
        answer: bytes | memoryview
        if function.kind == "embedding":
            answer = self._show(text, lambda ref: self._embedding(ref, function.runs))
        elif function.kind == "detector":
            answer = self._show(text, lambda ref: self._detections(ref, least_score, function.runs))
        else:
            pointed = prompts.pointed(asked)
            shapes = prompts.understands_shapes(user_agent)
            answer = self._show(
                text, lambda ref: self._masks(ref, pointed, least_score, function.runs, shapes)
            )
        return Response(answer, media_type="application/json")

    def _show(self, text: memoryview, ask: Callable[[ImageRef], T]) -> T:
        """The result of `ask` for the base64 image, which is decoded only if its pixels are not in memory."""
        identity = self._workbench.identify_base64(text)
        try:
            return ask(ImageRef(f"digest:{identity.digest}"))
        except Gone:  # other images evicted its pixels
            return ask(ImageRef("data:;base64," + str(text, "ascii")))

    def _masks(
        self, ref: ImageRef, pointed: Pointed, least_score: float, segmenter: str, shapes: bool
    ) -> bytes | memoryview:
        size = self._workbench.identify(ref).size
        found: list[Prediction] = []
        for prompt in pointed.prompts(size):
            proposals = self._workbench.propose(ref, prompt, segmenter, tool=TOOL)
            wanted = proposals if shapes and self._every_candidate else proposals[:1]
            found += [proposal.prediction for proposal in wanted if proposal.prediction.score >= least_score]
        return answers.shapes_reply(found) if shapes else answers.dense_reply(found, size)

    def _detections(self, ref: ImageRef, least_score: float, annotator: str) -> bytes:
        made = self._workbench.prelabel(
            ref, annotator, TOOL, lambda _, prediction: prediction.score >= least_score
        )
        found = [(label, proposal.prediction) for label, proposal in made]
        return answers.detector_reply(found, self._min_iou)

    def _embedding(self, ref: ImageRef, segmenter: str) -> bytes:
        embedding = self._workbench.embedding(ref, segmenter)
        if not isinstance(embedding, SamFeatures) or embedding.features.shape != FEATURES:
            raise NotReady(f"the embeddings of {segmenter} are not those of SAM's decoder")
        blob = base64.b64encode(np.ascontiguousarray(embedding.features, "<f4").data)
        return b'{"blob":"%b"}' % blob


class ResultCache:
    """Answers that outlast CVAT's wait, finished and kept for its retry. For one event loop.

    Otherwise each retry would restart a three-minute annotation, and it would never finish.
    """

    def __init__(self) -> None:
        self._begun = Lru[bytes, asyncio.Future[Response]](max_count=MAX_RESULTS)

    async def wait(self, until: float, key: bytes, begin: Begin) -> Response:
        """The answer for `key`, begun before or now, forgotten once given. Raises Busy after `until`."""
        begun = self._begun.get(key)
        if begun is None:
            begun = asyncio.ensure_future(begin())
            self._begun.put(key, begun)
        try:
            return await wait(until, begun)
        finally:
            if begun.done():
                self._forget(key, begun)
            else:
                asyncio.get_running_loop().call_later(RESULT_TTL_S, self._forget, key, begun)

    def _forget(self, key: bytes, begun: asyncio.Future[Response]) -> None:
        if self._begun.get(key) is begun:  # not one that another call has begun since
            self._begun.pop(key)


def key_of(function: str, body: bytes) -> bytes:
    """The key of a request in ResultCache; hashing takes 0.7 ms per megabyte."""
    return hashlib.sha256(function.encode() + b"\n" + body).digest()


async def wait(until: float, begun: asyncio.Future[Response]) -> Response:
    """The result of `begun`. Raises Busy after `until`, a time of `time.monotonic`; `begun` then goes on."""
    done, _ = await asyncio.wait({begun}, timeout=max(0.0, until - time.monotonic()))
    if done:
        return begun.result()

    def log_late(late: asyncio.Future[Response]) -> None:
        error = None if late.cancelled() else late.exception()
        log.info("cvat: an answer came too late%s", f": {error}" if error else "")

    begun.add_done_callback(log_late)
    raise Busy("clickmask is still working on this image; try again in a moment")
