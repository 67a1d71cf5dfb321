"""Access control: a list of small middleware in front of every route, which nothing bypasses.

With a secret (CLICKMASK_TOKEN), every request must carry it, but labeling tools in a trusted network may call
their own endpoints (`Tool.open_paths`) without it, and anybody may read HEALTH. Without a secret, only this
machine and those tools are served. Checks of Host and Origin keep foreign pages from rebinding their name to
this server or posting to it. Signed requests (`Tool.signed_paths`) reach only the route that checks them.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clickmask_adapters.server import failures
from clickmask_adapters.settings import Settings

UNCOUNTED = frozenset({"/setup", "/webhook"})  # answered without computing: never turned away for load
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
MAX_REQUESTS = 128
MAX_COMPUTE_BODIES = 2  # of the largest size, held in memory by all computing requests
READ_TIMEOUT_S = 120.0  # a request that is still arriving holds its place so long
MAX_SIGNED_BODIES = 64 * 2**20  # bytes of all signed bodies together
MAX_SIGNED_BODY = 2**20  # bytes that a stranger may send before the signature is checked
HEALTH = "/health"  # says that the server is up, and no more: load balancers have no secret
# scope["auth"]: why a request was let in
SIGNATURE, SECRET, ADDRESS, PUBLIC = "signature", "secret", "address", "public"
VERIFY, KEEP, COMPUTE = "verify", "keep", "compute"


class Refusal(Exception):
    """A refused request: any middleware of the gate raises it, and `Refusals` answers it."""

    def __init__(self, status: HTTPStatus, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.headers = status, headers


class Gate:
    """The middleware in front of `app`, outermost first. A body is read only after all other checks."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        recent: failures.RecentFailures,
        max_requests: int = MAX_REQUESTS,
        open_paths: Collection[str] = (),
        signed_paths: Collection[str] = (),
    ) -> None:
        self._app = self._stack = app
        for middleware, arguments, options in reversed(
            [
                Middleware(Refusals, recent),
                Middleware(Authentication, settings, open_paths, signed_paths),
                Middleware(KnownHost, settings.allowed_hosts),
                Middleware(SafeMethods, app),  # leave the stack here: the rest is about posting
                Middleware(SameOrigin),
                Middleware(RequestLimit, max_requests),
                Middleware(BodySize, settings.max_body_bytes),
                Middleware(BodyMemory, settings.max_body_bytes),
                Middleware(JsonBody),
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
        try:
            await self._app(scope, receive, send)
        except Refusal as refusal:
            self._recent.add(scope["method"], scope["path"], refusal.status, str(refusal))
            await failures.answer(refusal.status, str(refusal), refusal.headers)(scope, receive, send)


class Authentication:
    """Admit signed requests, the secret, and trusted addresses; `scope["auth"]` says which."""

    def __init__(
        self, app: ASGIApp, settings: Settings, open_paths: Collection[str], signed_paths: Collection[str]
    ) -> None:
        self._app = app
        self._secret = settings.token.get_secret_value().encode() if settings.token else None
        self._username = settings.username.encode()
        self._networks = settings.trusted_networks
        self._open_paths = frozenset(open_paths)
        self._open_prefixes = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self._signed_paths = frozenset(signed_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and scope["path"] in self._signed_paths:
            scope["auth"] = SIGNATURE
        elif self._carries_secret(headers.get("authorization", "")):
            scope["auth"] = SECRET
        elif scope["method"] in ("GET", "HEAD") and scope["path"] == HEALTH and self._secret is not None:
            scope["auth"] = PUBLIC
        else:
            self._require_trusted_client(scope, headers)
            scope["auth"] = ADDRESS
        await self._app(scope, receive, send)

    def _carries_secret(self, authorization: str) -> bool:
        """Whether Token, Bearer or Basic gives the secret; compared as bytes in constant time."""
        if self._secret is None:
            return False
        scheme, _, credentials = authorization.partition(" ")
        given = credentials.strip().encode("latin-1")  # undoes Starlette's decoding
        if scheme.lower() in {"token", "bearer"}:
            return hmac.compare_digest(given, self._secret)
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(given, validate=True).partition(b":")
        except binascii.Error:
            return False
        return hmac.compare_digest(user, self._username) & hmac.compare_digest(password, self._secret)

    def _require_trusted_client(self, scope: Scope, headers: Headers) -> None:
        address = _address((scope["client"] or ("",))[0])
        path = scope["path"]
        # "/" is not a prefix, and is open only to POST: the page there is for people.
        is_open = path.startswith(self._open_prefixes) or (
            path in self._open_paths and (path != "/" or scope["method"] == "POST")
        )
        if is_open and address and any(address in network for network in self._networks):
            return
        if self._secret is not None:
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "this server has a secret: send it as the token, or as the password of basic auth",
                {"WWW-Authenticate": 'Basic realm="user clickmask, password the secret", charset="UTF-8"'},
            )
        if address is None or not address.is_loopback or any(name in headers for name in FORWARDED):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "without a secret only this machine is served: set CLICKMASK_TOKEN, or for labeling tools "
                "CLICKMASK_TRUSTED_NETWORKS",
            )


class KnownHost:
    """Refuse unknown host names (DNS rebinding), unless a secret or signature came with the request."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["auth"] == ADDRESS:
            host = Headers(scope=scope).get("host", "").lower()
            bracketed = host.startswith("[")  # IPv6
            name = host[1:].partition("]")[0] if bracketed else host.partition(":")[0].rstrip(".")
            if name not in self._hosts and not _address(name):
                raise Refusal(
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"this server is not known as {name[:80]!r}: add the name to CLICKMASK_ALLOWED_HOSTS",
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
            raise Refusal(HTTPStatus.FORBIDDEN, "a page of another origin may not post to this server")
        await self._app(scope, receive, send)


class RequestLimit:
    """Limit on requests that compute at one time, counted before their bodies are read."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _purpose(scope) != COMPUTE:
            await self._app(scope, receive, send)
            return
        if self._at_work >= self._most:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._at_work} requests are at work already; try again in a moment",
                {"Retry-After": "2"},
            )
        self._at_work += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._at_work -= 1


class BodySize:
    """Limit of `max_body` bytes for a body, announced or not; far lower for signed requests."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = MAX_SIGNED_BODY if scope["auth"] == SIGNATURE else self._max_body
        said = f"at most {most / 2**20:.0f} MiB here (CLICKMASK_MAX_BODY_BYTES, except for webhooks)"
        too_large = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has {said}")
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
                        raise Refusal(HTTPStatus.BAD_REQUEST, "the request broke off")
                    chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request did not come to its end") from None
        body = b"".join(chunks)
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json")
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replayed, send)


def _purpose(scope: Scope) -> str:
    """Purpose of a body: VERIFY a stranger's signature, KEEP it, or COMPUTE with it."""
    if scope["auth"] == SIGNATURE:
        return VERIFY
    return KEEP if scope["path"] in UNCOUNTED else COMPUTE


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in `text`, or None for a name. IPv4 that is written as IPv6 becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
