"""What FastAPI cannot read off the routes, for the description at /v1/openapi.json: who is let in, and every
answer that is an error. Routes of plugins are described like all others."""

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from itertools import chain
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter

from clickmask import errors
from clickmask_adapters.server.failures import STATUS, UNEXPECTED
from clickmask_adapters.tools import Tool

Responses = dict[int | str, dict[str, Any]]
Json = dict[str, Any]

ABOUT = """Clicks and boxes become masks.

Coordinates are pixels of the upright (EXIF-transposed) image, from the outer corner of its top-left pixel, x
to the right, y down. Sizes are height, width; points x, y; boxes x0, y0, x1, y1. Masks are COCO's compressed
run lengths, polygons lists of points without a repeated first one.

With CLICKMASK_TOKEN, every request carries that secret, but labeling tools in CLICKMASK_TRUSTED_NETWORKS call
their own paths without it. Without it, only the server's own machine is let in, and needs no secret. Every
failure is a sentence, as JSON and as the reason phrase of the status line.
"""
TAGS: tuple[Json, ...] = (
    {"name": "masks", "description": "Images and prompts become masks, whole images become objects."},
    {"name": "labels", "description": "What annotators accepted, counted, measured and exported."},
    {"name": "training", "description": "Models of projects: trained, measured, served, rolled back."},
    {"name": "server", "description": "How the server is doing."},
    {"name": "pages", "description": "For people with a browser."},
)
PATH = "/v1/openapi.json"
REF = "#/components/schemas/{model}"
ERROR: Json = {
    "title": "Error",
    "description": "Every answer with a status of 400 or more.",
    "type": "object",
    "properties": {"error": {"type": "string", "description": "One sentence for people."}},
    "required": ["error"],
    "additionalProperties": False,
}
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer SECRET`"},
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Authorization: Token SECRET`, as Label Studio's own clients write it",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "User `clickmask` (CLICKMASK_USERNAME), password SECRET",
    },
}
RETRY_AFTER: Json = {
    "Retry-After": {
        "description": "Seconds after which the same request may succeed; absent if waiting does not help",
        "schema": {"type": "integer", "minimum": 0},
    }
}
HEADERS: Mapping[int, Json] = {
    HTTPStatus.UNAUTHORIZED: {
        "WWW-Authenticate": {
            "description": "Asks for basic auth; not with a wrong signature",
            "schema": {"type": "string"},
        }
    },
    HTTPStatus.TOO_MANY_REQUESTS: RETRY_AFTER,
    HTTPStatus.SERVICE_UNAVAILABLE: RETRY_AFTER,
}
# A light square on dark ground, 64x48 px, base64.
EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwCAAAAACEICPDAAAAOUlEQVR42mO0YaAMMDGMGjBqwLAwgAWbYA8OxSWjgThqwKgBowaMGjDcDWAcbSO"
    "NGjBqAAMDAwMDAPr2AdktfzRqAAAAAElFTkSuQmCC"
)
IMAGE_ERRORS = (
    errors.InvalidRequest,
    errors.Refused,
    errors.Gone,
    errors.TooLarge,
    errors.InvalidInput,
    errors.ImageUnavailable,
    errors.Busy,
)
BUSY = "Too many requests are at work already."
# Answers of the gate, see `server.gate`.
AT_THE_DOOR: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "The secret is missing or wrong.",
    HTTPStatus.FORBIDDEN: "There is no secret, and the caller is not this machine.",
    HTTPStatus.MISDIRECTED_REQUEST: "The Host header names another server.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many wrong secrets came from the caller's address.",
    HTTPStatus.INTERNAL_SERVER_ERROR: f"A fault of clickmask: {UNEXPECTED}.",
}
WITH_A_BODY: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "The request broke off.",
    HTTPStatus.FORBIDDEN: "A page of another origin asks.",
    HTTPStatus.REQUEST_TIMEOUT: "The request did not come to its end in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than CLICKMASK_MAX_BODY_BYTES.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not sent as application/json.",
    HTTPStatus.SERVICE_UNAVAILABLE: BUSY,
}
INVALID = "A parameter or a part of the body is missing, unknown or of the wrong kind."


