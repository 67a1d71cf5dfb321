"""REST client shared by the labeling tools: keep-alive, retries, limits, and errors as sentences."""

import re
import socket
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast
from urllib.parse import urlencode, urlsplit

import orjson
import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.response import BaseHTTPResponse, HTTPResponse
from urllib3.util import Retry, Timeout

from clickmask.caches import waiting_elsewhere
from clickmask.errors import ToolUnavailable
from clickmask.images.fetch import origin_of

CONNECT_TIMEOUT_S = 5.0
MAX_REQUEST_S = 300.0  # one request with its retries, waits and body
MAX_RETRIES = 5
BACKOFF_S = 0.5  # the first retry comes at once, then 1, 2, 4, 8 s, unless Retry-After says more
MAX_ANSWER_BYTES = 2**30  # 50 tasks with 20 annotations of 100 kB each are 100 MB
MAX_REASON_CHARS = 4000  # of the tool's own words in an error; a chain of causes has its reason at the end
MAX_REASON_DEPTH = 10  # of a reason in lists and objects
MARKUP = re.compile(
    r"</?[a-z][a-z0-9]*(\s[^<>=]+=[^<>]*)?/?>", re.IGNORECASE
)  # tags, but no `<object at 0x1f>`
REFUSED_UNREAD = frozenset({429})  # refused before any work: even a POST may be sent again
BUSY = REFUSED_UNREAD | {502, 503, 504}


