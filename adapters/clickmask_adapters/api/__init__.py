"""clickmask's own HTTP API, under /v1/."""

from http import HTTPStatus
from typing import Annotated

import orjson
from fastapi import Path, Response
from pydantic import AfterValidator

ToolName = Annotated[
    str,
    AfterValidator(lambda name: name.replace("-", "_")),  # as the command line writes it
    Path(description="A labeling tool, by its package", examples=["label_studio"]),
]
ProjectName = Annotated[str, Path(description="The project's number in that tool", examples=["1"])]


def json_response(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """`content` as JSON. It may hold NumPy arrays, and is not validated as FastAPI's answers are."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")
