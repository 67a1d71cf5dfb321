"""Predictions of a project's trained model, which Label Studio asks for or `clickmask prelabel` stores."""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from clickmask.errors import Busy, ClickmaskError, InvalidRequest, NotFound, NotReady
from clickmask.types import Prediction
from clickmask.workbench import Workbench
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import Json, project_number
from clickmask_adapters.tools._prelabel import UNREADABLE, Step, draw, require_annotator
from clickmask_adapters.tools.label_studio import TOOL, clicks
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import LabelConfig, config_of

log = logging.getLogger(__name__)
PAGE = 50  # tasks, with their predictions
PREDICT_WAIT_S = 80.0  # Label Studio waits for 100
# Versions that `Backend.model_version` and `prelabel` give.
OURS = re.compile(r".*, (\w+ \d{4}-[0-9a-f]{8}.*|\w+:[\w:]+)", re.DOTALL)
TOUCHED = ("annotations", "cancelled_annotations", "drafts")  # submitted, skipped, or begun


def prelabel(
    workbench: Workbench,
    client: LabelStudioClient,
    project: str,
    min_iou: float,
    annotator: str | None = None,
) -> Iterator[Step]:
    """Give each task without annotations and drafts one prediction of the served model, or of `annotator`.

    Each task is one request, so an interrupted run leaves it with its prediction or without. Raises
    InvalidRequest if `project` is not a number, NotFound, NotReady and ToolError.
    """
    number = project_number(project, "Label Studio")
    require_annotator(workbench, TOOL, project, annotator)
    found = client.project(number)
    config = config_of(found)
    shown: str = found.get("model_version") or ""
    last = 0
    while True:
        tasks, total = client.annotated_tasks(number, last, PAGE, without_annotations=True)
        for place, task in enumerate(tasks):
            last, remaining = task["id"], total - place - 1
            chosen, made_by = require_annotator(workbench, TOOL, str(number), annotator)
            segmenter = workbench.project_segmenter(TOOL, str(number)) or workbench.default_segmenter
            version = f"{segmenter}, {made_by}"
            predicted = {each.get("model_version") for each in task["predictions"]}
            if version in predicted or any(task.get(name) for name in TOUCHED):
                yield Step(remaining, images=1, untouched=1)
                continue
            prelabeller = Prelabeller(workbench, client, chosen, version, config, min_iou)
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
                changes = {"model_version": version}
                client.ask("PATCH", f"/api/projects/{number}/", body=changes, idempotent=True)
                shown = version
            objects = len({region["id"].rpartition("-")[0] for region in answer["result"]})
            yield Step(remaining, images=1, containers=1, objects=objects)
        if len(tasks) < PAGE:
            return


@dataclass(frozen=True)
class Prelabeller:
    """The answer to one request for predictions, which Label Studio keeps under `version`."""

    workbench: Workbench
    client: LabelStudioClient
    annotator: str
    version: str
    config: LabelConfig
    min_iou: float
    until: float = field(default_factory=lambda: time.monotonic() + PREDICT_WAIT_S)

    def answers(self, tasks: Sequence[tuple[int, Json]]) -> list[dict[str, Any]]:
        """One entry of `results` per task, in order. Raises Busy if they take too long.

        A task with unreadable images has no regions. With only such tasks the answer is empty: Label Studio
        asks again.
        """
        empty: dict[str, Any] = {"result": [], "score": 0, "model_version": self.version}
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
        config = self.config.of_task(data)
        for to_name in config.images:

            def can_be_drawn(label: str, _: Prediction, to_name: str = to_name) -> bool:
                try:
                    return bool(config.answers(to_name, "", [label]))
                except InvalidRequest as error:
                    log.info("%s: %s is not shown: %s", TOOL, label, error)
                    return False

            uris = config.image_uris(to_name, data)
            for index, uri in enumerate(uris):
                place = index if len(uris) > 1 else None
                locate = partial(self.client.image_ref, task, uri)
                found = draw(self.workbench, locate, self.annotator, TOOL, can_be_drawn, self.until)
                for label, proposal in found:
                    height, width = proposal.prediction.mask.shape
                    first = config.answers(to_name, "", [label])[0]  # an object is drawn once
                    asked = clicks.Request(None, (height, width), to_name, (first,), 0, place)
                    regions += clicks.regions(proposal.id, proposal.prediction, asked, self.min_iou)[0]
                    scores.append(proposal.prediction.score)
        return {"result": regions, "score": min(scores, default=0), "model_version": self.version}
