"""The description at /v1/openapi.json is complete, and says what the server really answers."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from clickmask.images.archive import ImageArchive
from clickmask.masks.rle import rle_to_mask
from clickmask.training import supervisor
from clickmask.types import Prediction, Prompt
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.server import authentication
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import WEBHOOK
from clickmask_adapters.tools.label_studio import bodies as label_studio
from support import CONTRACTS
from support.drawn import scene
from support.drawn_projects import accept_drawings
from support.labelled import PROJECT, TOOL
from support.pictures import png_base64, to_base64
from support.waiting import until

jsonschema = pytest.importorskip("jsonschema")

SECRET, SIGNING = "the server's own secret", "CVAT's secret"
TOKEN = {"Authorization": "Bearer the server's own secret"}
DISC, DRAWN = "clickmask-disc", "clickmask-detect-drawn"


@pytest.fixture
def home(workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """With a project of two images; trainings do nothing."""
    worker = (sys.executable, "-c", "import sys; sys.stdin.read()")
    monkeypatch.setitem(supervisor.Supervisor.__init__.__kwdefaults__, "worker", worker)
    kept = ImageArchive(tmp_path / "images", 2**24, lambda digest: True)
    accept_drawings(workbench.store, kept, 2)
    own = {"token": SECRET, "cvat_webhook_secret": SIGNING, "cvat_direct_function": DISC}
    return Home(Settings(home=tmp_path, **own), workbench)


@pytest.fixture
def app(home: Home) -> FastAPI:
    return create_app(home)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000), headers=TOKEN) as client:
        yield client


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def test_every_operation_says_what_it_does_takes_and_answers(app: FastAPI) -> None:
    described = app.openapi()
    tags = {tag["name"] for tag in described["tags"] if tag["description"]}
    for method, path, operation in operations(described):
        assert operation["summary"] and operation["description"], path
        assert set(operation["tags"]) <= tags and operation["tags"], path
        assert all(each["description"] for each in operation.get("parameters", [])), path
        for status, answer in operation["responses"].items():
            assert answer["description"] not in ("", "Successful Response"), path
            if method != "HEAD" and status != "304":
                assert all(each["schema"] for each in answer["content"].values()), path
                assert int(status) < 400 or "Error" in str(answer["content"]), path
        assert {"403", "421", "500"} <= operation["responses"].keys(), path
        assert ("401" in operation["responses"]) == (path != "/health"), path
        if method not in ("GET", "HEAD"):
            assert {"400", "408", "413", "415", "503"} <= operation["responses"].keys(), path
        assert "requestBody" not in operation or any(examples(described, operation)), path
    assert "HTTPValidationError" not in str(described)


def test_nothing_is_left_out(app: FastAPI) -> None:
    described = {(method, path) for method, path, _ in operations(app.openapi())}
    assert len(described) == 36
    assert {("GET", "/"), ("POST", "/"), ("POST", "/predict"), ("HEAD", "/health")} < described


def examples(described: dict[str, Any], operation: dict[str, Any]) -> Iterator[Any]:
    """Of the body, given beside its type or in it."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    yield from (each["value"] for each in content.get("examples", {}).values())
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    yield from described["components"]["schemas"].get(name, {}).get("examples", [])


def signed(body: bytes) -> dict[str, str]:
    return {"X-Signature-256": "sha256=" + hmac.new(SIGNING.encode(), body, hashlib.sha256).hexdigest()}


