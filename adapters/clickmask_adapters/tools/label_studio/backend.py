"""Work behind the routes of a Label Studio machine learning backend, on the core."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.tools.label_studio import answers, label_config, prompts
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.label_config import LabelConfig
from clickmask_adapters.tools.label_studio.labels import TOOL
from clickmask_adapters.tools.label_studio.prelabel import Prelabeller, model_version

log = logging.getLogger(__name__)

Json = Mapping[str, Any]

MAX_REMEMBERED_TASKS = 1000  # tasks that were clicked in
MAX_PREPARED = 64  # images of one request, and requests that wait: a whole project may be sent at once
NEXT_TASKS = 3  # that are prepared while an annotator works on one


class Backend:
    """What the routes do, on the core and with images of one Label Studio. For any thread."""

    def __init__(self, workbench: Workbench, client: LabelStudioClient, min_iou: float) -> None:
        self._workbench = workbench
        self._client = client
        self._min_iou = min_iou
        self._lock = threading.Lock()
        self._clicked: OrderedDict[tuple[str, int], None] = OrderedDict()  # projects and tasks, newest last

    def versions(self) -> list[str]:
        return [status.name for status in self._workbench.segmenters() if status.ready]

    def set_up(self, asked: Json) -> str:
        """Remember the segmenter that the project's extra_params name; gives the model version."""
        segmenter = _extra_params(asked.get("extra_params")).get("segmenter")
        if segmenter is not None and not isinstance(segmenter, str):
            raise InvalidRequest('extra_params are {"segmenter": "NAME"}, with the name as text')
        self._workbench.set_project(TOOL, _project(asked), segmenter)
        return self.model_version(asked)

    def model_version(self, asked: Json, segmenter: str | None = None) -> str:
        """Changes with what is served: Label Studio asks anew for predictions of another version."""
        served = self._served(asked)
        return model_version(segmenter or self.segmenter(asked), served and served[1])

    def start_training(self, asked: Json) -> str:
        """The job that trains the project. Raises TrainingNotReady."""
        project = json_object(asked.get("project"), "the project of the event")
        return self._workbench.supervisor.request(TOOL, _project({"project": project.get("id")})).id

    def prelabel(self, asked: Json) -> list[dict[str, Any]]:
        """The `results` of tasks that nobody has clicked in; none while no model is served."""
        served = self._served(asked)
        if served is None:
            return []
        annotator = Prelabeller(
            self._workbench,
            self._client,
            served[0],
            self.model_version(asked),
            _label_config(asked),
            self._min_iou,
        )
        return annotator.answers([_task(task) for task in _tasks(asked)])

    def _served(self, asked: Json) -> tuple[str, str] | None:
        """The annotator of the project's trained model, and its version."""
        return self._workbench.trained_annotator(TOOL, _project(asked))

    def answer(self, asked: Json, context: object) -> dict[str, Any]:
        """One entry of `results`. Raises InvalidRequest, InvalidPrompt and what `propose` raises."""
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
        """Start on the images, (task, address), before the first click on them."""
        for task, uri in images:
            try:
                if not self._workbench.prepare(self._client.image_ref(task, uri), segmenter):
                    return  # too many wait already
            except ClickmaskError as error:
                log.info("%s: task %d could not be prepared: %s", TOOL, task, error)

    def prepare_created(self, event: bytes) -> None:
        """Start on the first images of new tasks: whoever imports them will label them."""
        try:
            created = parse_body(event, "the event")
            project = json_object(created.get("project"), "the project of the event")
            asked = {"project": project.get("id"), "label_config": project.get("label_config")}
            images = images_of({**asked, "tasks": created.get("tasks")})
            self.prepare(images, self.segmenter(asked))
        except ClickmaskError as error:
            log.info("%s: new tasks are not prepared: %s", TOOL, error)

    def goes_on(self, asked: Json) -> bool:
        """Whether somebody has begun with another task, so that the next ones may be asked for: once each."""
        if self._client.url is None:
            return False
        place = _project(asked), _task(_tasks(asked)[0])[0]
        with self._lock:
            known = place in self._clicked
            self._clicked[place] = None
            if len(self._clicked) > MAX_REMEMBERED_TASKS:
                self._clicked.popitem(last=False)
        return not known

    def prepare_next(self, asked: Json) -> None:
        """Start on the tasks that Label Studio shows after this one: by number, those nobody has labelled."""
        task, _ = _task(_tasks(asked)[0])
        try:
            project = _number(_project(asked))
            following, _ = self._client.annotated_tasks(project, task, NEXT_TASKS, without_annotations=True)
            if following:
                self.prepare(images_of({**asked, "tasks": following}), self.segmenter(asked))
        except ClickmaskError as error:
            log.info("%s: the tasks after %d are not prepared: %s", TOOL, task, error)

    def segmenter(self, asked: Json) -> str:
        chosen = self._workbench.project_segmenter(TOOL, _project(asked))
        return chosen or self._workbench.default_segmenter


def _project(asked: Json) -> str:
    """Label Studio writes `1.1795370196`: the project's number and when it was made."""
    project = asked.get("project")
    if not isinstance(project, str | int) or isinstance(project, bool):
        raise InvalidRequest("the request does not name its project")
    return str(project).partition(".")[0][:100]


def _number(project: str) -> int:
    if not project.isdecimal():
        raise InvalidRequest("the project has no number")
    return int(project)


def _label_config(asked: Json) -> LabelConfig:
    xml = asked.get("label_config")
    if not isinstance(xml, str):
        raise InvalidRequest("the request has no label_config")
    return label_config.parse(xml)


def images_of(asked: Json) -> list[tuple[int, str]]:
    """Task and address of the first images that the tasks show; a task without image is left out."""
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
    tasks = asked.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise InvalidRequest("the request has no tasks")
    return cast("list[object]", tasks)


def _task(task: object) -> tuple[int, Json]:
    """Its number and its data."""
    described = json_object(task, "a task")
    number = described.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidRequest("a task has no id")
    return number, json_object(described.get("data"), "the data of a task")


def _extra_params(given: object) -> Json:
    """A JSON object, or one written as text, as Label Studio's form takes it."""
    if not isinstance(given, str):
        return json_object(given, "extra_params", empty=True)
    return parse_body(given.encode(), "extra_params") if given.strip() else {}


def json_object(value: object, name: str, empty: bool = False) -> Json:
    if value is None and empty:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object")
    return cast("Json", value)


def parse_body(body: bytes, name: str = "the request") -> Json:
    try:
        return json_object(orjson.loads(body), name)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{name} is not JSON") from error
