"""A stand-in for Label Studio's REST API, for `clickmask pull` and `prelabel`; as 1.23.2 answers."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.pictures import SIZE, png_base64

XML = (
    '<View><Image name="image" value="$image"/>'
    '<RectangleLabels name="box" toName="image"><Label value="Car"/><Label value="Road"/>'
    "</RectangleLabels></View>"
)
TOKEN = "0123456789abcdef0123456789abcdef01234567"


def rectangle(name: str, x: float = 0, label: str = "Car", **more: Any) -> dict[str, Any]:
    """A region of 8 x 6 px."""
    return {
        "id": name,
        "type": "rectanglelabels",
        "from_name": "box",
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {"x": x, "y": 0, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": [label]},
    } | more


class LabelStudioStandin:
    """One project, number 3; `tasks` by their numbers, each with its annotations.

    `pictures` are files by task, where a task has another than a grey one.
    """

    def __init__(self) -> None:
        self.url = ""
        self.xml = XML
        self.model_version = ""  # whose predictions are shown
        self.pictures: dict[int, bytes] = {}
        self.before_prediction = lambda: None  # called when one arrives, before it is kept
        self.refused: int | None = None  # the status that predictions are answered with
        self.tasks: dict[int, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.fail_after: int | None = None  # pages of tasks that are answered before it breaks down
        self._made = 0

    def add_task(self, number: int, *annotations: dict[str, Any]) -> dict[str, Any]:
        """A task with a grey picture of its own."""
        data = {"image": f"/data/upload/3/0123abcd-picture {number}.png"}
        own = {"annotations": list(annotations), "predictions": [], "drafts": [], "cancelled_annotations": 0}
        self.tasks[number] = {"id": number, "project": 3, "data": data, **own}
        return self.tasks[number]

    def annotation(self, task: int, *regions: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Made one second after the one before."""
        self._made += 1
        return {
            "id": 100 + self._made,
            "task": task,
            "result": list(regions),
            "updated_at": f"2026-11-22T17:00:{self._made:02}.5Z",
            "completed_by": 1,
            "was_cancelled": False,
            "ground_truth": False,
        } | more

    def event(self, action: str, annotation: dict[str, Any]) -> dict[str, Any]:
        """What its webhook would send of the annotation."""
        task = {
            name: value for name, value in self.tasks[annotation["task"]].items() if name != "annotations"
        }
        return {"action": action, "annotation": annotation, "task": task, "project": self.project}

    @property
    def project(self) -> dict[str, Any]:
        return {
            "id": 3, "title": "Streets", "label_config": self.xml, "model_version": self.model_version
        }  # fmt: skip

    def change(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if (method, path) == ("PATCH", "/api/projects/3/"):
            (self.model_version,) = body.values()
            made = {each["model_version"] for task in self.tasks.values() for each in task["predictions"]}
            assert self.model_version in made, "a 400: it has no such predictions"
            return 200, self.project
        if (method, path) == ("POST", "/api/predictions/"):
            self.before_prediction()
            assert body.keys() == {"task", "project", "result", "score", "model_version"}
            if self.refused:
                return self.refused, {"detail": "out of order"}
            if body["task"] not in self.tasks:
                return 400, {"detail": "Validation error"}
            self.tasks[body["task"]]["predictions"].append(body)
            return 201, body
        return 404, {"detail": "Not found."}

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path == "/api/projects/3/":
            return 200, self.project
        if path == "/api/tasks":
            return self._page(query)
        if found := re.fullmatch(r"/api/(tasks|annotations)/(\d+)/", path):
            annotations = {each["id"] for task in self.tasks.values() for each in task["annotations"]}
            known = self.tasks.keys() if found[1] == "tasks" else annotations
            return (200, {"id": int(found[2])}) if int(found[2]) in known else (404, {"detail": "Not found."})
        if found := re.search(r"picture%20(\d+)\.png", path):
            number = int(found[1])
            return 200, self.pictures.get(number) or base64.b64decode(png_base64(number))
        return 404, {"detail": "Not found."}

    def _page(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        if self.fail_after is not None:
            if not self.fail_after:
                return 500, {"detail": "out of order"}
            self.fail_after -= 1
        asked = json.loads(query["query"][0])
        above, *more = asked["filters"]["items"]
        assert (above["filter"], above["operator"]) == ("filter:tasks:id", "greater")
        assert (asked["ordering"], query["fields"], query["resolve_uri"]) == (
            ["tasks:id"],
            ["all"],
            ["false"],
        )
        rest = [task for number, task in sorted(self.tasks.items()) if number > above["value"]]
        for item in more:
            assert (item["filter"], item["operator"]) == ("filter:tasks:total_annotations", "equal")
            rest = [task for task in rest if _submitted(task) == item["value"]]
        return 200, {"total": len(rest), "tasks": rest[: int(query["page_size"][0])]}


def _submitted(task: dict[str, Any]) -> int:
    return sum(not each["was_cancelled"] for each in task["annotations"])


@contextmanager
def label_studio_standin() -> Iterator[LabelStudioStandin]:
    standin = LabelStudioStandin()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            standin.asked.append(parts.path)
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers["Authorization"] != f"Token {TOKEN}":
                status, body = 401, {"detail": "no token"}
            elif self.command != "GET":
                assert self.headers["Content-Type"] == "application/json"
                status, body = standin.change(self.command, parts.path, json.loads(sent))
            else:
                status, body = standin.answer(parts.path, parse_qs(parts.query))
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    standin.url = f"http://127.0.0.1:{server.server_port}"
    yield standin
    server.shutdown()
    server.server_close()
    thread.join()
