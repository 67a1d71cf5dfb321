"""The routes that CVAT 2.73.0 calls: nuclio's dashboard, which takes no code here, and a webhook.

CVAT asks for a function's description before each call, so that never waits for a segmenter or its threads.
If an answer is an error, users see only the reason phrase.
"""

import asyncio
import base64
import hashlib
import hmac
import inspect
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Annotated, TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Header, HTTPException, Path, Request, Response, Security
from fastapi.security import APIKeyHeader
from starlette.concurrency import run_in_threadpool

from clickmask.caches import waiting_elsewhere
from clickmask.errors import (
    Busy,
    ClickmaskError,
    Failed,
    Gone,
    InvalidRequest,
    NotReady,
    StoreUnavailable,
    is_out_of_memory,
)
from clickmask.types import ImageRef, Prediction, SamFeatures
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response
from clickmask_adapters.server.openapi import IMAGE_ERRORS, body_of, raises
from clickmask_adapters.tools._json import FEW_CONTAINERS, as_coordinate, as_text, parse_object
from clickmask_adapters.tools.cvat import WEBHOOK, CvatSettings, answers, bodies, prompts
from clickmask_adapters.tools.cvat.functions import Function, functions
from clickmask_adapters.tools.cvat.labels import TOOL
from clickmask_adapters.tools.cvat.results import ResultCache, wait

log = logging.getLogger(__name__)
T = TypeVar("T")
FUNCTIONS_TTL_S = 5.0  # the list of functions is kept so long; making it takes 0.03 s
MAX_CLICK_S = 50.0  # the nginx in front of CVAT gives up on a call after 60
DEFAULT_TIMEOUT_S = 120.0  # CVAT's own default, if its request does not say
RESERVE_S = 5.0  # an answer should leave so long before CVAT's timeout
MAX_DETECTOR_CALLS = 16  # at a time; few of them compute, and each other one has a thread
FEATURES = (256, 64, 64)  # shape of the embeddings that SAM's decoder reads
SECRET_VARIABLE = "CVAT_WEBHOOK_SECRET"  # noqa: S105  # its name, not its value
SIGNATURE = APIKeyHeader(
    name="X-Signature-256",
    scheme_name="signature",
    description=f"`sha256=` and the HMAC-SHA256 of the body, in hexadecimal, with {SECRET_VARIABLE} as key",
    auto_error=False,
)
NO_FUNCTION = "clickmask offers no function of this name."
# CVAT ends a batch at a 503, and shows no sentence of a 500.
INVOCATION_ERRORS = raises(*IMAGE_ERRORS, StoreUnavailable) | {
    HTTPStatus.NOT_FOUND: {"description": NO_FUNCTION},
    HTTPStatus.CONFLICT: {"description": inspect.getdoc(NotReady)},
    HTTPStatus.TOO_MANY_REQUESTS: {"description": inspect.getdoc(Busy)},
}


