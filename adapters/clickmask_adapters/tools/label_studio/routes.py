"""A machine learning backend as Label Studio 1.23.2 calls it: its routes, and the work behind them.

/health, /setup, /versions and /webhook must answer in one to three seconds, so no segmenter delays them.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from clickmask.caches import Lru
from clickmask.errors import (
    ClickmaskError,
    InvalidRequest,
    NotFound,
    NotReady,
    StoreUnavailable,
    ToolUnavailable,
)
from clickmask.masks.controls import controls_of
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response
from clickmask_adapters.server.openapi import IMAGE_ERRORS, body_of, raises
from clickmask_adapters.tools._json import (
    FEW_CONTAINERS,
    Json,
    as_id,
    as_list,
    as_object,
    parse_object,
    project_number,
)
from clickmask_adapters.tools.label_studio import TOOL, bodies, clicks, label_config
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.prelabel import Prelabeller

log = logging.getLogger(__name__)
MAX_REMEMBERED_TASKS = 1000
MAX_PREPARED = 64  # images of one request, and waiting requests: a whole project may come at once
MAX_PREPARED_BYTES = 4 * 2**20  # of an event that is read again for its images
NEXT_TASKS = 3  # prepared while an annotator works on one
EVENT_HEAD_BYTES = 200  # of an event, where its action is


class Backend:
    """Answers from the workbench, with images of one Label Studio. For any thread."""

    def __init__(self, workbench: Workbench, client: LabelStudioClient, min_iou: float) -> None:
        self.workbench, self._client, self._min_iou = workbench, client, min_iou
        self._clicked = Lru[tuple[str, int], bool](max_count=MAX_REMEMBERED_TASKS)  # projects and tasks

    def versions(self) -> list[str]:
        return [status.name for status in self.workbench.segmenters() if status.ready]

    def set_up(self, asked: Json) -> str:
        """Remember the segmenter and the controls in extra_params, a JSON object or its text, and return the
        model version."""
        given = asked.get("extra_params")
        if isinstance(given, str):
            given = parse_object(given.encode(), "extra_params") if given.strip() else None
        parameters = as_object(given, "extra_params", empty=True)
        segmenter = parameters.get("segmenter")
        if segmenter is not None and not isinstance(segmenter, str):
            raise InvalidRequest('extra_params are {"segmenter": "NAME"}, with the name as text')
        controls = as_object(parameters.get("controls"), "the controls in extra_params", empty=True)
        self.workbench.set_project(TOOL, _project(asked), segmenter, controls_of(controls))
        return self.model_version(asked)

    def segmenter(self, asked: Json) -> str:
        return self.workbench.project_segmenter(TOOL, _project(asked)) or self.workbench.default_segmenter

    def model_version(self, asked: Json, segmenter: str | None = None) -> str:
        """The served version; Label Studio asks again for predictions when it changes."""
        served = self.workbench.trained_annotator(TOOL, _project(asked))
        name = segmenter or self.segmenter(asked)
        return f"{name}, {served[1]}" if served else name

    def start_training(self, asked: Json) -> str:
        """Start a training of the project, and return the job's id. Raises NotReady."""
        project = as_object(asked.get("project"), "the project of the event")
        return self.workbench.supervisor.request(TOOL, _project({"project": project.get("id")})).id

    def prelabel(self, asked: Json) -> list[dict[str, Any]]:
        """The `results` of tasks that nobody has clicked in; none if no model is served."""
        served = self.workbench.trained_annotator(TOOL, _project(asked))
        if served is None:
            return []
        version, config = self.model_version(asked), label_config.parse(asked.get("label_config"))
        prelabeller = Prelabeller(self.workbench, self._client, served[0], version, config, self._min_iou)
        return prelabeller.answers(list(_tasks(asked)))

    def answer(self, asked: Json, context: object) -> dict[str, Any]:
        """One entry of `results`. Raises InvalidRequest, InvalidInput and what `propose` raises."""
        task, data = next(_tasks(asked))
        config = label_config.parse(asked.get("label_config")).of_task(data)
        pointed = clicks.request(context, config)
        segmenter, controls = self.segmenter(asked), self.workbench.project_settings(TOOL, _project(asked))[1]
        if pointed.prompt is None:
            return {"result": [], "score": 0, "model_version": self.model_version(asked)}
        uris = config.image_uris(pointed.to_name, data)
        index = pointed.item_index or 0
        if index >= len(uris):
            raise InvalidRequest(f"item_index is {index}, but the task has {len(uris)} images")
        ref = self._client.image_ref(task, uris[index])
        size = self.workbench.identify(ref).size
        if size != pointed.size:
            raise InvalidRequest(
                f"the image has {size[1]}x{size[0]} pixels, but Label Studio shows one of "
                f"{pointed.size[1]}x{pointed.size[0]}: reload the task"
            )
        best = self.workbench.propose(ref, pointed.prompt, segmenter, TOOL, controls)[0]
        regions, rings = clicks.regions(best.id, best.prediction, pointed, self._min_iou)
        if rings:
            told = len(rings.rings), rings.iou, rings.lost_area
            log.info("%s: %d polygons, IoU with the mask %.3f, %d px in parts too small to send", TOOL, *told)
        score = best.prediction.score if regions else 0
        return {"result": regions, "score": score, "model_version": self.model_version(asked, segmenter)}

    def prepare(self, images: Sequence[tuple[int, str]], segmenter: str) -> None:
        """Start to encode the images, (task, address), before the first click on them."""
        for task, uri in images:
            try:
                if not self.workbench.prepare(self._client.image_ref(task, uri), segmenter):
                    return  # too many wait already
            except ClickmaskError as error:
                log.info("%s: task %d could not be prepared: %s", TOOL, task, error)

    def prepare_created(self, event: bytes) -> None:
        """Start to encode the images of new tasks, which will be labelled soon."""
        try:
            created = parse_object(event, "the event")
            project = as_object(created.get("project"), "the project of the event")
            asked = {**project, "project": project.get("id"), "tasks": created.get("tasks")}
            self.prepare(images_of(asked), self.segmenter(asked))
        except ClickmaskError as error:
            log.info("%s: new tasks are not prepared: %s", TOOL, error)

    def is_first_click(self, asked: Json) -> bool:
        """Whether this is the first click in its task: the time to prepare the next tasks."""
        if self._client.url is None:
            return False
        task, _ = next(_tasks(asked))
        return self._clicked.put((_project(asked), task), True) is None

    def prepare_next(self, asked: Json) -> None:
        """Start to encode the tasks that Label Studio shows next: unlabelled ones, by number."""
        task, _ = next(_tasks(asked))
        try:
            project = project_number(_project(asked), "Label Studio")
            following, _ = self._client.annotated_tasks(project, task, NEXT_TASKS, without_annotations=True)
            if following:
                self.prepare(images_of({**asked, "tasks": following}), self.segmenter(asked))
        except ClickmaskError as error:
            log.info("%s: the tasks after %d are not prepared: %s", TOOL, task, error)


