"""The routes that CVAT 2.73.0 calls: nuclio's dashboard, which takes no code here, and a webhook.

CVAT asks for a function's description before each call, so that never waits for a segmenter or its threads.
If an answer is an error, users see only the reason phrase.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from clickmask.errors import Busy, ClickmaskError, Failed, NotReady
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response
from clickmask_adapters.tools._json import as_text, parse_object
from clickmask_adapters.tools.cvat import WEBHOOK
from clickmask_adapters.tools.cvat.backend import Invoker, ResultCache, key_of, wait
from clickmask_adapters.tools.cvat.functions import Function, functions
from clickmask_adapters.tools.cvat.labels import TOOL
from clickmask_adapters.tools.cvat.settings import CvatSettings

log = logging.getLogger(__name__)
FUNCTIONS_TTL_S = 5.0  # the list of functions is kept so long; making it takes 0.03 s
MAX_CLICK_S = 50.0  # the nginx in front of CVAT gives up on a call after 60
DEFAULT_TIMEOUT_S = 120.0  # CVAT's own default, if its request does not say
RESERVE_S = 5.0  # an answer should leave so long before CVAT's timeout
SECRET_VARIABLE = "CVAT_WEBHOOK_SECRET"  # noqa: S105  # its name, not its value
SIGNATURE = "X-Signature-256"


def router(workbench: Workbench, settings: CvatSettings, min_iou: float) -> APIRouter:
    """The routes of nuclio's dashboard, and the one for events signed with CVAT_WEBHOOK_SECRET."""
    offered = Offered(workbench)
    invoker = Invoker(workbench, min_iou, every_candidate=settings.cvat_candidates)
    results = ResultCache()
    secret = settings.cvat_webhook_secret.get_secret_value() if settings.cvat_webhook_secret else None
    listing = ThreadPoolExecutor(1, thread_name_prefix="cvat-functions")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        listing.shutdown()

    routes = APIRouter(include_in_schema=False, lifespan=lifespan)

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

        key = await asyncio.to_thread(key_of, name, body) if function.kind == "detector" else b""
        while True:
            try:
                if function.kind == "detector":
                    return await results.wait(until, key, begin)
                return await wait(until, asyncio.ensure_future(begin()))
            except Busy as error:
                # CVAT ends a batch at the first failed frame, so a detector waits its turn.
                if function.kind != "detector" or time.monotonic() + error.retry_after >= until:
                    retry = {"Retry-After": f"{error.retry_after:.0f}"}
                    raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, str(error), retry) from error
                await asyncio.sleep(error.retry_after)
            except NotReady as error:
                raise HTTPException(HTTPStatus.CONFLICT, str(error)) from error
            except Failed as error:  # CVAT would show its users a bare 500
                raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
            except ClickmaskError:
                raise
            except Exception as error:  # a plugin is foreign code
                log.exception("cvat: %s failed", function.runs)
                sentence = f"{function.runs} failed on this image; clickmask's log has the details"
                raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, sentence) from error

    @routes.get("/api/functions")
    async def list_functions(request: Request) -> Response:
        port = _port(request)
        return json_response({name: each.described(port) for name, each in (await current()).items()})

    @routes.get("/api/functions/{name}")
    async def describe_function(name: str, request: Request) -> Response:
        return json_response((await required(name)).described(_port(request)))

    @routes.post("/api/function_invocations")
    async def invoke_function(request: Request) -> Response:
        return await invoke(request, request.headers.get("x-nuclio-function-name", ""))

    if direct := settings.cvat_direct_function:
        if direct not in offered.last:
            known = ", ".join(offered.last)
            log.warning("cvat: CLICKMASK_CVAT_DIRECT_FUNCTION names no function; there is: %s", known)

        @routes.post("/")
        async def invoke_directly(request: Request) -> Response:
            return await invoke(request, direct)

    @routes.post(WEBHOOK)
    async def webhook(request: Request) -> Response:
        body = await request.body()
        require_signature(secret.encode() if secret else None, body, request.headers.get(SIGNATURE, ""))
        event = parse_object(body, "the event")
        if as_text(event.get("event"), "the name of the event") == "ping":
            return json_response({"status": "clickmask hears CVAT"})
        await asyncio.wrap_future(workbench.keep_event(TOOL, body))  # on the disk before the answer
        return json_response({"status": "kept"}, HTTPStatus.ACCEPTED)

    return routes


class Offered:
    """The functions that can be called, by name. Loads no model, and logs what is ready but left out."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self.last, left_out = self._look()
        self._until = time.monotonic() + FUNCTIONS_TTL_S
        for reason in left_out:
            log.warning("cvat: not offered: %s", reason)

    def now(self) -> Mapping[str, Function]:
        """The functions that are ready, at most FUNCTIONS_TTL_S old; `last` is the previous answer."""
        if time.monotonic() >= self._until:
            self.last, _ = self._look()
            self._until = time.monotonic() + FUNCTIONS_TTL_S
        return self.last

    def _look(self) -> tuple[Mapping[str, Function], list[str]]:
        bench = self._workbench
        return functions(bench.segmenters(), bench.annotators(), bench.default_segmenter)


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