class Checked:
    """The server, each answer of which is held against the description, without a word more than that."""

    def __init__(self, client: TestClient, described: dict[str, Any]) -> None:
        self._client, self._described = client, described
        self.answered: set[tuple[str, str]] = set()
        components = json.loads(json.dumps(described["components"]))
        for schema in components["schemas"].values():
            if schema.get("properties"):
                schema.setdefault("additionalProperties", False)
        self._components = components

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200, **named: str) -> Any:
        headers = {"X-Nuclio-Function-Name": named.pop("function", ""), **named.pop("headers", {})}
        raw = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if raw is not None:
            headers = {"Content-Type": "application/json"} | signed(raw) | headers
        url = path.format(**{"tool": TOOL, "project": PROJECT} | named)
        answer = self._client.request(method, url + named.pop("query", ""), content=raw, headers=headers)
        assert answer.status_code == status, (method, path, answer.text[:300])
        told = self._described["paths"][path][method.lower()]["responses"][str(status)]
        if method != "HEAD":
            kind = answer.headers["content-type"]
            schema = told["content"][kind]["schema"]
            if kind == "application/json":
                whole = {**schema, "components": self._components}
                jsonschema.Draft202012Validator(whole).validate(answer.json())
            assert set(answer.headers) & {"retry-after", "www-authenticate"} <= {
                name.lower() for name in told.get("headers", {})
            }
        if answer.is_success:
            self.answered.add((method, path))
        return answer


def accepted_proposal(label: dict[str, Any]) -> tuple[str, str, Prompt, Prediction]:
    """What came before the label: the same mask, from a click."""
    mask = rle_to_mask(label["rle"])
    return "accepted", label["image"], Prompt(((1, 1),)), Prediction(mask, 0.9, "disc")


@pytest.fixture
def ask(client: TestClient, app: FastAPI) -> Checked:
    return Checked(client, app.openapi())


def test_the_examples_of_bodies_are_answered(ask: Checked, app: FastAPI) -> None:
    described, sent = app.openapi(), 0
    for method, path, operation in operations(described):
        for example in examples(described, operation):
            if "annotator" in example:
                example["annotator"] = "drawn"  # the one here that needs no weights
            body = json.dumps(example).replace("builtin", "disc").encode()
            answers = [int(status) for status in operation["responses"] if status < "300"]
            status = 200 if "ping" in example.values() else min(answers) if path != WEBHOOK else 202
            ask(method, path, body, status, function=DISC)
            sent += 1
    assert sent == 15


def test_what_is_answered_is_what_is_described(
    ask: Checked, app: FastAPI, home: Home, workbench: Workbench
) -> None:
    for package in ("safetensors", "torch"):
        pytest.importorskip(package)
    picture = {"data": to_base64(scene().pixels)}
    prompt = {"foreground": [[60, 60]]}
    ask("POST", "/v1/proposals", {"image": picture, "prompt": prompt})
    ask("POST", "/v1/proposals", {"image": picture, "prompt": {"box": [5, 5, 75, 55]}, "want": []})
    ask("POST", "/v1/annotations", {"image": picture, "annotator": "drawn", "min_iou": 1})
    ask("POST", "/v1/images", {"image": picture})
    for path in ("segmenters", "annotators", "projects"):
        ask("GET", f"/v1/{path}")
    of = "/v1/projects/{tool}/{project}"
    page = ask("GET", f"{of}/labels", query="?all_annotations=true&limit=3").json()
    assert len(page["labels"]) == 3
    workbench.store.remember_proposal(*accepted_proposal(page["labels"][0]))
    for path in ("stats", "assist", "segmenters"):
        ask("GET", f"{of}/{path}")
    ask("GET", f"{of}/export/{{name}}", name="coco", query="?polygons=exact")
    drafts: Any = pytest.importorskip("support.model_drafts")  # needs onnx
    models = home.models.of(TOOL, PROJECT)
    for weight in (2.0, 3.0):
        models.promote(models.save(drafts.measured_draft(weight)).id)
    for path in ("report", "versions"):
        ask("GET", f"{of}/{path}")
    ask("POST", f"{of}/rollback")
    job = ask("POST", f"{of}/train", status=202).json()["job"]
    ask("GET", "/v1/jobs/{id}", id=job)
    ask("DELETE", "/v1/jobs/{id}", id=job)
    drawn = {"category": "disc", "geometry": {"kind": "rectangle", "box": [5, 5, 75, 55]}}
    ask("POST", f"{of}/labels", {"key": "1", "image": picture, "name": "a.png", "labels": [drawn]})
    ask("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": int(PROJECT)}}, 202)
    for method in ("GET", "HEAD"):
        for path in ("/", "/status", "/health", "/static/{name}"):
            ask(method, path, name="playground.js")
    ask("POST", "/setup", {"project": "1.5"})
    ask("GET", "/versions")
    ask("POST", "/predict", label_studio.CLICKED)
    functions = ask("GET", "/api/functions").json()
    for name in functions:
        ask("GET", "/api/functions/{name}", name=name)
    clicked = {"image": picture["data"], "pos_points": [[60, 60]]}
    ask("POST", "/", clicked)
    ask("POST", "/", clicked, headers={"User-Agent": "CVAT/2.73.0 python-requests/2.33.1"})
    ask("POST", "/api/function_invocations", {"image": picture["data"]}, function=DRAWN)
    ask("POST", WEBHOOK, {"event": "ping"})
    accepted = json.loads((CONTRACTS / "cvat" / "webhook_job_accepted.json").read_text())
    ask("POST", WEBHOOK, accepted["request"]["body"], 202)  # no CVAT can be asked for its labels
    until(lambda: ask("GET", "/v1/status").json()["intake"]["newest_set_aside"], 20)
    assert ask.answered == {(method, path) for method, path, _ in operations(app.openapi())}


