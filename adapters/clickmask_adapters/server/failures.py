"""The table from errors to HTTP statuses, and the recent failures for the status page."""

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from clickmask import errors
from clickmask_adapters.server.uvicorn import HEADER, reason

log = logging.getLogger(__name__)

STATUS: Mapping[type[errors.ClickmaskError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Refused: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.Gone: HTTPStatus.GONE,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Failed: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ClickmaskError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ImageUnavailable: HTTPStatus.BAD_GATEWAY,
    errors.ToolUnavailable: HTTPStatus.BAD_GATEWAY,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Busy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.HostBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutOfMemory: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotStored: HTTPStatus.INSUFFICIENT_STORAGE,
}
DOOR = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST})
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
SLOWED_DOWN = "slowed_down"
# Errors of routes that are counted for administrators, by the same words as `Refusal.kind`.
COUNTED: Mapping[type[errors.ClickmaskError], str] = {
    errors.Busy: "busy",
    errors.HostBusy: "busy",
    errors.Refused: "image_refused",
    errors.TooLarge: "too_large",
}
UNEXPECTED = "something went wrong inside clickmask; its log has the details"


class Refusal(Exception):
    """A request that is refused before a route sees it. `kind` is the word by which it is counted."""

    def __init__(
        self, status: HTTPStatus, error: str, headers: Mapping[str, str] | None = None, *, kind: str
    ) -> None:
        super().__init__(error)
        self.status, self.headers, self.kind = status, headers, kind


@dataclass(frozen=True)
class Failure:
    at: str  # ISO 8601, UTC
    method: str
    path: str
    status: int
    error: str


class RecentFailures:
    """The last 50 failed requests, newest first: the tools' own pages show nothing when a click fails.

    Strangers can be refused without end, so ten of their refusals are kept apart and evict no others.
    """

    def __init__(self, kept: int = 50, at_the_door: int = 10) -> None:
        self._lock = threading.Lock()
        self._failures: deque[Failure] = deque(maxlen=kept)
        self._at_the_door: deque[Failure] = deque(maxlen=at_the_door)
        self._counts = Counter[str]()

    def count(self, kind: str) -> None:
        """Count something that was refused, slowed down or closed, by a word for it."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Numbers since the start, by those words."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def add(
        self, method: str, path: str, status: int, error: str, admitted: bool = False, kind: str = ""
    ) -> None:
        """Keep a failure, log a line, and count it by `kind`, if that is given. If `admitted`, a route raised
        it: a 403 is about an image, not the caller."""
        if kind:
            self.count(kind)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Posts to signed paths pass the door, so strangers can send them until the signature is checked.
        unsigned = path.startswith("/webhooks/")
        stranger = not admitted and (status in DOOR or unsigned or kind == SLOWED_DOWN)
        line = f"{method} {path[:200]}: {status}, {error[:500]}"
        line = "".join(
            letter if letter.isprintable() else "?" for letter in line
        )  # one line, whatever is sent
        log.log(logging.INFO if stranger else logging.WARNING, "%s", line)
        with self._lock:
            kept = self._at_the_door if stranger else self._failures
            kept.appendleft(Failure(at, method, path[:200], status, error[:500]))

    def all(self) -> list[Failure]:
        with self._lock:
            return sorted([*self._failures, *self._at_the_door], key=lambda each: each.at, reverse=True)


def status_of(error: errors.ClickmaskError) -> HTTPStatus:
    """The status of the error's nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer with the sentence `error` as JSON and as its reason phrase."""
    return JSONResponse({"error": error}, status, {**(headers or {}), HEADER: reason(error)})


def install(app: FastAPI, failures: RecentFailures) -> None:
    """Turn every route's error into a status and a sentence: never a traceback, path or token."""

    async def failed(request: Request, error: Exception) -> JSONResponse:
        headers, admitted, kind = None, True, ""
        match error:
            case errors.ClickmaskError():
                status, sentence, kind = status_of(error), str(error), COUNTED.get(type(error), "")
                if isinstance(error, errors.Busy):
                    headers = {"Retry-After": str(math.ceil(error.retry_after))}
            case RequestValidationError():
                first = error.errors()[0]
                status = HTTPStatus.UNPROCESSABLE_ENTITY
                sentence = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
            case HTTPException():
                status, sentence, headers = error.status_code, str(error.detail), error.headers
                if status == HTTPStatus.METHOD_NOT_ALLOWED:
                    headers = {"Allow": _allowed(app, request)}
                admitted = False  # a wrong signature is the only such error with a status in DOOR
                kind = "wrong_signature" if status in DOOR else ""
            case _ if errors.is_out_of_memory(error):
                status, sentence = HTTPStatus.SERVICE_UNAVAILABLE, f"clickmask {errors.NEEDS_MEMORY}"
            case _:
                status, sentence = HTTPStatus.INTERNAL_SERVER_ERROR, UNEXPECTED
        failures.add(request.method, request.url.path, status, sentence, admitted, kind)
        return answer(status, sentence, headers)

    # MemoryError by name: of `Exception`, Starlette logs a traceback too.
    for kind in (errors.ClickmaskError, RequestValidationError, HTTPException, MemoryError, Exception):
        app.add_exception_handler(kind, failed)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of all routes at this path; Starlette's own answer names those of the first route alone."""

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.routes)

    return ", ".join(filter(is_allowed, METHODS))
