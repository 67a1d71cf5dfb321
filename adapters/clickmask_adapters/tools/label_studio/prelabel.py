"""Predictions of a project's trained model, which Label Studio asks for or `clickmask prelabel` stores."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from clickmask.errors import Busy, ClickmaskError, InvalidRequest, NotFound, NotReady
from clickmask.types import Prediction
from clickmask.workbench import Workbench
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import Json, project_number
from clickmask_adapters.tools._prelabel import UNREADABLE, Step, draw, require_trained
from clickmask_adapters.tools.label_studio import answers, prompts
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import Answer, LabelConfig
from clickmask_adapters.tools.label_studio.labels import TOOL, config_of

log = logging.getLogger(__name__)
PAGE = 50  # tasks, with their predictions
PREDICT_WAIT_S = 80.0  # Label Studio waits for 100
OURS = re.compile(r".*, unet .*", re.DOTALL)  # a version that `model_version` gives
TOUCHED = ("annotations", "cancelled_annotations", "drafts")  # submitted, skipped, or begun


def model_version(segmenter: str, trained: str | None) -> str:
    """The version under which Label Studio keeps predictions; it asks again when the version changes."""
    return f"{segmenter}, {trained}" if trained else segmenter


def prelabel(workbench: Workbench, client: LabelStudioClient, project: str, min_iou: float) -> Iterator[Step]:
    """Give each task without annotations and drafts one prediction of the served model.

    Each task is one request, so an interrupted run leaves it with its prediction or without. Raises
    InvalidRequest if `project` is not a number, NotReady and ToolError.
    """
    number = project_number(project, "Label Studio")
    require_trained(workbench, TOOL, project)
    found = client.project(number)
    config = config_of(found)
    shown: str = found.get("model_version") or ""
    last = 0
    while True:
        tasks, total = client.annotated_tasks(number, last, PAGE, without_annotations=True)
        for place, task in enumerate(tasks):
            last, remaining = task["id"], total - place - 1
            annotator, trained = require_trained(workbench, TOOL, str(number))
            segmenter = workbench.project_segmenter(TOOL, str(number)) or workbench.default_segmenter
            version = model_version(segmenter, trained)
            predicted = {each.get("model_version") for each in task["predictions"]}
            if version in predicted or any(task.get(name) for name in TOUCHED):
                yield Step(remaining, images=1, untouched=1)
                continue
            prelabeller = Prelabeller(workbench, client, annotator, version, config, min_iou)
            try:
                answer = prelabeller.answer(task["id"], task["data"])
                client.add_prediction({"task": task["id"], "project": number, **answer})
            except (InvalidRequest, ToolError, *UNREADABLE) as error:
                if isinstance(error, ToolError) and not error.is_about_this:
                    raise
                yield Step(remaining, images=1, left_out=(f"task {task['id']}: {error}",))
                continue
            # Label Studio shows the predictions of one version; only an older one of ours is replaced. A
            # project that names a backend follows that backend, and so this version.
            if shown != version and (not shown or OURS.fullmatch(shown)):
                client.change_project(number, {"model_version": version})
                shown = version
            objects = len({region["id"].rpartition("-")[0] for region in answer["result"]})
            yield Step(remaining, images=1, containers=1, objects=objects)
        if len(tasks) < PAGE:
            return


class Prelabeller:
    """The answer to one request for predictions, which Label Studio keeps under `version`."""

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
        """One entry of `results` per task, in order. Raises Busy if they take too long.

        A task with unreadable images has no regions. With only such tasks the answer is empty: Label Studio
        asks again.
        """
        empty: dict[str, Any] = {"result": [], "score": 0, "model_version": self._version}
        found: list[dict[str, Any]] = []
        for task, data in tasks:
            try:
                found.append(self.answer(task, data))
            except (Busy, NotReady, NotFound):
                raise
            except ClickmaskError as error:
                log.info("%s: task %d is not prelabelled: %s", TOOL, task, error)
                found.append(empty)
        return [] if all(answer is empty for answer in found) else found

    def answer(self, task: int, data: Json) -> dict[str, Any]:
        """The entry of one task. Its score is its objects' lowest, so that people look at weak ones first.

        Raises InvalidRequest if the task has no image, image errors, ToolError, Busy, NotReady and NotFound.
        """
        regions: list[dict[str, Any]] = []
        scores: list[float] = []
        for to_name in self._config.images:
            uris = self._config.image_uris(to_name, data)
            for index, uri in enumerate(uris):
                place = index if len(uris) > 1 else None
                locate = partial(self._client.image_ref, task, uri)

                def can_be_drawn(label: str, _: Prediction, to_name: str = to_name) -> bool:
                    return self._control(label, to_name) is not None

                found = draw(self._workbench, locate, self._annotator, TOOL, can_be_drawn, self._until)
                for label, proposal in found:
                    answer = self._control(label, to_name)
                    size, drawn_with = proposal.prediction.mask.shape, (answer,) if answer else ()
                    asked = prompts.Request(None, (size[0], size[1]), to_name, drawn_with, 0, place)
                    regions += answers.regions(proposal.id, proposal.prediction, asked, self._min_iou).json
                    scores.append(proposal.prediction.score)
        return {"result": regions, "score": min(scores, default=0), "model_version": self._version}

    def _control(self, label: str, to_name: str) -> Answer | None:
        """The first control with the label, as an object is drawn once; None if there is none."""
        try:
            return self._config.answers(to_name, "", [label])[0]
        except InvalidRequest as error:
            log.info("%s: %s is not shown: %s", TOOL, label, error)
            return None
