"""The routes of a Label Studio machine learning backend, as Label Studio 1.23.2 calls them.

/health, /setup, /versions and /webhook must answer in one to three seconds, so no segmenter delays them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from clickmask.errors import InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.api._json import json_response
from clickmask_adapters.tools._json import as_object, parse_object
from clickmask_adapters.tools.label_studio.backend import MAX_PREPARED, Backend, images_of
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.labels import TOOL

EVENT_HEAD_BYTES = 200  # of an event, where its action is
MAX_PREPARED_BYTES = 4 * 2**20  # of an event that is read again for its images
T = TypeVar("T")


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

    async def shortly(call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(short, call, *arguments)

    def prepare_soon(call: Callable[..., None], *arguments: object) -> None:
        if waiting.acquire(blocking=False):  # if too many wait, the click itself fetches its image
            job = preparing.submit(call, *arguments)
            job.add_done_callback(lambda _: waiting.release())

    routes = APIRouter(include_in_schema=False, lifespan=lifespan)

    @routes.get("/health")
    async def health() -> Response:
        return json_response({"status": "UP", "model_class": "clickmask"})

    @routes.post("/setup")
    async def setup(body: Body) -> Response:
        return json_response(
            {"model_version": await shortly(backend.set_up, parse_object(body, "the request"))}
        )

    @routes.get("/versions")
    async def versions() -> Response:
        return json_response({"versions": await shortly(backend.versions)})

    @routes.post("/predict")
    def predict(body: Body) -> Response:
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

    @routes.post("/webhook")
    async def webhook(body: Body) -> Response:
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