def images_of(asked: Json) -> list[tuple[int, str]]:
    """Task and address of the tasks' images, at most MAX_PREPARED; tasks without an image are left out."""
    config = label_config.parse(asked.get("label_config"))
    found: list[tuple[int, str]] = []
    for task, data in itertools.islice(_tasks(asked), MAX_PREPARED):
        shown = ((task, uri) for _, uris in config.shown(task, data) for uri in uris)
        found += itertools.islice(shown, MAX_PREPARED - len(found))
    return found


def _project(asked: Json) -> str:
    """The project's number. Label Studio writes `1.1795370196`, which includes its creation time."""
    project = asked.get("project")
    if not isinstance(project, str | int) or isinstance(project, bool):
        raise InvalidRequest("the request does not name its project")
    return str(project).partition(".")[0][:100]


def _tasks(asked: Json) -> Iterator[tuple[int, Json]]:
    """Number and data of each task, at least one."""
    tasks = as_list(asked.get("tasks"), "the tasks of the request")
    if not tasks:
        raise InvalidRequest("the request has no tasks")
    for each in tasks:
        task = as_object(each, "a task")
        yield as_id(task.get("id"), "the id of a task"), as_object(task.get("data"), "the data of a task")


async def _body(request: Request) -> bytes:
    return await request.body()  # its size was limited at the gate


Body = Annotated[bytes, Depends(_body)]


