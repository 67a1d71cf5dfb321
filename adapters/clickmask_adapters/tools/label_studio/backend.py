"""The work behind the routes of a Label Studio machine learning backend."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from clickmask.caches import Lru
from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.tools._json import (
    Json,
    as_id,
    as_list,
    as_object,
    as_text,
    parse_object,
    project_number,
)
from clickmask_adapters.tools.label_studio import answers, label_config, prompts
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import LabelConfig
from clickmask_adapters.tools.label_studio.labels import TOOL
from clickmask_adapters.tools.label_studio.prelabel import Prelabeller, model_version

log = logging.getLogger(__name__)
MAX_REMEMBERED_TASKS = 1000
MAX_PREPARED = 64  # images of one request, and waiting requests: a whole project may come at once
NEXT_TASKS = 3  # prepared while an annotator works on one


class Backend:
    """Answers from the workbench, with images of one Label Studio. For any thread."""

    def __init__(self, workbench: Workbench, client: LabelStudioClient, min_iou: float) -> None:
        self._workbench = workbench
        self._client = client
        self._min_iou = min_iou
        self._clicked = Lru[tuple[str, int], bool](max_count=MAX_REMEMBERED_TASKS)  # projects and tasks

    def versions(self) -> list[str]:
        return [status.name for status in self._workbench.segmenters() if status.ready]

    def set_up(self, asked: Json) -> str:
        """Remember the segmenter in extra_params, a JSON object or its text, and return the model version."""
        given = asked.get("extra_params")
        if isinstance(given, str):
            given = parse_object(given.encode(), "extra_params") if given.strip() else None
        segmenter = as_object(given, "extra_params", empty=True).get("segmenter")
        if segmenter is not None and not isinstance(segmenter, str):
            raise InvalidRequest('extra_params are {"segmenter": "NAME"}, with the name as text')
        self._workbench.set_project(TOOL, _project(asked), segmenter)
        return self.model_version(asked)

    def model_version(self, asked: Json, segmenter: str | None = None) -> str:
        """The served version; Label Studio asks again for predictions when it changes."""
        served = self._workbench.trained_annotator(TOOL, _project(asked))
        return model_version(segmenter or self.segmenter(asked), served and served[1])

    def start_training(self, asked: Json) -> str:
        """Start a training of the project, and return the job's id. Raises NotReady."""
        project = as_object(asked.get("project"), "the project of the event")
        return self._workbench.supervisor.request(TOOL, _project({"project": project.get("id")})).id

    def prelabel(self, asked: Json) -> list[dict[str, Any]]:
        """The `results` of tasks that nobody has clicked in; none if no model is served."""
        served = self._workbench.trained_annotator(TOOL, _project(asked))
        if served is None:
            return []
        version, config = self.model_version(asked), _label_config(asked)
        prelabeller = Prelabeller(self._workbench, self._client, served[0], version, config, self._min_iou)
        return prelabeller.answers([_task(task) for task in _tasks(asked)])

    def answer(self, asked: Json, context: object) -> dict[str, Any]:
        """One entry of `results`. Raises InvalidRequest, InvalidInput and what `propose` raises."""
        config = _label_config(asked)
        pointed = prompts.request(context, config)
        segmenter = self.segmenter(asked)
        if pointed.prompt is None:
            return {"result": [], "score": 0, "model_version": self.model_version(asked)}
        task, data = _task(_tasks(asked)[0])
        uris = config.image_uris(pointed.to_name, data)
        index = pointed.item_index or 0
        if index >= len(uris):
            raise InvalidRequest(f"item_index is {index}, but the task has {len(uris)} images")
        ref = self._client.image_ref(task, uris[index])
        size = self._workbench.identify(ref).size
        if size != pointed.size:
            raise InvalidRequest(
                f"the image has {size[1]}x{size[0]} pixels, but Label Studio shows one of "
                f"{pointed.size[1]}x{pointed.size[0]}: reload the task"
            )
        best = self._workbench.propose(ref, pointed.prompt, segmenter, tool=TOOL)[0]
        regions = answers.regions(best.id, best.prediction, pointed, self._min_iou)
        if regions.polygons:
            log.info(
                "%s: %d polygons, IoU with the mask %.3f, %d px in parts too small to send",
                TOOL,
                len(regions.polygons.rings),
                regions.polygons.iou,
                regions.polygons.lost_area,
            )
        score = best.prediction.score if regions.json else 0
        return {"result": regions.json, "score": score, "model_version": self.model_version(asked, segmenter)}

    def prepare(self, images: Sequence[tuple[int, str]], segmenter: str) -> None:
        """Start to encode the images, (task, address), before the first click on them."""
        for task, uri in images:
            try:
                if not self._workbench.prepare(self._client.image_ref(task, uri), segmenter):
                    return  # too many wait already
            except ClickmaskError as error:
                log.info("%s: task %d could not be prepared: %s", TOOL, task, error)

    def prepare_created(self, event: bytes) -> None:
        """Start to encode the first images of new tasks, which will be labelled soon."""
        try:
            created = parse_object(event, "the event")
            project = as_object(created.get("project"), "the project of the event")
            asked = {"project": project.get("id"), "label_config": project.get("label_config")}
            images = images_of({**asked, "tasks": created.get("tasks")})
            self.prepare(images, self.segmenter(asked))
        except ClickmaskError as error:
            log.info("%s: new tasks are not prepared: %s", TOOL, error)

    def is_first_click(self, asked: Json) -> bool:
        """Whether this is the first click in its task: the time to prepare the next tasks."""
        if self._client.url is None:
            return False
        task, _ = _task(_tasks(asked)[0])
        return self._clicked.put((_project(asked), task), True) is None

    def prepare_next(self, asked: Json) -> None:
        """Start to encode the tasks that Label Studio shows next: unlabelled ones, by number."""
        task, _ = _task(_tasks(asked)[0])
        try:
            project = project_number(_project(asked), "Label Studio")
            following, _ = self._client.annotated_tasks(project, task, NEXT_TASKS, without_annotations=True)
            if following:
                self.prepare(images_of({**asked, "tasks": following}), self.segmenter(asked))
        except ClickmaskError as error:
            log.info("%s: the tasks after %d are not prepared: %s", TOOL, task, error)

    def segmenter(self, asked: Json) -> str:
        chosen = self._workbench.project_segmenter(TOOL, _project(asked))
        return chosen or self._workbench.default_segmenter


