"""Access control: a list of small middleware in front of every route, which nothing bypasses.

With a secret (CLICKMASK_TOKEN), every request must carry it, but labeling tools in a trusted network may call
their own endpoints (`Tool.open_paths`) without it, and anybody may read HEALTH. Without a secret, only this
machine and those tools are served. Checks of Host and Origin keep foreign pages from rebinding their name to
this server or posting to it. Signed requests (`Tool.signed_paths`) reach only the route that checks them.
"""

import asyncio
import re
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clickmask_adapters.server import failures
from clickmask_adapters.server.addresses import parse_address
from clickmask_adapters.server.authentication import ADDRESS, SIGNATURE, Authentication
from clickmask_adapters.server.failures import Refusal
from clickmask_adapters.server.places import InPlace, Places, ShortLine
from clickmask_adapters.settings import Settings

UNCOUNTED = frozenset({"/setup", "/webhook"})  # answered without computing: never turned away for load
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]*))(?::\d*)?")  # RFC 9110, 7.2; IPv6 in brackets
MAX_COMPUTE_BODIES = 2  # of the largest size, held in memory by all computing requests
READ_TIMEOUT_S = 120.0  # from the head of a request to its end
MAX_SIGNED_BODIES = 64 * 2**20  # bytes of all signed bodies together
MAX_SIGNED_BODY = 2**20  # bytes that a stranger may send before the signature is checked
ENDING = "the server is ending; try again in a moment"
VERIFY, KEEP, COMPUTE = "verify", "keep", "compute"


class Gate:
    """The middleware in front of `app`, outermost first. A body is read only after all other checks."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        recent: failures.RecentFailures,
        open_paths: Collection[str] = (),
        signed_paths: Collection[str] = (),
        places: Places | None = None,
    ) -> None:
        places = places or Places()
        self._app = self._stack = app
        for middleware, arguments, options in reversed(
            [
                Middleware(Refusals, recent),
                Middleware(Authentication, settings, open_paths, signed_paths),
                Middleware(KnownHost, settings.allowed_hosts),
                Middleware(SafeMethods, app),  # leave the stack here: the rest is about posting
                Middleware(SameOrigin),
                Middleware(ShortLine, places, _computes),
                Middleware(BodySize, settings.max_body_bytes),
                Middleware(BodyMemory, settings.max_body_bytes),
                Middleware(JsonBody),
                Middleware(InPlace, places, _computes),
            ]
        ):
            self._stack = middleware(self._stack, *arguments, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._stack(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)


class Refusals:
    """Answer refusals with their status and sentence, and keep them for the status page."""

    def __init__(self, app: ASGIApp, recent: failures.RecentFailures) -> None:
        self._app = app
        self._recent = recent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def answer(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:  # the server ends, and waits for this request no longer
            if has_begun:
                raise
            retry = {"Retry-After": "10"}
            await failures.answer(HTTPStatus.SERVICE_UNAVAILABLE, ENDING, retry)(scope, receive, send)
        except Refusal as refusal:
            self._recent.add(scope["method"], scope["path"], refusal.status, str(refusal), kind=refusal.kind)
            await failures.answer(refusal.status, str(refusal), refusal.headers)(scope, receive, send)


class KnownHost:
    """Refuse unknown host names (DNS rebinding), unless a secret or signature came with the request."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["auth"] == ADDRESS:
            host = Headers(scope=scope).get("host", "").lower()
            written = HOST.fullmatch(host)
            name = (written[1] or written[2].rstrip(".")) if written else host
            if not written or (name not in self._hosts and not parse_address(name)):
                raise Refusal(
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"this server is not known as {name[:80]!r}: add the name to CLICKMASK_ALLOWED_HOSTS",
                    kind="unknown_host",
                )
        await self._app(scope, receive, send)


class SafeMethods:
    """Hand GET, HEAD and OPTIONS to `served` at once: they change nothing and have no body."""

    def __init__(self, app: ASGIApp, served: ASGIApp) -> None:
        self._app, self._served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._served if scope["method"] in SAFE_METHODS else self._app
        await app(scope, receive, send)


class SameOrigin:
    """Refuse posts from pages of another origin, even with the secret."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "a page of another origin may not post to this server",
                kind="foreign_origin",
            )
        await self._app(scope, receive, send)


class BodySize:
    """Limit of `max_body` bytes for a body, announced or not; far lower for signed requests."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = MAX_SIGNED_BODY if scope["auth"] == SIGNATURE else self._max_body
        said = f"at most {most / 2**20:.0f} MiB here (CLICKMASK_MAX_BODY_BYTES, except for webhooks)"
        too_large = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has {said}", kind="too_large")
        length = Headers(scope=scope).get("content-length", "0")
        size = 0

        async def measured() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            return message

        if not length.isdecimal() or int(length) > most:
            raise too_large
        await self._app(scope, measured, send)


class BodyMemory:
    """Limit on the bytes of all bodies in memory; COMPUTE, KEEP and VERIFY have separate budgets."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._most = {COMPUTE: MAX_COMPUTE_BODIES * max_body, KEEP: max_body, VERIFY: MAX_SIGNED_BODIES}
        self._held = dict.fromkeys(self._most, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        purpose, taken = _purpose(scope), 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            if self._held[purpose] + size > self._most[purpose]:
                raise Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{self._held[purpose] / 2**20:.0f} MiB of requests are at work already; try again in a "
                    "moment",
                    {"Retry-After": "2"},
                    kind="overloaded",
                )
            self._held[purpose] += size
            taken += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held[purpose] -= taken


class JsonBody:
    """Read the whole body within READ_TIMEOUT_S before a route sees it, and refuse all but JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(HTTPStatus.BAD_REQUEST, "the request broke off", kind="unfinished")
                    chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refusal(
                HTTPStatus.REQUEST_TIMEOUT, "the request did not come to its end", kind="unfinished"
            ) from None
        body = b"".join(chunks)
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "send JSON, with Content-Type: application/json",
                kind="not_json",
            )
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replayed, send)


def _purpose(scope: Scope) -> str:
    """Purpose of a body: VERIFY a stranger's signature, KEEP it, or COMPUTE with it."""
    if scope["auth"] == SIGNATURE:
        return VERIFY
    return KEEP if scope["path"] in UNCOUNTED else COMPUTE


def _computes(scope: Scope) -> bool:
    return _purpose(scope) == COMPUTE
