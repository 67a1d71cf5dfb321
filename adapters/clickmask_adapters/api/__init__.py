"""clickmask's own HTTP API, under /v1/."""

from http import HTTPStatus

import orjson
from fastapi import Response


def json_response(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """`content` as JSON. It may hold NumPy arrays, and is not validated as FastAPI's answers are."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")
