"""An answer in JSON, as every route of ours writes it."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from fastapi import Response


def json_response(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """`content` may hold NumPy's arrays and numbers; it is not validated, as FastAPI's own answers are."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")
