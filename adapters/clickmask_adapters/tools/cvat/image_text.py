"""A request's base64 image, cut out of the JSON around it without reading it. Pure.

CVAT sends the whole original image with every click. On an image of 6 MiB, whose text has 8 MiB,
orjson takes 13 ms, finding the two quotes 0.3 ms; hashing the text takes 6 ms, decoding it 42 ms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import orjson

from clickmask.errors import InvalidRequest

Json = Mapping[str, Any]

_IMAGE = re.compile(rb'"image"[ \t\r\n]*:[ \t\r\n]*"')


def split(body: bytes) -> tuple[Json, memoryview]:
    """The request, whose "image" may be left out of it, and the bytes of that image's base64.

    Raises InvalidRequest for anything but a JSON object with a text "image" that is not empty.
    """
    begin = _IMAGE.search(body)
    end = body.find(b'"', begin.end()) if begin else -1
    if begin and end > begin.end() and body.find(b"\\", begin.end(), end) < 0:
        asked = _parsed(body[: begin.end()] + body[end:])
        if asked.get("image") == "":  # else what was cut out is another "image" than the request's
            return asked, memoryview(body)[begin.end() : end]
    asked = _parsed(body)
    text = asked.get("image")
    if not isinstance(text, str) or not text:
        raise InvalidRequest("the request has no image")
    return asked, memoryview(text.encode())


def _parsed(body: bytes) -> Json:
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the request is not JSON") from error
    if not isinstance(asked, dict):
        raise InvalidRequest("the request must be a JSON object")
    return cast("Json", asked)