def tag(tool: Tool) -> Json:
    """The tag of a labeling tool's routes, described by the first line of the tool's module."""
    module = inspect.getdoc(sys.modules[type(tool).__module__]) or ""
    return {"name": tool.name, "description": module.partition("\n")[0]}


def raises(*kinds: type[errors.ClickmaskError]) -> Responses:
    """FastAPI's `responses` of a route that raises these errors. A route without any is described as one
    that may raise all."""
    found: Responses = {}
    for kind in (errors.Failed, *kinds):
        sentence = inspect.getdoc(kind) or ""
        entry = found.setdefault(int(STATUS[kind]), {"description": sentence})
        if sentence not in entry["description"]:
            entry["description"] += f" {sentence}"
    return found


def body_of(model: Any, *examples: Json) -> Json:
    """FastAPI's `openapi_extra` of a route that reads its JSON itself: as in `model`, a pydantic type."""
    schema = TypeAdapter(model).json_schema(ref_template=REF)
    named = {f"example {number}": {"value": each} for number, each in enumerate(examples, 1)}
    content = {"schema": schema} | ({"examples": named} if named else {})
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def install(app: FastAPI) -> None:
    """Serve the description that `app` makes of itself, completed, at PATH. It is made when it is first asked
    for, which takes 0.2 s, in a thread of the pool; FastAPI's own route would stop everyone."""
    generate: Callable[[], Json] = app.openapi
    made: Json = {}
    making = threading.Lock()

    def openapi() -> Json:
        with making:
            if not made:
                made.update(complete(generate()))
        return made

    app.openapi = openapi

    @app.get(PATH, include_in_schema=False)
    def description() -> Response:
        return JSONResponse(openapi())


def complete(description: Json) -> Json:
    """`description` with security, every operation's errors, and the types of bodies that routes read."""
    components = description.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    components["securitySchemes"] = SECURITY | components.get("securitySchemes", {})
    description["security"] = [{name: []} for name in SECURITY]
    for method, operation in chain.from_iterable(path.items() for path in description["paths"].values()):
        _complete_answers(method, operation)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schemas |= content["schema"].pop("$defs", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's, which `failures` replaces
        schemas.pop(name, None)
    components["schemas"] = dict(sorted((schemas | {"Error": ERROR}).items()))
    return description


def _complete_answers(method: str, operation: Json) -> None:
    answers: Json = operation["responses"]
    if may_be_invalid := "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]  # FastAPI documents one even if every parameter is a text of the path
        kinds = {(each["in"], each["schema"].get("type")) for each in operation.get("parameters", [])}
        may_be_invalid = "requestBody" in operation or not kinds <= {("path", "string")}
    for answer in answers.values():
        if answer["description"] == "Successful Response":
            answer["description"] = operation["summary"]
    given = {status: answers.pop(status) for status in list(answers) if status.isdigit() and status >= "400"}
    own = {int(status): each["description"] for status, each in given.items()}
    told = [own or {int(status): each["description"] for status, each in raises(*STATUS).items()}]
    if may_be_invalid:
        told.append({HTTPStatus.UNPROCESSABLE_ENTITY: INVALID})
    told += [AT_THE_DOOR] if method in ("get", "head") else [WITH_A_BODY, AT_THE_DOOR]
    statuses = {int(status) for each in told for status in each}
    if operation.get("security") == []:
        statuses -= {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS} - own.keys()
    for status in sorted(statuses):
        sentences = dict.fromkeys(each[status] for each in told if status in each)
        answer = {"headers": HEADERS[status]} if status in HEADERS else {}
        if method != "head":
            answer["content"] = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}
        answers[str(status)] = answer | given.get(str(status), {}) | {"description": " ".join(sentences)}
