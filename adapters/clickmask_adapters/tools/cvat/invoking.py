"""What a call of one of CVAT's functions does: its body in, its answer out."""

from __future__ import annotations

import base64

import numpy as np
from fastapi import Response

from clickmask.errors import SegmenterNotReady
from clickmask.types import ImageRef, Prediction, SamFeatures
from clickmask.workbench import Workbench
from clickmask_adapters.tools.cvat import image_text, translate
from clickmask_adapters.tools.cvat.functions import Function
from clickmask_adapters.tools.cvat.known_images import KnownImages
from clickmask_adapters.tools.cvat.translate import Pointed

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
        asked, text = image_text.split(body)
        least_score = translate.threshold(asked)
        if function.kind == "embedding":
            answer = self._images.show(text, lambda ref: self._embedding(ref, function.runs))
        elif function.kind == "detector":
            answer = self._images.show(text, lambda ref: self._detections(ref, least_score, function.runs))
        else:
            pointed = translate.pointed(asked)
            shapes = translate.understands_shapes(user_agent)
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
        return translate.shapes_reply(found) if shapes else translate.dense_reply(found, size)

    def _detections(self, ref: ImageRef, least_score: float, annotator: str) -> bytes:
        made = self._workbench.preannotate(
            ref, annotator, TOOL, lambda _, prediction: prediction.score >= least_score
        )
        found = [(label, proposal.prediction) for label, proposal in made]
        return translate.detector_reply(found, self._min_iou)

    def _embedding(self, ref: ImageRef, segmenter: str) -> bytes:
        embedding = self._workbench.embedding(ref, segmenter)
        if not isinstance(embedding, SamFeatures) or embedding.features.shape != FEATURES:
            raise SegmenterNotReady(f"the embeddings of {segmenter} are not those of SAM's decoder")
        blob = base64.b64encode(np.ascontiguousarray(embedding.features, "<f4").data)
        return b'{"blob":"%b"}' % blob
