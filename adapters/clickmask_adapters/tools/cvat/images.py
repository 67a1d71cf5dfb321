"""A request's base64 image, cut out of its JSON without parsing it. Pure.

CVAT sends the original image with every click: orjson takes 13 ms for 6 MiB (8 of text), a search 0.3 ms.
"""

from __future__ import annotations

import re

from clickmask.errors import InvalidRequest
from clickmask_adapters.tools._json import Json, parse_object

IMAGE = re.compile(rb'"image"[ \t\r\n]*:[ \t\r\n]*"')


def split_image(body: bytes) -> tuple[Json, memoryview]:
    """The request, perhaps without its "image", and that image's base64. Raises InvalidRequest."""
    begin = IMAGE.search(body)
    end = body.find(b'"', begin.end()) if begin else -1
    if begin and end > begin.end() and body.find(b"\\", begin.end(), end) < 0:
        asked = parse_object(body[: begin.end()] + body[end:], "the request")
        if asked.get("image") == "":  # else this is a nested "image", not the request's own
            return asked, memoryview(body)[begin.end() : end]
    asked = parse_object(body, "the request")
    text = asked.get("image")
    if not isinstance(text, str) or not text:
        raise InvalidRequest("the request has no image")
    return asked, memoryview(text.encode())