def router(workbench: Workbench, settings: CvatSettings, min_iou: float) -> APIRouter:
    """The routes of nuclio's dashboard, and the one for events signed with CVAT_WEBHOOK_SECRET."""
    offered = Offered(workbench, settings.cvat_controls)
    invoker = Invoker(workbench, min_iou, every_candidate=settings.cvat_candidates)
    results = ResultCache()
    detectors = asyncio.BoundedSemaphore(MAX_DETECTOR_CALLS)
    secret = settings.cvat_webhook_secret
    listing = ThreadPoolExecutor(1, thread_name_prefix="cvat-functions")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        listing.shutdown()

    routes = APIRouter(lifespan=lifespan)

    async def current() -> Mapping[str, Function]:
        return await asyncio.get_running_loop().run_in_executor(listing, offered.now)

    async def required(name: str) -> Function:
        function = offered.last.get(name) or (await current()).get(name)
        if function is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"clickmask offers no function {name[:80]!r}")
        return function

    async def invoke(request: Request, name: str) -> Response:
        function = await required(name)
        body = await request.body()  # its size was limited at the gate
        # The time counts from here: CVAT also waits while this waits for a pool thread.
        until = time.monotonic() + patience(function, request.headers.get("x-nuclio-invoke-timeout", ""))
        user_agent = request.headers.get("user-agent", "")

        async def begin() -> Response:
            return await run_in_threadpool(invoker.answer, function, body, user_agent)

        key = b""
        if function.kind == "detector":  # hashing takes 0.7 ms per megabyte
            key = await asyncio.to_thread(lambda: hashlib.sha256(name.encode() + b"\n" + body).digest())
        if function.kind == "detector" and detectors.locked():
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS, "many images are being annotated already", {"Retry-After": "5"}
            )
        while True:
            try:
                if function.kind == "detector":
                    async with detectors:
                        with waiting_elsewhere():
                            return await results.wait(until, key, begin)
                return await wait(until, asyncio.ensure_future(begin()))
            except Busy as error:
                # CVAT ends a batch at the first failed frame, so a detector waits its turn.
                if function.kind != "detector" or time.monotonic() + error.retry_after >= until:
                    retry = {"Retry-After": f"{error.retry_after:.0f}"}
                    raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, str(error), retry) from error
                with waiting_elsewhere():
                    await asyncio.sleep(error.retry_after)
            except NotReady as error:
                raise HTTPException(HTTPStatus.CONFLICT, str(error)) from error
            except Failed as error:  # CVAT would show its users a bare 500
                raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
            except ClickmaskError:
                raise
            except Exception as error:  # a plugin is foreign code
                if is_out_of_memory(error):
                    raise
                log.exception("cvat: %s failed", function.runs)
                sentence = f"{function.runs} failed on this image; clickmask's log has the details"
                raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, sentence) from error

    @routes.get(
        "/api/functions",
        response_model=dict[str, bodies.FunctionOut],
        summary="The AI tools of CVAT's page",
        responses=raises(),
    )
    async def list_functions(request: Request) -> Response:
        """Every segmenter and annotator that is ready, by id, as nuclio's dashboard lists its functions."""
        port = _port(request)
        return json_response({name: each.described(port) for name, each in (await current()).items()})

    @routes.get(
        "/api/functions/{name}",
        response_model=bodies.FunctionOut,
        summary="One of the AI tools",
        responses=raises() | {HTTPStatus.NOT_FOUND: {"description": NO_FUNCTION}},
    )
    async def describe_function(
        name: Annotated[str, Path(description="Its id", examples=["clickmask-builtin"])], request: Request
    ) -> Response:
        """CVAT asks for this before each call, so it never waits for a segmenter."""
        return json_response((await required(name)).described(_port(request)))

    @routes.post(
        "/api/function_invocations",
        response_model=bodies.InvocationOut,
        summary="Call one of the AI tools",
        responses=INVOCATION_ERRORS,
        openapi_extra=body_of(bodies.InvocationIn, bodies.CLICKED, bodies.BOXED),
    )
    async def invoke_function(
        request: Request,
        name: Annotated[
            str,
            Header(
                alias="X-Nuclio-Function-Name",
                description="The id of one of /api/functions",
                examples=["clickmask-builtin"],
            ),
        ],
    ) -> Response:
        """An interactor turns points and boxes into masks, a detector finds everything that it knows. The
        body carries the whole image each time; the same image is encoded once. A detector that is asked again
        for an image it still works on gives the same answer later."""
        return await invoke(request, name)

    if direct := settings.cvat_direct_function:
        if direct not in offered.last:
            known = ", ".join(offered.last)
            log.warning("cvat: CLICKMASK_CVAT_DIRECT_FUNCTION names no function; there is: %s", known)

        @routes.post(
            "/",
            response_model=bodies.InvocationOut,
            summary=f"Call {direct}",
            responses=INVOCATION_ERRORS,
            openapi_extra=body_of(bodies.InvocationIn, bodies.CLICKED, bodies.BOXED),
        )
        async def invoke_directly(request: Request) -> Response:
            """The function of CLICKMASK_CVAT_DIRECT_FUNCTION, as nuclio's method `direct` calls it."""
            return await invoke(request, direct)

    @routes.post(
        WEBHOOK,
        status_code=HTTPStatus.ACCEPTED,
        response_model=bodies.KeptOut,
        summary="An event of CVAT",
        responses=raises(InvalidRequest, StoreUnavailable)
        | {
            HTTPStatus.OK: {"model": bodies.HeardOut, "description": "A ping was heard"},
            HTTPStatus.UNAUTHORIZED: {"description": "The signature is missing or wrong."},
            HTTPStatus.FORBIDDEN: {"description": f"{SECRET_VARIABLE} is not set."},
        },
        openapi_extra=body_of(bodies.EventIn, bodies.EVENT, {"event": "ping"}),
    )
    async def webhook(request: Request, given: Annotated[str | None, Security(SIGNATURE)]) -> Response:
        """The event is on the disk when it is answered. Its labels are read a moment later; /v1/status says
        whether that succeeded."""
        body = await request.body()
        plain = secret.get_secret_value().encode() if secret else None
        require_signature(plain, body, given or "")
        event = parse_object(body, "the event", FEW_CONTAINERS)
        if as_text(event.get("event"), "the name of the event") == "ping":
            return json_response({"status": "clickmask hears CVAT"})
        await asyncio.wrap_future(workbench.keep_event(TOOL, body))  # on the disk before the answer
        return json_response({"status": "kept"}, HTTPStatus.ACCEPTED)

    return routes


