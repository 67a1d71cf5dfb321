"""A stand-in for CVAT 2.73: answers the API calls that clickmask makes, as the contract shows them.

The shapes of the answers are checked by cvat-sdk's own models (tests/adapters/tools/cvat/test_client.py).
`cd tests && python -m support.cvat_server --port 9320 --nuclio http://127.0.0.1:9090` serves one to try
things by hand.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import io
import itertools
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import PIL.Image
import requests

TOKEN = "a-personal-access-token"
USER = {"url": "http://cvat/api/users/1", "id": 1, "username": "annotator", "first_name": "", "last_name": ""}
Row = dict[str, Any]
Answer = tuple[int, object]


class CvatServer:
    """Rows in memory, at `url`. `nuclio` is where its models are, as CVAT_NUCLIO_HOST says.

    Beside `Bearer TOKEN` it takes basic auth of annotator:password. `asked` remembers method, path
    with query, and the Authorization header of each request.
    """

    def __init__(self, port: int = 0, nuclio: str | None = None) -> None:
        self.nuclio = nuclio
        self.invoke_method = "dashboard"
        self.asked: list[tuple[str, str, str | None]] = []
        self.projects: dict[int, Row] = {}
        self.tasks: dict[int, Row] = {}
        self.labels: dict[int, Row] = {}
        self.jobs: dict[int, Row] = {}
        self.annotations: dict[int, Row] = {}
        self.metas: dict[int, Row] = {}
        self.images: dict[tuple[int, int], bytes] = {}
        self.hooks: dict[int, Row] = {}
        self.secrets: dict[int, str] = {}
        self.deliveries: list[Row] = []
        self._now = datetime(2026, 11, 22, 17, 55, tzinfo=UTC)
        self._ids = itertools.count(100)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _answers_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    # --- what is in it

    def add_project(
        self, number: int, labels: tuple[str, ...] = ("cat", "dog"), organization: int | None = None
    ) -> None:
        self.projects[number] = {
            "url": f"{self.url}/api/projects/{number}",
            "id": number,
            "name": f"project {number}",
            "owner": USER,
            "assignee": None,
            "guide_id": None,
            "bug_tracker": "",
            "created_date": self.tick(),
            "updated_date": self.tick(),
            "status": "annotation",
            "dimension": "2d",
            "organization": organization,
            "target_storage": None,
            "source_storage": None,
            "tasks": {"url": f"{self.url}/api/tasks?project_id={number}", "count": 0},
            "labels": {"url": f"{self.url}/api/labels?project_id={number}"},
            "task_subsets": [],
            "assignee_updated_date": None,
        }
        self._add_labels(labels, project_id=number, task_id=None)

    def add_job(
        self,
        number: int,
        project: int | None = 1,
        *,
        frames: list[bytes] | None = None,
        first: int = 0,
        names: list[str] | None = None,
        **fields: Any,
    ) -> Row:
        """A job of its own task, whose number is ten times the job's."""
        task = number * 10
        pictures = frames if frames is not None else [picture()]
        if project is None:
            self._add_labels(("cat", "dog"), project_id=None, task_id=task)
        self.tasks[task] = {"id": task, "name": f"task {task}", "project_id": project}
        last = first + len(pictures) - 1
        self.jobs[number] = {
            "url": f"{self.url}/api/jobs/{number}",
            "id": number,
            "task_id": task,
            "project_id": project,
            "assignee": USER,
            "guide_id": None,
            "dimension": "2d",
            "media_type": "image",
            "bug_tracker": "",
            "status": "annotation",
            "stage": "annotation",
            "state": "new",
            "mode": "annotation",
            "frame_count": len(pictures),
            "start_frame": first,
            "stop_frame": last,
            "data_chunk_size": 36,
            "data_compressed_chunk_type": "imageset",
            "data_original_chunk_type": "imageset",
            "created_date": self.tick(),
            "updated_date": self.tick(),
            "issues": {"url": f"{self.url}/api/issues?job_id={number}", "count": 0},
            "labels": {"url": f"{self.url}/api/labels?job_id={number}"},
            "type": "annotation",
            "organization": None,
            "target_storage": None,
            "source_storage": None,
            "assignee_updated_date": None,
            "parent_job_id": None,
            "consensus_replicas": 0,
            **fields,
        }
        sizes = [PIL.Image.open(io.BytesIO(raw)).size for raw in pictures]
        written = names or [f"images/{number}/frame_{frame}.png" for frame in range(first, last + 1)]
        self.metas[number] = {
            "chunks_updated_date": self.tick(),
            "chunk_size": 36,
            "size": len(pictures),
            "image_quality": 70,
            "start_frame": first,
            "stop_frame": last,
            "frame_filter": "",
            "frames": [
                {
                    "name": name,
                    "width": width,
                    "height": height,
                    "related_files": 0,
                    "has_related_context": False,
                }
                for name, (width, height) in zip(written, sizes, strict=True)
            ],
            "deleted_frames": [],
            "included_frames": None,
            "chapters": None,
            "storage": "local",
            "cloud_storage_id": None,
        }
        for frame, raw in enumerate(pictures, first):
            self.images[number, frame] = raw
        self.annotations[number] = {"version": 0, "tags": [], "shapes": [], "tracks": []}
        return self.jobs[number]

    def draw(self, job: int, kind: str, points: list[float], **fields: Any) -> Row:
        """A shape as the API gives it back: every number a float."""
        shape = {
            "type": kind,
            "occluded": False,
            "outside": False,
            "z_order": 0,
            "rotation": 0.0,
            "points": [float(point) for point in points],
            "id": next(self._ids),
            "frame": self.jobs[job]["start_frame"],
            "label_id": fields.get("label_id") or self.label_id("cat", job),
            "group": 0,
            "source": "manual",
            "score": 1.0,
            "attributes": [],
            "elements": [],
            **fields,
        }
        self.annotations[job]["shapes"].append(shape)
        return shape

    def draw_track(self, job: int, keyframes: list[Row], **fields: Any) -> Row:
        track = {
            "id": next(self._ids),
            "frame": keyframes[0]["frame"],
            "label_id": fields.get("label_id") or self.label_id("dog", job),
            "group": 0,
            "source": "manual",
            "attributes": [],
            "elements": [],
            "shapes": [
                {
                    "type": "rectangle",
                    "occluded": False,
                    "outside": False,
                    "z_order": 0,
                    "rotation": 0.0,
                    "id": next(self._ids),
                    "attributes": [],
                    **keyframe,
                }
                for keyframe in keyframes
            ],
            **fields,
        }
        self.annotations[job]["tracks"].append(track)
        return track

    def label_id(self, name: str, job: int) -> int:
        return next(label["id"] for label in self._labels_of_job(job) if label["name"] == name)

    def update_job(self, number: int, **changes: Any) -> Row:
        """What a PATCH or a save does: a new date, and the event for it, which is returned."""
        job = self.jobs[number]
        before = {name: job[name] for name in [*changes, "updated_date"]}
        job |= {**changes, "updated_date": self.tick()}
        event = {
            "event": "update:job",
            "job": dict(job),
            "before_update": before,
            "changes": {name: {"from": old, "to": job[name]} for name, old in before.items()},
            "sender": USER,
        }
        for hook in self.hooks.values():
            if (
                hook["is_active"]
                and hook["project_id"] == job["project_id"]
                and "update:job" in hook["events"]
            ):
                self.deliver(hook["id"], {**event, "webhook_id": hook["id"]})
        return event

    def complete(self, number: int) -> Row:
        return self.update_job(number, stage="acceptance", state="completed", status="completed")

    def save(self, number: int) -> Row:
        return self.update_job(number)

    def deliver(self, hook: int, event: Row) -> Row:
        body = json.dumps(event).encode()
        digest = hmac.new(self.secrets.get(hook, "").encode(), body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "User-Agent": "CVAT/2.73.0 python-requests/2.33.1"}
        if self.secrets.get(hook):
            headers["X-Signature-256"] = f"sha256={digest}"
        try:
            answer = requests.post(
                self.hooks[hook]["target_url"], data=body, headers=headers, timeout=(3, 10)
            )
            status, said = answer.status_code, answer.text
        except requests.RequestException as error:
            status, said = 502, str(error)
        self.deliveries.append(
            {
                "id": next(self._ids),
                "webhook_id": hook,
                "event": event["event"],
                "status_code": status,
                "redelivery": False,
                "created_date": self.tick(),
                "updated_date": self.tick(),
                "changed_fields": ",".join(event.get("before_update", {})),
                "request": event,
                "response": said,
            }
        )
        return self.deliveries[-1]

    def tick(self) -> str:
        self._now += timedelta(seconds=1)
        return self._now.isoformat().replace("+00:00", "Z")

    def _add_labels(self, names: tuple[str, ...], **where: Any) -> None:
        for name in names:
            number = next(self._ids)
            self.labels[number] = {
                "id": number,
                "name": name,
                "color": "#fa3253",
                "attributes": [],
                "type": "any",
                "sublabels": [],
                "parent_id": None,
                "has_parent": False,
                **{key: value for key, value in where.items() if value is not None},
            }

    def _labels_of_job(self, number: int) -> list[Row]:
        job = self.jobs[number]
        name = "task_id" if job["project_id"] is None else "project_id"
        return [label for label in self.labels.values() if label.get(name) == job[name]]

    # --- its API

    def answer(self, method: str, path: str, query: dict[str, str], body: Row) -> Answer:
        number = next((int(part) for part in path.split("/") if part.isdigit()), 0)
        match method, re.sub(r"/\d+", "/N", path.rstrip("/")):
            case "GET", "/api/server/about":
                about = {
                    "name": "CVAT",
                    "description": "a stand-in",
                    "version": "2.73.0",
                    "logo_url": "",
                    "subtitle": "",
                }
                return 200, about
            case "GET", "/api/projects/N":
                return _found(self.projects, number)
            case "GET", "/api/tasks/N":
                return _found(self.tasks, number)
            case "GET", "/api/jobs/N":
                return _found(self.jobs, number)
            case "GET", "/api/jobs/N/data/meta":
                return _found(self.metas, number)
            case "GET", "/api/jobs/N/annotations":
                return _found(self.annotations, number)
            case "PATCH", "/api/jobs/N/annotations" if number in self.jobs:
                return self._create(number, query, body)
            case "GET", "/api/jobs/N/data":
                raw = self.images.get((number, int(query["number"])))
                assert (query["type"], query["quality"]) == ("frame", "original")
                return (200, raw) if raw else (404, {"detail": "Not found."})
            case "GET", "/api/jobs":
                return self._listed("/api/jobs", self._filtered_jobs(query), query)
            case "GET", "/api/labels":
                return self._listed("/api/labels", self._filtered_labels(query), query)
            case "GET", "/api/webhooks":
                rows = [row for row in self.hooks.values() if row["project_id"] == int(query["project_id"])]
                return self._listed("/api/webhooks", rows, query)
            case "GET", "/api/lambda/functions":
                return self._functions()
            case "POST", _ if path.startswith("/api/lambda/functions/"):
                return self._invoke(path.rpartition("/")[2], body)
            case _, _ if path.startswith("/api/webhooks"):
                return self._change_webhook(method, path, number, body)
            case _:
                return 404, {"detail": "Not found."}

    def _create(self, job: int, query: dict[str, str], body: Row) -> Answer:
        """All of the shapes or none, as one transaction stores them; and the save's new date."""
        assert query == {"action": "create"}
        labels = {label["id"] for label in self._labels_of_job(job)}
        shapes = body["shapes"]
        if any(shape["label_id"] not in labels for shape in shapes):
            return 400, {"shapes": ["label_id: not of this task"]}
        for shape in shapes:
            assert self.jobs[job]["start_frame"] <= shape["frame"] <= self.jobs[job]["stop_frame"]
            fields = {name: value for name, value in shape.items() if name not in {"type", "points"}}
            self.draw(job, shape["type"], shape["points"], **fields)
        self.save(job)
        return 200, self.annotations[job]

    def _filtered_jobs(self, query: dict[str, str]) -> list[Row]:
        assert query.get("sort", "updated_date") == "updated_date"
        rows = sorted(self.jobs.values(), key=lambda row: (row["updated_date"], row["id"]))
        for rule in json.loads(query.get("filter", '{"and": []}'))["and"]:
            ((operator, (variable, wanted)),) = rule.items()
            name = variable["var"]
            assert operator in {"==", ">="}, rule
            rows = [row for row in rows if (row[name] == wanted if operator == "==" else row[name] >= wanted)]
        return rows

    def _filtered_labels(self, query: dict[str, str]) -> list[Row]:
        if "job_id" in query:
            return self._labels_of_job(int(query["job_id"]))
        name = "project_id" if "project_id" in query else "task_id"
        return [label for label in self.labels.values() if label.get(name) == int(query[name])]

    def _listed(self, path: str, rows: list[Row], query: dict[str, str]) -> Answer:
        page, size = int(query.get("page", 1)), int(query.get("page_size", 10))
        shown = rows[(page - 1) * size : page * size]
        if page > 1 and not shown:
            return 404, {"detail": "Invalid page."}
        more = page * size < len(rows)
        # Behind a proxy CVAT may name itself by another address: it must never be followed.
        following = f"http://elsewhere.example{path}?page={page + 1}" if more else None
        return 200, {"count": len(rows), "next": following, "previous": None, "results": shown}

    def _change_webhook(self, method: str, path: str, number: int, body: Row) -> Answer:
        if "target_url" in body and not _is_url(body["target_url"]):
            return 400, {"target_url": ["Enter a valid URL."]}
        if method == "POST" and path == "/api/webhooks":
            number = next(self._ids)
            self.hooks[number] = {
                "url": f"{self.url}/api/webhooks/{number}",
                "id": number,
                "type": "project",
                "description": "",
                "content_type": "application/json",
                "is_active": True,
                "enable_ssl": True,
                "created_date": self.tick(),
                "updated_date": self.tick(),
                "owner": USER,
                "organization": None,
            }
        elif number not in self.hooks:
            return 404, {"detail": "Not found."}
        elif method == "DELETE":
            del self.hooks[number]
            return 204, b""
        elif path.endswith("/ping"):
            event = {"event": "ping", "webhook": self.hooks[number], "sender": USER}
            return 200, self.deliver(number, event)
        if "secret" in body:
            self.secrets[number] = body["secret"]
        self.hooks[number] |= {name: value for name, value in body.items() if name != "secret"}
        return (201 if method == "POST" else 200), self.hooks[number]

    def _functions(self) -> Answer:
        answer = self._ask_nuclio("GET", "/api/functions", {})
        if isinstance(answer, tuple):
            return answer
        return 200, [
            {"id": name, "kind": function["metadata"]["annotations"]["type"], "name": name, "version": 2}
            for name, function in answer.json().items()
        ]

    def _invoke(self, function: str, body: Row) -> Answer:
        if self.invoke_method == "direct":
            host = (
                "HTTPConnectionPool(host='host.docker.internal', port=8070): Max retries exceeded with url: /"
            )
            return 503, f"{host} (NameResolutionError)"
        job = self.jobs[body["job"]]
        raw = self.images[job["id"], body["frame"]]
        sent = {
            "image": base64.b64encode(raw).decode(),
            "pos_points": body["pos_points"],
            "neg_points": body["neg_points"],
            "obj_bbox": body["obj_bbox"],
        }
        known = self._ask_nuclio("GET", f"/api/functions/{function}", {})
        if isinstance(known, tuple):
            return known
        headers = {"x-nuclio-function-name": function, "x-nuclio-path": "/"}
        answer = self._ask_nuclio("POST", "/api/function_invocations", headers, sent)
        return answer if isinstance(answer, tuple) else (200, answer.json())

    def _ask_nuclio(
        self, method: str, path: str, headers: dict[str, str], body: Row | None = None
    ) -> requests.Response | Answer:
        own = {"User-Agent": "CVAT/2.73.0 python-requests/2.33.1", "x-nuclio-project-name": "cvat"}
        try:
            answer = requests.request(
                method, f"{self.nuclio}{path}", headers=own | headers, json=body, timeout=120
            )
        except requests.RequestException as error:
            return 503, str(error)
        if not answer.ok:
            return (
                answer.status_code,
                f"{answer.status_code} Client Error: {answer.reason} for url: {answer.url}",
            )
        return answer