def test_failures_are_described_and_are_sentences(
    ask: Checked, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "MAX_DELAY_S", 0.0)  # of answers to wrong secrets
    picture, prompt = {"data": png_base64()}, {"foreground": [[40, 30]]}
    click = {"image": picture, "prompt": prompt}
    unknown = {"Authorization": "Bearer wrong"}
    proposals, of = "/v1/proposals", "/v1/projects/{tool}/{project}"
    ask("POST", proposals, {**click, "image": {"url": "http://127.0.0.1/"}}, 403)
    ask("POST", proposals, {**click, "image": {"digest": "0"}}, 410)
    ask("POST", proposals, {**click, "segmenter": "none"}, 404)
    ask("POST", proposals, {**click, "image": {}}, 400)
    ask("POST", proposals, {**click, "prompt": {}}, 422)
    ask("POST", proposals, {**click, "min_iou": "0.5"}, 422)
    ask("POST", proposals, {**click, "prompt": {"foreground": [["40", True]]}}, 422)
    ask("POST", proposals, {**click, "max_points": "9"}, 422)
    ask("POST", proposals, b"{", 422)
    ask("POST", proposals, b"{}", 415, headers={"Content-Type": "text/plain"})
    ask("POST", proposals, b"", 413, headers={"Content-Length": "9" * 12})
    ask("POST", proposals, click, 403, headers={"Origin": "https://example.com"})
    for method, path, operation in operations(app.openapi()):
        if operation.get("security") is None and path != "/health":
            ask(method, path, None, 401, headers=unknown, name="coco", id="1")
    ask("GET", f"{of}/labels", None, 404, project="8")
    ask("GET", f"{of}/labels", None, 422, query="?limit=0")
    ask("GET", f"{of}/labels", None, 422, query=f"?offset={10**20}")
    ask("GET", f"{of}/export/{{name}}", None, 404, name="none")
    ask("GET", f"{of}/export/{{name}}", None, 400, name="png", query="?polygons=exact")
    ask("GET", "/api/functions/{name}", None, 404, name="none")
    ask("POST", "/api/function_invocations", {"image": picture["data"]}, 404, function="none")
    ask("POST", "/", {"image": "no image"}, 422)
    ask("POST", WEBHOOK, {"event": "ping"}, 401, headers={"X-Signature-256": "sha256=0"})
    ask("POST", WEBHOOK, {"event": 1}, 400)
    ask("POST", "/predict", {}, 400)
    ask("GET", "/v1/jobs/{id}", None, 404, id="none")
    ask("GET", "/static/{name}", None, 404, name="none")
    ask("POST", f"{of}/rollback", None, 404)  # nothing was trained


def test_another_method_is_refused_with_all_that_there_are(client: TestClient) -> None:
    for path, allowed in (("/v1/jobs/1", "DELETE, GET"), ("/health", "GET, HEAD"), ("/v1/proposals", "POST")):
        answer = client.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json() == {"error": "Method Not Allowed"}