def router(workbench: Workbench, client: LabelStudioClient, min_iou: float) -> APIRouter:
    backend = Backend(workbench, client, min_iou)
    short = ThreadPoolExecutor(2, thread_name_prefix="label-studio")  # one transaction each, never more
    waiting = BoundedSemaphore(MAX_PREPARED)
    preparing = ThreadPoolExecutor(1, thread_name_prefix="label-studio-prepare")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        preparing.shutdown(cancel_futures=True)
        short.shutdown()

    async def shortly(call: Callable[..., object], *arguments: object) -> object:
        return await asyncio.get_running_loop().run_in_executor(short, call, *arguments)

    def prepare_soon(call: Callable[..., None], *arguments: object) -> None:
        if waiting.acquire(blocking=False):  # if too many wait, the click itself fetches its image
            preparing.submit(call, *arguments).add_done_callback(lambda _: waiting.release())

    routes = APIRouter(lifespan=lifespan)

    is_up, for_anybody = "Whether the server is up", {"security": list[Any]()}

    @routes.get(
        "/health",
        response_model=bodies.HealthOut,
        summary=is_up,
        responses=raises(),
        openapi_extra=for_anybody,
    )
    @routes.head(
        "/health",
        summary=is_up,
        responses=raises(),
        openapi_extra=for_anybody,
        operation_id="health_head",
    )
    async def health() -> Response:
        """Says that the server is up. It needs no secret, so that load balancers may ask."""
        return json_response({"status": "UP", "model_class": "clickmask"})

    @routes.post(
        "/setup",
        response_model=bodies.SetupOut,
        summary="Label Studio introduces a project",
        responses=raises(InvalidRequest, NotFound, StoreUnavailable),
        openapi_extra=body_of(bodies.SetupIn, bodies.SETUP),
    )
    async def setup(body: Body) -> Response:
        """Label Studio calls this before it asks for predictions. The backend's extra parameters may name the
        segmenter that answers the project's clicks."""
        version = await shortly(backend.set_up, parse_object(body, "the request", FEW_CONTAINERS))
        return json_response({"model_version": version})

    @routes.get(
        "/versions", response_model=bodies.VersionsOut, summary="What can answer clicks", responses=raises()
    )
    async def versions() -> Response:
        """The segmenters that are ready, by the names that `extra_params` of /setup takes."""
        return json_response({"versions": await shortly(backend.versions)})

    @routes.post(
        "/predict",
        response_model=bodies.PredictOut,
        summary="A smart click becomes regions, or tasks get predictions",
        responses=raises(*IMAGE_ERRORS, NotFound, NotReady, StoreUnavailable, ToolUnavailable),
        openapi_extra=body_of(bodies.PredictIn, bodies.CLICKED, bodies.OPENED),
    )
    def predict(body: Body) -> Response:
        """If there is a context, its points and rectangles become regions that the label config can hold. If
        there is none, the project's model draws in all tasks. A project without a model gets an empty answer,
        and the tasks' images are encoded ahead of the clicks."""
        asked = parse_object(body, "the request")
        context = as_object(asked.get("params"), "params", empty=True).get("context")
        if context is None:
            prepare_soon(backend.prepare, images_of(asked), backend.segmenter(asked))
            # An empty list stores nothing; anything else would be stored as a prediction.
            return json_response({"results": backend.prelabel(asked)})
        answer = backend.answer(asked, context)
        if backend.is_first_click(asked):
            prepare_soon(backend.prepare_next, asked)
        return json_response({"results": [answer]})

    @routes.post(
        "/webhook",
        response_model=bodies.KeptOut,
        summary="An event of Label Studio",
        responses=raises(InvalidRequest, StoreUnavailable, NotReady)
        | {202: {"model": bodies.TrainingOut, "description": "A training was asked for"}},
        openapi_extra=body_of(bodies.EventIn, bodies.EVENT),
    )
    async def webhook(body: Body) -> Response:
        """The event is on the disk when it is answered. Its labels are read a moment later; /v1/status says
        whether that succeeded. START_TRAINING also starts a training."""
        if not body.lstrip().startswith(b"{"):
            raise InvalidRequest("an event is a JSON object")
        await asyncio.wrap_future(workbench.keep_event(TOOL, body))
        if b'"TASKS_CREATED"' in body[:EVENT_HEAD_BYTES] and len(body) <= MAX_PREPARED_BYTES:
            prepare_soon(backend.prepare_created, body)
        if b'"START_TRAINING"' in body[:EVENT_HEAD_BYTES]:
            job = await shortly(backend.start_training, parse_object(body, "the request"))
            return json_response({"status": "kept", "job": job}, HTTPStatus.ACCEPTED)
        return json_response({"status": "kept"})

    return routes