def picture(shade: int = 40, size: tuple[int, int] = (60, 80)) -> bytes:
    """A PNG: a light square on grey, so that a click in the middle finds something."""
    pixels = np.full((*size, 3), shade, np.uint8)
    pixels[15:45, 20:60] = 200
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, "png")
    return raw.getvalue()


def _found(rows: dict[int, Row], number: int) -> Answer:
    return (200, rows[number]) if number in rows else (404, {"detail": "Not found."})


def _is_url(text: str) -> bool:
    """As Django's URLValidator, which CVAT asks: localhost, an address, or a name with a dot, without "_"."""
    host = urlsplit(text).hostname or ""
    named = re.fullmatch(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]\.?", host)
    return host == "localhost" or ":" in host or bool(named or re.fullmatch(r"\d+(?:\.\d+){3}", host))


def _answers_of(cvat: CvatServer) -> type[BaseHTTPRequestHandler]:
    basic = "Basic " + base64.b64encode(b"annotator:password").decode()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization = self.headers.get("Authorization")
            cvat.asked.append((self.command, self.path, authorization))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path != "/api/server/about" and authorization not in {f"Bearer {TOKEN}", basic}:
                self.send(401, {"detail": "Authentication credentials were not provided."})
                return
            self.send(*cvat.answer(self.command, parts.path, query, json.loads(body or b"{}")))

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

        def send(self, status: int, body: object) -> None:
            kind = (
                "image/png"
                if isinstance(body, bytes)
                else "text/plain"
                if isinstance(body, str)
                else "application/vnd.cvat+json"
            )
            raw = (
                body
                if isinstance(body, bytes)
                else body.encode()
                if isinstance(body, str)
                else json.dumps(body).encode()
            )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("X-Cvat-Version", "2.73.0")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_request(self, *_: object) -> None:
            pass

    return Answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9320)
    parser.add_argument("--nuclio", default="http://127.0.0.1:9090")
    arguments = parser.parse_args()
    server = CvatServer(arguments.port, arguments.nuclio)
    server.add_project(1)
    for job in (1, 2, 3):
        server.add_job(job, frames=[picture(10 * job), picture(10 * job + 5)])
        server.draw(job, "rectangle", [20, 15, 60, 45])
    print(f"a stand-in for CVAT: {server.url}, token {TOKEN}; Enter completes the next job", flush=True)
    for job in itertools.count(1):
        try:
            input()
        except EOFError:
            threading.Event().wait()
        if job in server.jobs:
            server.complete(job)
            print([(row["event"], row["status_code"]) for row in server.deliveries], flush=True)
