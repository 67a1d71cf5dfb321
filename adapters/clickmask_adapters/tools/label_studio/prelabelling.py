"""`clickmask prelabel label-studio`: predictions for the tasks of a project that nobody has touched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clickmask.errors import ImageRefused, ImageUnavailable, InvalidImage, InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.prelabelling import Prelabelled, require_trained
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio.accepted import TOOL
from clickmask_adapters.tools.label_studio.client import LabelStudioClient, LabelStudioError, client_of
from clickmask_adapters.tools.label_studio.preannotation import Preannotation, model_version
from clickmask_adapters.tools.label_studio.pulling import project_number

PAGE = 50  # tasks, with the predictions that they have
OURS = re.compile(r".*, unet .*", re.DOTALL)  # what `model_version` gives

Json = Mapping[str, Any]


def prelabel(workbench: Workbench, settings: Settings, project: str) -> Iterator[Prelabelled]:
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

    def annotate(self, task: Json, remaining: int) -> Prelabelled:
        # Asked for each time: another model may have been promoted since the one before.
        annotator, version = require_trained(self._workbench, TOOL, str(self._project))
        segmenter = self._workbench.project_segmenter(TOOL, str(self._project))
        version = model_version(segmenter or self._workbench.default_segmenter, version)
        if _is_touched(task) or version in {each.get("model_version") for each in task["predictions"]}:
            return Prelabelled(remaining, images=1, untouched=1)
        try:
            drawing = Preannotation(
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
        return Prelabelled(remaining, images=1, containers=1, objects=objects)

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


def _left_out(task: Json, remaining: int, error: Exception) -> Prelabelled:
    return Prelabelled(remaining, images=1, left_out=(f"task {task['id']}: {error}",))
