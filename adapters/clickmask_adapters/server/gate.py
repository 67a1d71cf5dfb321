"""Who may come in: one ASGI middleware in front of every route, which nothing bypasses.

With a secret (CLICKMASK_TOKEN) every request must carry it, except that labeling tools in a
trusted network may reach their own endpoints without. Without a secret only this machine and
those tools are served. Browsers are told apart by Host and Origin, so that a foreign page
can neither rebind its name to this server nor post to it. What a tool signs (`signed_paths`) is
let through to the route that checks the signature, and to no other.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clickmask_adapters.server import failures
from clickmask_adapters.settings import Settings

TOOL_PATHS = frozenset({"/health", "/setup", "/predict", "/versions", "/webhook"})
TOOL_PREFIXES = ("/api/", "/webhooks/")
UNCOUNTED = frozenset({"/setup", "/webhook"})  # answered without computing: never turned away for load
LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
MAX_COMPUTE_BODIES = 2  # of the largest size, that what computes may hold in memory at one time
READ_TIMEOUT_S = 120.0  # seconds for which a request that is still arriving holds its place
MAX_SIGNED_BODIES = 64 * 2**20  # bytes of all of them
MAX_SIGNED_BODY = 2**20  # bytes that a stranger may send before anybody has looked at the signature


class Refusal(Exception):
    def __init__(self, status: HTTPStatus, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.headers = status, headers


class MemoryBudget:
    """Bytes of request bodies that are in memory at one time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    @contextmanager
    def reserve(self) -> Generator[Callable[[int], None]]:
        """What takes bytes for one request, until its end; it raises Refusal where there are too many."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if self._held + size > self._most:
                raise Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{self._held / 2**20:.0f} MiB of requests are at work already; try again in a moment",
                    {"Retry-After": "2"},
                )
            self._held += size
            taken += size

        try:
            yield take
        finally:
            self._held -= taken


class Gate:
    """Authentication, Host, Origin, content type, body size, and the number and bytes of requests at work.

    Requests are counted before their bodies are read. Bodies have rooms of their own for what computes,
    for what is only kept, and for what strangers send, so that none of these takes another's.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        recent: failures.RecentFailures,
        most_at_work: int = 128,
        signed_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._recent = recent
        self._secret = settings.token.get_secret_value().encode() if settings.token else None
        self._username = settings.username.encode()
        self._networks = settings.trusted_networks
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in settings.allowed_hosts}
        self._max_body = settings.max_body_bytes
        self._signed_paths = frozenset(signed_paths)
        self._to_compute, self._to_keep = (
            MemoryBudget(MAX_COMPUTE_BODIES * self._max_body),
            MemoryBudget(self._max_body),
        )
        self._to_verify = MemoryBudget(MAX_SIGNED_BODIES)
        self._most_at_work = most_at_work
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            await self._admit(scope, receive, send)
        except Refusal as refusal:
            self._recent.add(scope["method"], scope["path"], refusal.status, str(refusal))
            await failures.answer(refusal.status, str(refusal), refusal.headers)(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        signed = scope["method"] == "POST" and scope["path"] in self._signed_paths
        if not signed and not self._carries_secret(headers.get("authorization", "")):
            self._require_trusted_client(scope, headers)
            self._require_known_host(headers)
        if scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        _require_same_origin(headers)
        if signed:
            await self._read_and_serve(self._to_verify, MAX_SIGNED_BODY, headers, scope, receive, send)
        elif scope["path"] in UNCOUNTED:
            await self._read_and_serve(self._to_keep, self._max_body, headers, scope, receive, send)
        else:
            with self._counted():
                await self._read_and_serve(self._to_compute, self._max_body, headers, scope, receive, send)

    @contextmanager
    def _counted(self) -> Generator[None]:
        if self._at_work >= self._most_at_work:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._at_work} requests are at work already; try again in a moment",
                {"Retry-After": "2"},
            )
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    async def _read_and_serve(
        self, room: MemoryBudget, most: int, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        with room.reserve() as take:
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    body = await _body(headers, receive, most, take)
            except TimeoutError:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request did not come to its end") from None
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if body and kind != "application/json":
                raise Refusal(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json"
                )
            await self._app(scope, _replay(body, receive), send)

    def _carries_secret(self, authorization: str) -> bool:
        """Token, Bearer or Basic; compared as bytes and in constant time."""
        if self._secret is None:
            return False
        scheme, _, credentials = authorization.partition(" ")
        given = credentials.strip().encode("latin-1")  # the bytes as they came: Starlette decodes so
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
        address = _client_address(scope)
        path = scope["path"]
        # CVAT's nuclio method `direct` posts to the root; the page there is for people.
        for_tools = (
            path in TOOL_PATHS
            or path.startswith(TOOL_PREFIXES)
            or (path == "/" and scope["method"] == "POST")
        )
        if for_tools and address is not None and _in(address, self._networks):
            return
        if self._secret is not None:
            challenge = {
                "WWW-Authenticate": 'Basic realm="user clickmask, password the secret", charset="UTF-8"'
            }
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "this server has a secret: send it as the token, or as the password of basic auth",
                challenge,
            )
        if address is None or not address.is_loopback or any(name in headers for name in FORWARDED):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "without a secret only this machine is served: set CLICKMASK_TOKEN, or for labeling tools "
                "CLICKMASK_TRUSTED_NETWORKS",
            )

    def _require_known_host(self, headers: Headers) -> None:
        """A name that an attacker points at this machine (DNS rebinding) is not one of ours."""
        name = _host_name(headers.get("host", ""))
        if name not in self._hosts and not _is_address(name):
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server is not known as {name[:80]!r}: add the name to CLICKMASK_ALLOWED_HOSTS",
            )


async def _body(headers: Headers, receive: Receive, most: int, take: Callable[[int], None]) -> bytes:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise _too_large(most)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request broke off")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > most:
            raise _too_large(most)
        take(len(chunks[-1]))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large(most: int) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a request has at most {most / 2**20:.0f} MiB here (CLICKMASK_MAX_BODY_BYTES, except for webhooks)",
    )


def _require_same_origin(headers: Headers) -> None:
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()
    if foreign or headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Refusal(HTTPStatus.FORBIDDEN, "a page of another origin may not post to this server")


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def _client_address(scope: Scope) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (TypeError, ValueError):
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _in(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _host_name(host: str) -> str:
    """The name in a Host header, lower case, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
