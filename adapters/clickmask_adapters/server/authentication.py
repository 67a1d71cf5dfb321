"""Who is let in: signed requests, those with the secret, trusted addresses. Wrong secrets are slowed down."""

import asyncio
import base64
import binascii
import hmac
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from clickmask.caches import Lru
from clickmask_adapters.server.addresses import client_network, parse_address
from clickmask_adapters.server.failures import SLOWED_DOWN, Refusal
from clickmask_adapters.settings import Settings

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
HEALTH = "/health"  # needs no secret, since load balancers have none; it says only that the server is up
# scope["auth"]: why a request was let in
SIGNATURE, SECRET, ADDRESS, PUBLIC = "signature", "secret", "address", "public"
FREE_TRIES = 5  # wrong secrets of one client that are answered at once
FORGOTTEN_AFTER_S = 900.0
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 8.0
MAX_DELAYED, MAX_DELAYED_OF_ONE = 64, 4  # answers
MAX_CLIENTS = 4096


class WrongSecrets:
    """Delays answers to wrong secrets, longer with each of the same client. In one event loop.

    A right secret is never delayed: many people may share an address, or come through one proxy. So guessing
    becomes slow for those who wait for their answers, but only a long secret makes it hopeless.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._tries = Lru[str, tuple[int, float]](
            max_count=MAX_CLIENTS
        )  # their number, and when the last was
        self._delayed = Counter[str]()

    async def slow_down(self, client: str) -> None:
        """Count a wrong secret; return when it may be answered. Raises Refusal if too many are delayed."""
        number, last = self._tries.get(client) or (0, 0.0)
        number = 1 if self._clock() - last > FORGOTTEN_AFTER_S else number + 1
        self._tries.put(client, (number, self._clock()))
        if number <= FREE_TRIES:
            return
        delay = min(FIRST_DELAY_S * 2 ** min(number - FREE_TRIES - 1, 10), MAX_DELAY_S)
        if self._delayed[client] >= MAX_DELAYED_OF_ONE or self._delayed.total() >= MAX_DELAYED:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong secrets came from this address; try again in a moment",
                {"Retry-After": str(math.ceil(delay))},
                kind=SLOWED_DOWN,
            )
        self._delayed[client] += 1
        try:
            await self._sleep(delay)
        finally:
            self._delayed[client] -= 1
            if not self._delayed[client]:
                del self._delayed[client]


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
        self._wrong_secrets = WrongSecrets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and scope["path"] in self._signed_paths:
            scope["auth"] = SIGNATURE
        elif self._carries_secret(headers.get("authorization", "")):
            scope["auth"] = SECRET
        elif scope["method"] in ("GET", "HEAD") and scope["path"] == HEALTH and self._secret is not None:
            scope["auth"] = PUBLIC
        elif self._is_trusted(scope):
            scope["auth"] = ADDRESS
        elif self._secret is not None:
            raise await self._no_secret(scope, "authorization" in headers)
        else:
            self._require_this_machine(scope, headers)
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

    def _is_trusted(self, scope: Scope) -> bool:
        """Whether a labeling tool in a trusted network calls its own endpoint."""
        address, path = parse_address(_client(scope)), scope["path"]
        # "/" is not a prefix, and is open only to POST: the page there is for people.
        is_open = path.startswith(self._open_prefixes) or (
            path in self._open_paths and (path != "/" or scope["method"] == "POST")
        )
        return is_open and address is not None and any(address in network for network in self._networks)

    async def _no_secret(self, scope: Scope, is_wrong: bool) -> Refusal:
        """The answer to a request without the secret; after a while if it came with a wrong one."""
        if is_wrong:
            await self._wrong_secrets.slow_down(client_network(_client(scope)))
        return Refusal(
            HTTPStatus.UNAUTHORIZED,
            "this server has a secret: send it as the token, or as the password of basic auth",
            {"WWW-Authenticate": 'Basic realm="user clickmask, password the secret", charset="UTF-8"'},
            kind="wrong_secret" if is_wrong else "no_secret",
        )

    def _require_this_machine(self, scope: Scope, headers: Headers) -> None:
        address = parse_address(_client(scope))
        if address is None or not address.is_loopback or any(name in headers for name in FORWARDED):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "without a secret only this machine is served: set CLICKMASK_TOKEN, or for labeling tools "
                "CLICKMASK_TRUSTED_NETWORKS",
                kind="not_this_machine",
            )


def _client(scope: Scope) -> str:
    return (scope["client"] or ("",))[0]
