"""What a project's trained model finds in its tasks, before anybody has clicked."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from clickmask.errors import AnnotatorNotReady, Busy, ClickmaskError, InvalidRequest, UnknownAnnotator
from clickmask.types import Prediction
from clickmask.workbench import Proposal, Workbench
from clickmask_adapters.tools.label_studio import translate
from clickmask_adapters.tools.label_studio.accepted import TOOL
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import Answer, LabelConfig

log = logging.getLogger(__name__)

Json = Mapping[str, Any]

LONGEST = 80.0  # seconds; Label Studio waits for 100


def model_version(segmenter: str, trained: str | None) -> str:
    """Under which Label Studio keeps predictions: it asks anew for those of another version."""
    return f"{segmenter}, {trained}" if trained else segmenter


class Preannotation:
    """Answers one request for predictions; `version` is what Label Studio keeps them under."""

    def __init__(
        self,
        workbench: Workbench,
        client: LabelStudioClient,
        annotator: str,
        version: str,
        config: LabelConfig,
        min_iou: float,
    ) -> None:
        self._workbench, self._client = workbench, client
        self._annotator, self._version = annotator, version
        self._config, self._min_iou = config, min_iou
        self._until = time.monotonic() + LONGEST

    def answers(self, tasks: Sequence[tuple[int, Json]]) -> list[dict[str, Any]]:
        """One entry of `results` a task, in their order. Raises Busy where they are too many.

        A task whose images cannot be had has no regions; where that holds for all there is no answer,
        so that Label Studio keeps nothing and asks again.
        """
        found = [self._answer_or_none(task, data) for task, data in tasks]
        if all(answer is None for answer in found):
            return []
        nothing: dict[str, Any] = {"result": [], "score": 0, "model_version": self._version}
        return [answer or nothing for answer in found]

    def answer(self, task: int, data: Json) -> dict[str, Any]:
        """The entry of one task; its score is that of its least sure object: the first to be looked at.

        Raises InvalidRequest where the task has no image, the image errors, LabelStudioError, Busy,
        AnnotatorNotReady and UnknownAnnotator.
        """
        regions: list[dict[str, Any]] = []
        scores: list[float] = []
        for to_name in self._config.images:
            uris = self._config.image_uris(to_name, data)
            for index, uri in enumerate(uris):
                place = index if len(uris) > 1 else None
                for label, proposal in self._annotated(task, uri, to_name):
                    regions += self._regions(label, proposal, to_name, place)
                    scores.append(proposal.prediction.score)
        return {"result": regions, "score": min(scores, default=0), "model_version": self._version}

    def _answer_or_none(self, task: int, data: Json) -> dict[str, Any] | None:
        try:
            return self.answer(task, data)
        except (Busy, AnnotatorNotReady, UnknownAnnotator):
            raise
        except ClickmaskError as error:
            log.info("%s: task %d is not pre-annotated: %s", TOOL, task, error)
            return None

    def _annotated(self, task: int, uri: str, to_name: str) -> list[tuple[str, Proposal]]:
        def can_be_drawn(label: str, prediction: Prediction) -> bool:
            return self._control(label, to_name) is not None

        while True:
            try:
                ref = self._client.image_ref(task, uri)
                return self._workbench.preannotate(ref, self._annotator, TOOL, can_be_drawn)
            except Busy as error:
                if time.monotonic() + error.retry_after > self._until:
                    raise
                time.sleep(error.retry_after)

    def _control(self, label: str, to_name: str) -> Answer | None:
        """The first that has the label: an object is one object."""
        try:
            return self._config.answers(to_name, "", [label])[0]
        except InvalidRequest as error:
            log.info("%s: %s is not shown: %s", TOOL, label, error)
            return None

    def _regions(
        self, label: str, proposal: Proposal, to_name: str, item_index: int | None
    ) -> list[dict[str, Any]]:
        answer = self._control(label, to_name)
        height, width = proposal.prediction.mask.shape
        asked = translate.Request(None, (height, width), to_name, (answer,) if answer else (), 0, item_index)
        return translate.regions(proposal.id, proposal.prediction, asked, self._min_iou).json
