"""What schemathesis cannot draw from the description: pictures, the annotator that is there, signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st

from support.drawn import scene
from support.pictures import png_base64, to_base64

schemathesis.openapi.format("byte", st.sampled_from([png_base64(), png_base64(0), to_base64(scene().pixels)]))


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """The examples' annotator needs weights, their segmenter seconds; no random name is an annotator's."""
    asked = raw_schema["components"]["schemas"]["AnnotationsIn"]
    asked["examples"][0]["annotator"] = "drawn"
    asked["properties"]["annotator"]["enum"] = ["drawn", "none"]
    raw_schema["paths"] = json.loads(json.dumps(raw_schema["paths"]).replace("builtin", "disc"))


class Signed(requests.auth.AuthBase):
    """CVAT's webhooks carry no secret: their bodies are signed."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else body
        digest = hmac.new(os.environ["SIGNING_SECRET"].encode(), raw, hashlib.sha256).hexdigest()
        request.headers["X-Signature-256"] = f"sha256={digest}"
        return request


class Secret(requests.auth.AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {os.environ['SERVER_SECRET']}"
        return request


schemathesis.auth.set_from_requests(Signed()).apply_to(path="/webhooks/cvat")
schemathesis.auth.set_from_requests(Secret()).skip_for(path="/webhooks/cvat")
