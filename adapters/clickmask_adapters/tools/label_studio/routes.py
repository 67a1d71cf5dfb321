"""The routes of a Label Studio machine learning backend, as Label Studio 1.23.2 calls them.

/health, /setup, /versions and /webhook have limits of one to three seconds: none of them waits
for a segmenter or for the pool that segmenters keep busy.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Annotated, Any, TypeVar, cast

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response

from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.answering import json_answer
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.label_studio import label_config, translate
from clickmask_adapters.tools.label_studio.accepted import TOOL
from clickmask_adapters.tools.label_studio.client import LabelStudioClient, client_of
from clickmask_adapters.tools.label_studio.label_config import LabelConfig
from clickmask_adapters.tools.label_studio.preannotation import Preannotation, model_version

log = logging.getLogger(__name__)

MOST_REMEMBERED = 1000  # tasks that were clicked in
MOST_PREPARED = 64  # images of one request, and requests that wait: a whole project may be sent at once
EVENT_HEAD = 200  # bytes of an event in which its action stands
NEXT_TASKS = 3  # that are prepared while an annotator works on one
LARGEST_PREPARED = 4 * 2**20  # bytes of an event that is read again for its images

Json = Mapping[str, Any]
T = TypeVar("T")


async def _body(request: Request) -> bytes:
    return await request.body()  # its size was limited at the gate


Body = Annotated[bytes, Depends(_body)]


def router(workbench: Workbench, settings: Settings) -> APIRouter:
    backend = Backend(
        workbench,
        client_of(settings),
        settings.min_iou,
    )
    short = ThreadPoolExecutor(2, thread_name_prefix="label-studio")  # one transaction each, never more
    waiting = BoundedSemaphore(MOST_PREPARED)
    preparing = ThreadPoolExecutor(1, thread_name_prefix="label-studio-prepare")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        preparing.shutdown(cancel_futures=True)
        short.shutdown()

    async def shortly(call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(short, call, *arguments)

    def prepare_soon(call: Callable[..., None], *arguments: object) -> None:
        if waiting.acquire(blocking=False):  # else too many wait; a click will fetch its image itself
            job = preparing.submit(call, *arguments)
            job.add_done_callback(lambda _: waiting.release())

    routes = APIRouter(include_in_schema=False, lifespan=lifespan)

    @routes.get("/health")
    async def health() -> Response:
        return json_answer({"status": "UP", "model_class": "clickmask"})

    @routes.post("/setup")
    async def setup(body: Body) -> Response:
        return json_answer({"model_version": await shortly(backend.set_up, _parsed(body))})

    @routes.get("/versions")
    async def versions() -> Response:
        return json_answer({"versions": await shortly(backend.versions)})

    @routes.post("/predict")
    def predict(body: Body) -> Response:
        asked = _parsed(body)
        context = _object(asked.get("params"), "params", empty=True).get("context")
        if context is None:
            prepare_soon(backend.prepare, images_of(asked), backend.segmenter(asked))
            # An empty list stores nothing; anything else would be stored as a prediction.
            return json_answer({"results": backend.preannotate(asked)})
        answer = backend.answer(asked, context)
        if backend.goes_on(asked):
            prepare_soon(backend.prepare_next, asked)
        return json_answer({"results": [answer]})

    @routes.post("/webhook")
    async def webhook(body: Body) -> Response:
        if not body.lstrip().startswith(b"{"):
            raise InvalidRequest("an event is a JSON object")
        await asyncio.wrap_future(workbench.inbox.keep_soon(TOOL, body))
        if b'"TASKS_CREATED"' in body[:EVENT_HEAD] and len(body) <= LARGEST_PREPARED:
            prepare_soon(backend.prepare_created, body)
        if b'"START_TRAINING"' in body[:EVENT_HEAD]:
            job = await shortly(backend.start_training, _parsed(body))
            return json_answer({"status": "kept", "job": job}, HTTPStatus.ACCEPTED)
        return json_answer({"status": "kept"})

    return routes


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
        project = _object(asked.get("project"), "the project of the event")
        return self._workbench.trainings.request(TOOL, _project({"project": project.get("id")})).id

    def preannotate(self, asked: Json) -> list[dict[str, Any]]:
        """The `results` of tasks that nobody has clicked in; none while no model is served."""
        served = self._served(asked)
        if served is None:
            return []
        annotator = Preannotation(
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
        pointed = translate.request(context, config)
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
        regions = translate.regions(best.id, best.prediction, pointed, self._min_iou)
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
            created = _parsed(event, "the event")
            project = _object(created.get("project"), "the project of the event")
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
            if len(self._clicked) > MOST_REMEMBERED:
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
    for task, data in map(_task, _tasks(asked)[:MOST_PREPARED]):
        for to_name in config.images:
            try:
                found += [(task, uri) for uri in config.image_uris(to_name, data)]
            except InvalidRequest as error:
                log.info("%s: task %d: %s", TOOL, task, error)
    return found[:MOST_PREPARED]


def _tasks(asked: Json) -> list[object]:
    tasks = asked.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise InvalidRequest("the request has no tasks")
    return cast("list[object]", tasks)


def _task(task: object) -> tuple[int, Json]:
    """Its number and its data."""
    described = _object(task, "a task")
    number = described.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidRequest("a task has no id")
    return number, _object(described.get("data"), "the data of a task")


def _extra_params(given: object) -> Json:
    """A JSON object, or one written as text, as Label Studio's form takes it."""
    if not isinstance(given, str):
        return _object(given, "extra_params", empty=True)
    return _parsed(given.encode(), "extra_params") if given.strip() else {}


def _object(value: object, name: str, empty: bool = False) -> Json:
    if value is None and empty:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object")
    return cast("Json", value)


def _parsed(body: bytes, name: str = "the request") -> Json:
    try:
        return _object(orjson.loads(body), name)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{name} is not JSON") from error
