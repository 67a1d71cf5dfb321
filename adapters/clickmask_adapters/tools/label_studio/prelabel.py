"""`clickmask prelabel label-studio`: predictions for the tasks of a project that nobody has touched.

What a project's trained model finds in its tasks, before anybody has clicked.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clickmask.errors import (
    AnnotatorNotReady,
    Busy,
    ClickmaskError,
    ImageRefused,
    ImageUnavailable,
    InvalidImage,
    InvalidRequest,
    UnknownAnnotator,
)
from clickmask.types import Prediction
from clickmask.workbench import Proposal, Workbench
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools._prelabel import Step, require_trained
from clickmask_adapters.tools.label_studio import answers, label_config, prompts
from clickmask_adapters.tools.label_studio.client import LabelStudioClient, LabelStudioError, client_of
from clickmask_adapters.tools.label_studio.label_config import Answer, LabelConfig
from clickmask_adapters.tools.label_studio.labels import TOOL
from clickmask_adapters.tools.label_studio.pull import project_number

PAGE = 50  # tasks, with the predictions that they have
OURS = re.compile(r".*, unet .*", re.DOTALL)  # what `model_version` gives
Json = Mapping[str, Any]


def prelabel(workbench: Workbench, settings: Settings, project: str) -> Iterator[Step]:
    """Give each task without annotations and drafts the prediction of the model that is served, once.

    A task is one request, so that stopped at any time it has its prediction or not. Raises
    InvalidRequest for what names no project, AnnotatorNotReady and LabelStudioError.
    """
    number = project_number(project)
    require_trained(workbench, TOOL, project)
    client = client_of(settings)
    found = client.project(number)
    annotating = _Annotating(workbench, client, settings.min_iou, number, found)
    last = 0
    while True:
        tasks, total = client.annotated_tasks(number, last, PAGE, without_annotations=True)
        for place, task in enumerate(tasks):
            last = task["id"]
            yield annotating.annotate(task, total - place - 1)
        if len(tasks) < PAGE:
            return


class _Annotating:
    """The tasks of one project, one after the other."""

    def __init__(
        self, workbench: Workbench, client: LabelStudioClient, min_iou: float, project: int, described: Json
    ) -> None:
        self._workbench, self._client = workbench, client
        self._min_iou = min_iou
        self._project = project
        self._config = label_config.parse(described.get("label_config") or "<View/>")
        self._shown: str = described.get("model_version") or ""

    def annotate(self, task: Json, remaining: int) -> Step:
        # Asked for each time: another model may have been promoted since the one before.
        annotator, version = require_trained(self._workbench, TOOL, str(self._project))
        segmenter = self._workbench.project_segmenter(TOOL, str(self._project))
        version = model_version(segmenter or self._workbench.default_segmenter, version)
        if _is_touched(task) or version in {each.get("model_version") for each in task["predictions"]}:
            return Step(remaining, images=1, untouched=1)
        try:
            drawing = Prelabeller(
                self._workbench, self._client, annotator, version, self._config, self._min_iou
            )
            answer = drawing.answer(task["id"], task["data"])
            self._client.add_prediction({"task": task["id"], "project": self._project, **answer})
        except (InvalidRequest, InvalidImage, ImageRefused, ImageUnavailable) as error:
            return _left_out(task, remaining, error)
        except LabelStudioError as error:
            if not error.is_about_this:
                raise
            return _left_out(task, remaining, error)
        self._show(version)
        objects = len({region["id"].rpartition("-")[0] for region in answer["result"]})
        return Step(remaining, images=1, containers=1, objects=objects)

    def _show(self, version: str) -> None:
        """Label Studio shows one version's predictions: no other than ours is ever taken away from there.

        Where the project names a backend it follows that backend, and so this version.
        """
        if self._shown != version and (not self._shown or OURS.fullmatch(self._shown)):
            self._client.change_project(self._project, {"model_version": version})
            self._shown = version


def _is_touched(task: Json) -> bool:
    """By an annotator: submitted, skipped, or begun."""
    return any(task.get(name) for name in ("annotations", "cancelled_annotations", "drafts"))


def _left_out(task: Json, remaining: int, error: Exception) -> Step:
    return Step(remaining, images=1, left_out=(f"task {task['id']}: {error}",))


log = logging.getLogger(__name__)
PREDICT_WAIT_S = 80.0  # seconds; Label Studio waits for 100


def model_version(segmenter: str, trained: str | None) -> str:
    """Under which Label Studio keeps predictions: it asks anew for those of another version."""
    return f"{segmenter}, {trained}" if trained else segmenter


class Prelabeller:
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
        self._until = time.monotonic() + PREDICT_WAIT_S

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
                return self._workbench.prelabel(ref, self._annotator, TOOL, can_be_drawn)
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
        asked = prompts.Request(None, (height, width), to_name, (answer,) if answer else (), 0, item_index)
        return answers.regions(proposal.id, proposal.prediction, asked, self._min_iou).json