class Offered:
    """The functions that can be called, by name. Loads no model, and logs what is ready but left out."""

    def __init__(self, workbench: Workbench, variants: Sequence[str]) -> None:
        self._workbench, self._variants = workbench, variants
        for reason in self._look():
            log.warning("cvat: not offered: %s", reason)

    def now(self) -> Mapping[str, Function]:
        """The functions that are ready, at most FUNCTIONS_TTL_S old; `last` is the previous answer."""
        if time.monotonic() >= self._until:
            self._look()
        return self.last

    def _look(self) -> list[str]:
        bench = self._workbench
        self.last, left_out = functions(
            bench.segmenters(), bench.annotators(), bench.default_segmenter, self._variants
        )
        self._until = time.monotonic() + FUNCTIONS_TTL_S
        return left_out


class Invoker:
    """Calls of functions, answered by the workbench. For any thread."""

    def __init__(self, workbench: Workbench, min_iou: float, *, every_candidate: bool) -> None:
        self._workbench = workbench
        self._min_iou = min_iou
        self._every_candidate = every_candidate

    def answer(self, function: Function, body: bytes, user_agent: str) -> Response:
        """The answer as JSON. Raises InvalidRequest and what `propose` or `annotate` raises."""
        asked, text = prompts.split_image(body)
        threshold = asked.get("threshold")  # the lowest score that is wanted; left out if all are
        least_score = 0.0 if threshold is None else as_coordinate(threshold, "threshold", math.inf)
        answer: Callable[[ImageRef], bytes | memoryview]
        if function.kind == "embedding":
            answer = partial(self._embedding, function.runs)
        elif function.kind == "detector":
            answer = partial(self._detections, function.runs, least_score)
        else:
            shapes = prompts.understands_shapes(user_agent)
            answer = partial(self._masks, function, least_score, prompts.pointed(asked), shapes)
        return Response(self._show(text, answer), media_type="application/json")

    def _show(self, text: memoryview, ask: Callable[[ImageRef], T]) -> T:
        """The result of `ask` for the base64 image, which is decoded only if its pixels are not in memory."""
        identity = self._workbench.identify_base64(text)
        try:
            return ask(ImageRef(f"digest:{identity.digest}"))
        except Gone:  # other images evicted its pixels
            return ask(ImageRef("data:;base64," + str(text, "ascii")))

    def _masks(
        self, function: Function, least_score: float, pointed: prompts.Pointed, shapes: bool, ref: ImageRef
    ) -> bytes | memoryview:
        size = self._workbench.identify(ref).size
        found: list[Prediction] = []
        for prompt in pointed.prompts(size):
            proposals = self._workbench.propose(ref, prompt, function.runs, TOOL, function.controls)
            wanted = proposals if shapes and self._every_candidate else proposals[:1]
            found += [proposal.prediction for proposal in wanted if proposal.prediction.score >= least_score]
        return answers.shapes_reply(found) if shapes else answers.dense_reply(found, size)

    def _detections(self, annotator: str, least_score: float, ref: ImageRef) -> bytes:
        made = self._workbench.prelabel(ref, annotator, TOOL, lambda _, found: found.score >= least_score)
        return answers.detector_reply([(label, each.prediction) for label, each in made], self._min_iou)

    def _embedding(self, segmenter: str, ref: ImageRef) -> bytes:
        embedding = self._workbench.embedding(ref, segmenter)
        if not isinstance(embedding, SamFeatures) or embedding.features.shape != FEATURES:
            raise NotReady(f"the embeddings of {segmenter} are not those of SAM's decoder")
        return b'{"blob":"%b"}' % base64.b64encode(np.ascontiguousarray(embedding.features, "<f4").data)


def patience(function: Function, timeout: str) -> float:
    """Seconds until the answer must be there; `timeout` is CVAT's own, "120s" for instance."""
    given = re.fullmatch(r"(\d{1,6}(?:\.\d{1,9})?)s", timeout)
    seconds = float(given[1]) if given else DEFAULT_TIMEOUT_S
    longest = seconds if function.kind == "detector" else MAX_CLICK_S
    return max(1.0, min(seconds - RESERVE_S, longest))


def _port(request: Request) -> int:
    return int((request.scope.get("server") or ("", 0))[1] or 0)


def signature(secret: bytes, body: bytes) -> str:
    """The value of X-Signature-256: HMAC-SHA256 of the body's bytes as sent."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def require_signature(secret: bytes | None, body: bytes, given: str) -> None:
    """Raise HTTPException unless `given` is the body's signature; compared in constant time."""
    if secret is None:
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            f"CVAT's webhooks are refused until {SECRET_VARIABLE} is set: to a secret of your own, the same "
            "for the server and for clickmask connect cvat",
        )
    # Undoes Starlette's decoding of headers as Latin-1.
    if not hmac.compare_digest(signature(secret, body).encode(), given.encode("latin-1")):
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            f"the webhook's signature is not that of {SECRET_VARIABLE}: run clickmask connect cvat with the "
            "server's secret",
        )
