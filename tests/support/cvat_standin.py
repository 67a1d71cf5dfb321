"""CVAT's side of its functions, as read in CVAT 2.73.0 and measured against its real server.

It reads what it is sent as strictly as the real one, where a mistake of ours would do harm: a bad
description takes the list of models down, a bad shape is stored corrupt. What the real server does
silently is an error here.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from clickmask.types import Mask, Size

NAMES = re.compile(r"[a-zA-Z0-9_.-]+")  # lookup_value_regex of the view
KINDS = {"detector", "interactor", "reid", "tracker"}


class Answer(Protocol):
    status_code: int

    @property
    def content(self) -> bytes: ...


class Http(Protocol):
    """What is used of httpx.Client and of Starlette's TestClient."""

    def get(self, url: str, *, headers: dict[str, str]) -> Any: ...

    def post(self, url: str, *, content: bytes, headers: dict[str, str]) -> Any: ...


class Refused(Exception):
    """What CVAT raises for an answer that is no success: its users see the reason phrase, no body."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        super().__init__(f"{answer.status_code} {answer.reason_phrase}")


@dataclass(frozen=True)
class Model:
    """LambdaFunction of CVAT."""

    id: str
    kind: str
    name: str
    labels: list[dict[str, Any]]
    version: int
    min_pos_points: int
    min_neg_points: int
    startswith_box: bool
    startswith_box_optional: bool
    help_message: str
    description: str


@dataclass(frozen=True)
class Cvat:
    """A server of some version that calls functions over `http`, two requests a call."""

    http: Http
    version: str | None = "2.73.0"  # None: older than 2.4, which do not say
    namespace: str = "nuclio"
    extra: dict[str, str] = field(default_factory=dict)

    def models(self) -> dict[str, Model]:
        answer = self.http.get("/api/functions", headers=self._headers())
        functions = json.loads(_success(answer).content)
        assert isinstance(functions, dict), "a list is a 500 for everyone"
        models = [read_model(function) for function in functions.values()]
        assert list(functions) == [model.id for model in models]
        return {model.id: model for model in models}

    def model(self, function: str) -> Model:
        answer = self.http.get(f"/api/functions/{function}", headers=self._headers())
        return read_model(json.loads(_success(answer).content))

    def call(self, function: str, payload: dict[str, Any]) -> Any:
        """One annotator's call: the description again, then the invocation. The answer's JSON."""
        self.model(function)
        return json.loads(_success(self.invoke(function, payload)).content)

    def invoke(self, function: str, payload: dict[str, Any] | bytes) -> Any:
        """The invocation alone; the answer as it comes."""
        headers = self._headers() | {
            "x-nuclio-function-name": function,
            "x-nuclio-path": "/",
            "content-type": "application/json",
        }
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()  # as requests has it
        return self.http.post("/api/function_invocations", content=body, headers=headers)

    def click(
        self,
        function: str,
        image: bytes,
        pos_points: Sequence[Sequence[float]] = (),
        neg_points: Sequence[Sequence[float]] = (),
        obj_bbox: Sequence[Sequence[float]] | None = (),
        **more: Any,
    ) -> Any:
        payload = {
            "image": base64.b64encode(image).decode(),
            "pos_points": [list(point) for point in pos_points],
            "neg_points": [list(point) for point in neg_points],
            "obj_bbox": None if obj_bbox is None else [list(point) for point in obj_bbox],
        }
        return self.call(function, payload | more)

    def detect(self, function: str, image: bytes, threshold: float | None = None) -> list[Any]:
        payload: dict[str, Any] = {"image": base64.b64encode(image).decode()}
        if threshold:  # CVAT leaves out 0 and None
            payload["threshold"] = threshold
        return self.call(function, payload)

    def _headers(self) -> dict[str, str]:
        agent = "python-requests/2.33.1"
        return {
            "user-agent": f"CVAT/{self.version} {agent}" if self.version else agent,
            "accept-encoding": "gzip, deflate",
            "accept": "*/*",
            "connection": "keep-alive",
            "x-nuclio-project-name": "cvat",
            "x-nuclio-function-namespace": self.namespace,
            "x-nuclio-invoke-via": "domain-name",
            "x-nuclio-invoke-timeout": "120s",
        } | self.extra


def read_model(function: dict[str, Any]) -> Model:
    """As LambdaFunction.__init__ reads it; what raises there takes the whole list down."""
    metadata, annotations = function["metadata"], function["metadata"]["annotations"]
    assert NAMES.fullmatch(metadata["name"])
    assert annotations["type"] in KINDS
    labels = json.loads(annotations.get("spec") or "[]")
    names = [label["name"] for label in labels]
    assert len(set(names)) == len(names)
    assert function["status"] is not None
    return Model(
        id=metadata["name"],
        kind=annotations["type"],
        name=annotations.get("name", metadata["name"]),
        labels=labels,
        version=int(annotations.get("version", 1)),
        min_pos_points=int(annotations.get("min_pos_points", 1)),
        min_neg_points=int(annotations.get("min_neg_points", -1)),
        startswith_box=bool(annotations.get("startswith_box", False)),
        startswith_box_optional=bool(annotations.get("startswith_box_optional", False)),
        help_message=annotations.get("help_message", ""),
        description=function["spec"]["description"],
    )


def drawn_shapes(answer: Any, size: Size) -> list[tuple[Mask, float | None]]:
    """What CVAT's page since 2.60 draws of an interactor's answer: masks, with their confidence."""
    if "shapes" not in answer:
        return [(_dense(answer["mask"], size), None)]
    drawn: list[tuple[Mask, float | None]] = []
    for shape in answer["shapes"]:
        assert shape["type"] == "mask", "others are not drawn"
        confidence = None
        for attribute in shape.get("attributes", []):
            assert isinstance(attribute["value"], str) and 0 <= float(attribute["value"]) <= 1
            confidence = float(attribute["value"]) if attribute["spec_id"] == 0 else confidence
        drawn.append((_run_lengths(shape["points"], size), confidence))
    return drawn


def stored_shapes(
    answer: Any, labels: Sequence[str], size: Size, *, conv_mask_to_poly: bool = False
) -> list[dict[str, Any]]:
    """What CVAT stores of a detector's answer; each shape as label and mask, or polygon."""
    assert isinstance(answer, list), "a dict is a 500"
    height, width = size
    stored: list[dict[str, Any]] = []
    for item in answer:
        label, kind = item["label"], item["type"]
        if label not in labels:
            continue  # dropped silently
        assert kind == "mask", "nothing else is sent by clickmask"
        points = item["points"]
        if conv_mask_to_poly:
            assert len(points) >= 6 and len(points) % 2 == 0, "a 400 for the whole frame"
            xs, ys = np.array(points).reshape(-1, 2).T
            assert xs.min() >= 0 and xs.max() <= width and ys.min() >= 0 and ys.max() <= height
            stored.append({"label": label, "polygon": points, "group": item.get("group_id")})
            continue
        *flat, left, top, right, bottom = item["mask"]
        assert 0 <= left <= right < width and 0 <= top <= bottom < height, "stored silently corrupt"
        assert len(flat) == (right - left + 1) * (bottom - top + 1), "stored silently corrupt"
        assert set(flat) <= {0, 1} and any(flat), "stored as an invisible object"
        mask = np.zeros(size, bool)
        mask[top : bottom + 1, left : right + 1] = np.reshape(flat, (bottom - top + 1, -1))
        stored.append({"label": label, "mask": mask, "group": item.get("group_id")})
    return stored


def _success(answer: Any) -> Any:
    if not 200 <= answer.status_code < 300:
        raise Refused(answer)
    return answer


def _run_lengths(points: Sequence[float], size: Size) -> Mask:
    """Written apart from the codec under test, and slowly."""
    *runs, left, top, right, bottom = points
    assert 0 <= left <= right < size[1] and 0 <= top <= bottom < size[0]
    flat = [bool(index % 2) for index, run in enumerate(runs) for _ in range(int(run))]
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = np.reshape(flat, (bottom - top + 1, right - left + 1))
    return mask


def _dense(rows: Sequence[Sequence[int]], size: Size) -> Mask:
    values = np.array(rows)
    assert values.shape == size, "a cropped mask is drawn at the image's corner since 2.60"
    assert set(np.unique(values)) <= {0, 1} or set(np.unique(values)) <= {0, 255}
    return values > 0
