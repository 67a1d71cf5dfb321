"""One table from errors to HTTP statuses, and the last failures, kept for those who run the server."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from types import MappingProxyType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from clickmask import errors
from clickmask_adapters.reason_phrases import HEADER, reason

STATUS: Mapping[type[errors.ClickmaskError], HTTPStatus] = MappingProxyType(
    {
        errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
        errors.InvalidPrompt: HTTPStatus.UNPROCESSABLE_ENTITY,
        errors.InvalidImage: HTTPStatus.UNPROCESSABLE_ENTITY,
        errors.ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        errors.ImageRefused: HTTPStatus.FORBIDDEN,
        errors.ImageUnknown: HTTPStatus.GONE,
        errors.ImageUnavailable: HTTPStatus.BAD_GATEWAY,
        errors.ToolUnavailable: HTTPStatus.BAD_GATEWAY,
        errors.UnknownSegmenter: HTTPStatus.NOT_FOUND,
        errors.SegmenterNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.UnknownAnnotator: HTTPStatus.NOT_FOUND,
        errors.AnnotatorNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.UnknownModel: HTTPStatus.NOT_FOUND,
        errors.TrainingNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.UnknownJob: HTTPStatus.NOT_FOUND,
        errors.ModelDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
        errors.WeightsUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.UnknownProject: HTTPStatus.NOT_FOUND,
        errors.OriginRefused: HTTPStatus.CONFLICT,
        errors.NotStored: HTTPStatus.INSUFFICIENT_STORAGE,
        errors.Busy: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.ExportFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
        errors.ExportTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        errors.ClickmaskError: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)
UNEXPECTED = "something went wrong inside clickmask; its log has the details"


@dataclass(frozen=True)
class Failure:
    at: str  # ISO 8601, UTC
    method: str
    path: str
    status: int
    error: str


class RecentFailures:
    """The last 50 failed requests, newest first. The tools' own pages show nothing when a click fails."""

    def __init__(self, kept: int = 50) -> None:
        self._lock = threading.Lock()
        self._failures: deque[Failure] = deque(maxlen=kept)

    def add(self, method: str, path: str, status: int, error: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            self._failures.appendleft(Failure(at, method, path[:200], status, error[:500]))

    def all(self) -> list[Failure]:
        with self._lock:
            return list(self._failures)


def status_of(error: errors.ClickmaskError) -> HTTPStatus:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The sentence as JSON, and as the reason phrase."""
    return JSONResponse({"error": error}, status, {**(headers or {}), HEADER: reason(error)})


def install(app: FastAPI, failures: RecentFailures) -> None:
    """Turn every error of a route into a status and a sentence: never a traceback, path or token."""

    def failed(
        request: Request, status: int, error: str, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        failures.add(request.method, request.url.path, status, error)
        return answer(status, error, headers)

    async def clickmask_error(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, errors.ClickmaskError):
            raise error
        retry = error.retry_after if isinstance(error, errors.Busy) else None
        headers = {"Retry-After": str(math.ceil(retry))} if retry is not None else None
        return failed(request, status_of(error), str(error), headers)

    async def validation_error(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return failed(request, HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {first['msg']}")

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise error
        return failed(request, error.status_code, str(error.detail), error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return failed(request, HTTPStatus.INTERNAL_SERVER_ERROR, UNEXPECTED)

    app.add_exception_handler(errors.ClickmaskError, clickmask_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