class ToolError(ToolUnavailable):
    """The tool cannot be reached or refuses; `status` is its HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_about_this(self) -> bool:
        """Whether the tool refused this request alone, so that the next one may succeed."""
        return self.status in {400, 404, 409, 413, 422}


class RestClient:
    """Requests to one tool at `url`, for any thread, over connections that are kept. A subclass names the
    tool and its variables for errors, and gives the Authorization header. Raises ToolError if `url` is not an
    address or carries a password."""

    tool: ClassVar[str]
    url_variable: ClassVar[str]
    credentials: ClassVar[str]  # the variables that hold them
    webhook_path: ClassVar[str]  # of one webhook, with {} for its id
    renewal: ClassVar[str] = "again"  # completes "set <credentials> ..." if they are refused
    accept: ClassVar[str] = "application/json"
    read_timeout_s: ClassVar[float] = 30.0  # Label Studio adds a backend after asking it twice

    def __init__(self, url: str | None) -> None:
        self.url = url.rstrip("/") if url else None
        try:
            self.origin = origin_of(self.url) if self.url else None
        except ValueError as error:
            raise ToolError(f"{self.url_variable} is not an address such as http://host:8080") from error
        if "@" in urlsplit(self.url or "").netloc:
            raise ToolError(
                f"{self.url_variable} carries a user name or password: set {self.credentials} instead"
            )
        # Unlike a requests.Session, it has no cookies and reads no .netrc or proxy from the environment.
        timeout = Timeout(connect=CONNECT_TIMEOUT_S, read=self.read_timeout_s)
        self._pool = urllib3.PoolManager(maxsize=8, ca_certs=DEFAULT_CA_BUNDLE_PATH, timeout=timeout)
        self._pool.pool_classes_by_scheme = {**self._pool.pool_classes_by_scheme, "http": _Connections}

    def authorization(self, refused: str = "") -> str | None:
        """The value of the Authorization header; a different one from `refused` if possible."""
        raise NotImplementedError  # each tool has its own credentials

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: object = None,
        authorized: bool = True,
        idempotent: bool | None = None,
    ) -> Any:
        """The answer's JSON, None if it is empty. Raises ToolError. `body` is sent as JSON and may hold
        arrays. A busy tool (429, 502, 503, 504) is asked again after the delay it names if that is safe:
        POST and PATCH are repeated only after a 429, unless `idempotent`."""
        if not self.url:
            raise ToolError(f"no {self.tool} is configured: set {self.url_variable} and {self.credentials}")
        header = self.authorization() if authorized else None
        if authorized and not header:
            raise ToolError(f"{self.tool} wants credentials: set {self.credentials}")
        url = f"{self.url}{path}" + (f"?{urlencode(params)}" if params else "")
        raw = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        repeatable = method not in ("POST", "PATCH") if idempotent is None else idempotent
        answer, content = self._send(method, url, header, raw, repeatable)
        if header and answer.status == 401:
            renewed = self.authorization(refused=header)
            if renewed != header:
                answer, content = self._send(method, url, renewed, raw, repeatable)
        status, refusal = answer.status, ""
        if status == 401:
            refusal = f"refuses the credentials: set {self.credentials} {self.renewal}"
        elif status >= 400:
            refusal = f"answers {status}: {_reason(answer, content)}"
        elif status >= 300:
            advice = f"set {self.url_variable} to the address it redirects to, https included"
            refusal = f"answers with a redirect: {advice}"
        if refusal:
            raise ToolError(f"{self.tool} {refusal}", status)
        if not content:
            return None
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise self.not_its_api() from error

    def has(self, path: str) -> bool:
        """Whether `path` exists: False for a 404. Raises ToolError for other refusals."""
        try:
            self.ask("GET", path)
        except ToolError as error:
            if error.status == 404:
                return False
            raise
        return True

    def change_webhook(self, webhook: int, changes: Mapping[str, Any]) -> Any:
        return self.ask("PATCH", self.webhook_path.format(webhook), body=changes, idempotent=True)

    def remove_webhook(self, webhook: int) -> None:
        self.ask("DELETE", self.webhook_path.format(webhook))

    def not_its_api(self) -> ToolError:
        return ToolError(f"what answers at {self.url_variable} is not {self.tool}'s API")

    def _send(
        self, method: str, url: str, authorization: str | None, body: bytes | None, repeatable: bool
    ) -> tuple[BaseHTTPResponse, bytes]:
        """The last answer, and its body."""
        headers = {"Accept": self.accept, "Accept-Encoding": "gzip, deflate", "User-Agent": "clickmask"}
        if authorization:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = "application/json"
        until = time.monotonic() + MAX_REQUEST_S
        retries = _Retries(
            until,
            total=MAX_RETRIES,
            connect=0,
            read=1 if repeatable else 0,  # a kept connection may close just when it is used again
            allowed_methods=None,
            status_forcelist=BUSY if repeatable else REFUSED_UNREAD,
            backoff_factor=BACKOFF_S,
            raise_on_status=False,
        )
        content = bytearray()
        try:
            with (
                waiting_elsewhere(),
                self._pool.request(
                    method, url, body, headers=headers, retries=retries, redirect=False, preload_content=False
                ) as answer,
            ):
                # Not in full chunks: a server that sends in drips must not hold a thread forever.
                while chunk := answer.read1(2**16, decode_content=True):
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise ToolError(f"{self.tool}'s answer has more than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > until:
                        raise ToolError(f"{self.tool} did not send its answer within {MAX_REQUEST_S:g} s")
        except HTTPError as error:
            raise ToolError(
                f"{self.tool} does not answer at {self.url}: is it running, and is {self.url_variable} right?"
            ) from error
        return answer, bytes(content)


class _Connection(HTTPConnection):
    """A connection that acknowledges at once what it receives, which saves 40 ms: Label Studio without nginx
    (Django's runserver) waits for the acknowledgement of a head to send its body."""

    def getresponse(self) -> HTTPResponse:
        if hasattr(socket, "TCP_QUICKACK") and self.sock:  # each time: Linux forgets it
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().getresponse()


class _Connections(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection  # pyright: ignore[reportAssignmentType]  # as urllib3 sets its own


class _Retries(Retry):
    """Retries that end at `until`, in seconds of `time.monotonic`; the last answer then stands."""

    RETRY_AFTER_STATUS_CODES = REFUSED_UNREAD

    def __init__(self, until: float, **options: Any) -> None:
        super().__init__(**options)
        self._until = until

    def new(self, **options: Any) -> Self:
        return super().new(until=self._until, **options)

    def increment(self, *request: Any, **outcome: Any) -> Self:
        following = super().increment(*request, **outcome)
        response = outcome.get("response")
        wait = (self.get_retry_after(response) if response else None) or following.get_backoff_time()
        if time.monotonic() + wait > self._until:
            raise MaxRetryError(outcome["_pool"], request[1], outcome.get("error"))
        return following


def _reason(answer: BaseHTTPResponse, content: bytes) -> str:
    """All of the tool's own words for a refusal: a text, a list of them, or texts by field, also nested."""
    try:
        said: object = orjson.loads(content)
    except orjson.JSONDecodeError:
        # CVAT passes on its models' errors as plain text; other answers are pages of HTML.
        plain = answer.headers.get("Content-Type", "").startswith("text/plain")
        words = content.decode(errors="replace").strip() if plain else answer.reason or ""
        return words[:MAX_REASON_CHARS] or "no reason given"
    if isinstance(said, dict):
        fields = cast("dict[str, object]", said)
        said = fields.get("validation_errors") or fields.get("detail") or fields
    return MARKUP.sub("", _joined(said))[:MAX_REASON_CHARS] or "no reason given"


def _joined(said: object, depth: int = 0) -> str:
    if depth > MAX_REASON_DEPTH:
        return "..."
    if isinstance(said, dict):
        fields = cast("dict[str, object]", said)
        return "; ".join(f"{name}: {_joined(words, depth + 1)}" for name, words in fields.items())
    if isinstance(said, list):
        return ", ".join(_joined(each, depth + 1) for each in cast("list[object]", said))
    return str(said)
