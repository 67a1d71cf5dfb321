"""What a call of one of CVAT's functions does: its body in, its answer out.

Answers that take longer than CVAT waits: they are finished and kept for its next try.

A frame that is annotated in three minutes would else be begun anew with each call, and never be done.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Response

from clickmask.errors import Busy, SegmenterNotReady
from clickmask.types import ImageRef, Prediction, SamFeatures
from clickmask.workbench import Workbench
from clickmask_adapters.tools.cvat import answers, images, prompts
from clickmask_adapters.tools.cvat.functions import Function
from clickmask_adapters.tools.cvat.images import KnownImages
from clickmask_adapters.tools.cvat.prompts import Pointed

TOOL = "cvat"
FEATURES = (256, 64, 64)  # of the embeddings that SAM's decoder reads


class Invoker:
    """For any thread."""

    def __init__(self, workbench: Workbench, min_iou: float, *, every_candidate: bool) -> None:
        self._workbench = workbench
        self._images = KnownImages(workbench)
        self._min_iou = min_iou
        self._every_candidate = every_candidate

    def answer(self, function: Function, body: bytes, user_agent: str) -> Response:
        """Raises InvalidRequest and what `propose` or `annotate` raises."""
        asked, text = images.split(body)
        least_score = prompts.threshold(asked)
        if function.kind == "embedding":
            answer = self._images.show(text, lambda ref: self._embedding(ref, function.runs))
        elif function.kind == "detector":
            answer = self._images.show(text, lambda ref: self._detections(ref, least_score, function.runs))
        else:
            pointed = prompts.pointed(asked)
            shapes = prompts.understands_shapes(user_agent)
            answer = self._images.show(
                text, lambda ref: self._masks(ref, pointed, least_score, function.runs, shapes)
            )
        return Response(answer, media_type="application/json")

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
            raise SegmenterNotReady(f"the embeddings of {segmenter} are not those of SAM's decoder")
        blob = base64.b64encode(np.ascontiguousarray(embedding.features, "<f4").data)
        return b'{"blob":"%b"}' % blob


log = logging.getLogger(__name__)
Begin = Callable[[], Coroutine[Any, Any, Response]]
MAX_RESULTS = 4  # of them; each may have many megabytes
RESULT_TTL_S = 900.0  # seconds; a model that was trained since would answer otherwise


class ResultCache:
    """By the request that they are for. Of the event loop, as asyncio's own objects are."""

    def __init__(self) -> None:
        self._begun: OrderedDict[bytes, asyncio.Future[Response]] = OrderedDict()

    async def within(self, until: float, key: bytes, begin: Begin) -> Response:
        """What was begun for `key` before, or begins now; Busy if it takes longer than until then.

        What was given once is not kept. `until` is a time of `time.monotonic`.
        """
        begun = self._begun.get(key)
        if begun is None:
            begun = self._begun[key] = asyncio.ensure_future(begin())
            while len(self._begun) > MAX_RESULTS:
                self._begun.popitem(last=False)
        try:
            return await within(until, begun)
        finally:
            if begun.done():
                self._forget(key, begun)
            else:
                asyncio.get_running_loop().call_later(RESULT_TTL_S, self._forget, key, begun)

    def _forget(self, key: bytes, begun: asyncio.Future[Response]) -> None:
        if self._begun.get(key) is begun:  # and not what another call has begun since
            del self._begun[key]


def key_of(function: str, body: bytes) -> bytes:
    """Of a request; hashing takes 0.7 ms a megabyte."""
    return hashlib.sha256(function.encode() + b"\n" + body).digest()


async def within(until: float, begun: asyncio.Future[Response]) -> Response:
    """What `begun` gives; Busy if it takes longer, and it goes on. `until`: as above."""
    done, _ = await asyncio.wait({begun}, timeout=max(0.0, until - time.monotonic()))
    if done:
        return begun.result()
    begun.add_done_callback(_log_late)
    raise Busy("clickmask is still working on this image; try again in a moment")


def _log_late(begun: asyncio.Future[Response]) -> None:
    error = None if begun.cancelled() else begun.exception()
    log.info("cvat: an answer came too late%s", f": {error}" if error else "")
