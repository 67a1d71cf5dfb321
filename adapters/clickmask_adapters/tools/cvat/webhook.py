"""`POST /webhooks/cvat`: signed, durably in the inbox, answered at once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from http import HTTPStatus

import orjson
from fastapi import APIRouter, HTTPException, Request
from starlette.responses import JSONResponse

from clickmask.errors import InvalidRequest
from clickmask.workbench import Workbench
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat.events import TOOL

PATH = "/webhooks/cvat"
SECRET_VARIABLE = "CVAT_WEBHOOK_SECRET"  # noqa: S105  # its name, not its value
SIGNATURE = "X-Signature-256"

signed_paths = frozenset({PATH})


def router(workbench: Workbench, settings: Settings) -> APIRouter:
    """One route, for events that are signed with CVAT_WEBHOOK_SECRET."""
    secret = (
        settings.cvat_webhook_secret.get_secret_value().encode() if settings.cvat_webhook_secret else None
    )
    routes = APIRouter(include_in_schema=False)

    @routes.post(PATH)
    async def webhook(request: Request) -> JSONResponse:
        body = await request.body()  # its size was limited at the gate
        require_signature(secret, body, request.headers.get(SIGNATURE, ""))
        if event_name(body) == "ping":
            return JSONResponse({"status": "clickmask hears CVAT"})
        await asyncio.wrap_future(workbench.inbox.keep_soon(TOOL, body))  # on the disk: no answer before
        return JSONResponse({"status": "kept"}, HTTPStatus.ACCEPTED)

    return routes


def signature(secret: bytes, body: bytes) -> str:
    """What CVAT writes into X-Signature-256: HMAC-SHA256 over the body's bytes as they are sent."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def require_signature(secret: bytes | None, body: bytes, given: str) -> None:
    """Raise HTTPException unless `given` is the body's signature; compared in constant time."""
    if secret is None:
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            f"CVAT's webhooks are refused until {SECRET_VARIABLE} is set: to a secret of your own, the same "
            "for the server and for clickmask connect cvat",
        )
    # Starlette decodes headers as Latin-1: this is the bytes as they came.
    if not hmac.compare_digest(signature(secret, body).encode(), given.encode("latin-1")):
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            f"the webhook's signature is not that of {SECRET_VARIABLE}: run clickmask connect cvat with the "
            "server's secret",
        )


def event_name(body: bytes) -> str:
    """The event's own name. Raises InvalidRequest for what is no event."""
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the event is not JSON") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):  # pyright: ignore[reportUnknownMemberType]
        raise InvalidRequest('an event of CVAT is a JSON object with a text "event"')
    return str(event["event"])  # pyright: ignore[reportUnknownArgumentType]