def _project(asked: Json) -> str:
    """The project's number. Label Studio writes `1.1795370196`, which includes its creation time."""
    project = asked.get("project")
    if not isinstance(project, str | int) or isinstance(project, bool):
        raise InvalidRequest("the request does not name its project")
    return str(project).partition(".")[0][:100]


def _label_config(asked: Json) -> LabelConfig:
    return label_config.parse(as_text(asked.get("label_config"), "the label_config of the request"))


def images_of(asked: Json) -> list[tuple[int, str]]:
    """Task and address of the tasks' first images; tasks without an image are left out."""
    config = _label_config(asked)
    found: list[tuple[int, str]] = []
    for task, data in map(_task, _tasks(asked)[:MAX_PREPARED]):
        for to_name in config.images:
            try:
                found += [(task, uri) for uri in config.image_uris(to_name, data)]
            except InvalidRequest as error:
                log.info("%s: task %d: %s", TOOL, task, error)
    return found[:MAX_PREPARED]


def _tasks(asked: Json) -> list[object]:
    tasks = as_list(asked.get("tasks"), "the tasks of the request")
    if not tasks:
        raise InvalidRequest("the request has no tasks")
    return tasks


def _task(task: object) -> tuple[int, Json]:
    """A task's number and data."""
    described = as_object(task, "a task")
    return as_id(described.get("id"), "the id of a task"), as_object(
        described.get("data"), "the data of a task"
    )
