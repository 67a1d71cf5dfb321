"""Connecting a project of the stand-in CVAT, which really posts its webhooks and asks for its models."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from clickmask.errors import ImageUnavailable
from clickmask.types import ImageRef
from clickmask_adapters.cli import app
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools.cvat import Cvat
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.connect import EVENTS, connect
from clickmask_adapters.tools.cvat.routes import signature
from support.cvat_server import TOKEN, CvatServer

SECRET = "not to be said"
INTERACTOR = {"metadata": {"annotations": {"type": "interactor"}}}


class Clickmask:
    """Stands for the server that is connected: models, clicks and the webhook, with the secret `secret`."""

    def __init__(self) -> None:
        self.secret: str | None = SECRET
        self.models: dict[str, Any] = {"clickmask-disc": INTERACTOR, "other": INTERACTOR}
        self.clicks: list[dict[str, Any]] = []
        us = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(
                    200, us.models[self.path.rpartition("/")[2]] if self.path.count("/") > 2 else us.models
                )

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/api/function_invocations":
                    us.clicks.append(json.loads(body))
                    self.send(200, {"shapes": []})
                elif us.secret is None:
                    self.send(403, {})
                else:
                    right = self.headers.get("X-Signature-256") == signature(us.secret.encode(), body)
                    self.send(200 if right else 401, {})

            def send(self, status: int, body: object) -> None:
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_request(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def clickmask() -> Iterator[Clickmask]:
    server = Clickmask()
    yield server
    server.close()


@pytest.fixture
def cvat(clickmask: Clickmask) -> Iterator[CvatServer]:
    server = CvatServer(nuclio=clickmask.url)
    server.add_project(1)
    server.add_job(3)
    yield server
    server.close()


def sentences(cvat: CvatServer, url: str, secret: str | None = SECRET) -> str:
    client = CvatClient(cvat.url, f"Bearer {TOKEN}")
    return "\n".join(connect(client, "1", f"{url}/", secret, read=lambda ref: None))


def test_a_new_project_gets_its_webhook_and_is_looked_at_from_both_sides(
    cvat: CvatServer, clickmask: Clickmask
) -> None:
    said = sentences(cvat, clickmask.url)
    (hook,) = cvat.hooks.values()
    assert hook["target_url"] == f"{clickmask.url}/webhooks/cvat"
    assert (hook["type"], hook["project_id"], hook["is_active"]) == ("project", 1, True)
    assert hook["enable_ssl"] is False
    assert set(hook["events"]) == set(EVENTS)
    assert list(cvat.secrets.values()) == [SECRET]
    assert "takes its signature" in said
    assert "CVAT lists clickmask's interactors: clickmask-disc." in said
    assert "click through CVAT on frame 0 of job 3" in said
    assert clickmask.clicks[0]["pos_points"] == [[40, 30]]
    assert "clickmask reads frame 0 of job 3" in said
    assert "docker exec cvat_worker_annotation printenv CVAT_NUCLIO_INVOKE_METHOD" in said
    assert SECRET not in said


def test_connecting_again_changes_nothing(cvat: CvatServer, clickmask: Clickmask) -> None:
    sentences(cvat, clickmask.url)
    before = {number: dict(hook) for number, hook in cvat.hooks.items()}
    cvat.asked.clear()
    assert "is there already" in sentences(cvat, clickmask.url)
    assert cvat.hooks == before
    assert {method for method, path, _ in cvat.asked if "webhooks" in path and "ping" not in path} == {"GET"}


def test_what_was_made_by_hand_is_mended(cvat: CvatServer, clickmask: Clickmask) -> None:
    client = CvatClient(cvat.url, f"Bearer {TOKEN}")
    url = f"{clickmask.url}/webhooks/cvat"
    common = {
        "type": "project",
        "project_id": 1,
        "events": ["update:task"],
        "secret": "old",
        "enable_ssl": False,
    }
    client.add_webhook({**common, "target_url": "http://elsewhere.example/"}, None)
    client.add_webhook({**common, "target_url": url, "is_active": False}, None)
    client.add_webhook({**common, "target_url": f"{url}/"}, None)
    said = sentences(cvat, clickmask.url)
    elsewhere, ours = cvat.hooks.values()
    assert elsewhere["events"] == ["update:task"]
    assert "was there twice" in said
    assert "was mended: is active, events" in said
    assert ours["is_active"] is True
    assert set(ours["events"]) == {"update:task", *EVENTS}
    assert cvat.secrets[ours["id"]] == SECRET


def test_an_address_with_a_slash_too_many_is_mended(cvat: CvatServer, clickmask: Clickmask) -> None:
    sentences(cvat, clickmask.url)
    (hook,) = cvat.hooks.values()
    hook["target_url"] += "/"
    assert "was mended: target url." in sentences(cvat, clickmask.url)
    assert hook["target_url"] == f"{clickmask.url}/webhooks/cvat"


def test_a_secret_that_is_right_is_never_replaced_by_a_wrong_one(
    cvat: CvatServer, clickmask: Clickmask
) -> None:
    sentences(cvat, clickmask.url)
    sentences(cvat, clickmask.url, "typed wrongly this time")
    assert list(cvat.secrets.values()) == [SECRET]


def test_a_new_secret_of_the_server_reaches_cvat(cvat: CvatServer, clickmask: Clickmask) -> None:
    sentences(cvat, clickmask.url)
    clickmask.secret = "a newer one"
    assert "had another secret; it was set again" in sentences(cvat, clickmask.url, "a newer one")
    assert list(cvat.secrets.values()) == ["a newer one"]


def test_the_webhook_of_an_organizations_project_is_added_in_it(
    cvat: CvatServer, clickmask: Clickmask
) -> None:
    cvat.projects[1]["organization"] = 5
    sentences(cvat, clickmask.url)
    assert any(method == "POST" and path == "/api/webhooks?org_id=5" for method, path, _ in cvat.asked)


@pytest.mark.parametrize("secret", [None, ""])
def test_without_a_secret_nothing_is_done(cvat: CvatServer, clickmask: Clickmask, secret: str | None) -> None:
    with pytest.raises(ToolError, match="set CVAT_WEBHOOK_SECRET"):
        sentences(cvat, clickmask.url, secret)
    assert not cvat.hooks


@pytest.mark.parametrize(
    ("theirs", "said"), [("another", "has another CVAT_WEBHOOK_SECRET"), (None, "has no CVAT_WEBHOOK_SECRET")]
)
def test_a_server_with_another_secret_is_told_from_one_without(
    cvat: CvatServer, clickmask: Clickmask, theirs: str | None, said: str
) -> None:
    clickmask.secret = theirs
    with pytest.raises(ToolError, match=said):
        sentences(cvat, clickmask.url)


def test_a_webhook_that_does_not_arrive_is_said_with_smokescreen(cvat: CvatServer) -> None:
    with pytest.raises(
        ToolError, match=r"does not reach clickmask at http://127\.0\.0\.1:1 .*SMOKESCREEN_OPTS"
    ):
        sentences(cvat, "http://127.0.0.1:1")


def test_a_webhook_that_smokescreen_refuses_is_said(
    cvat: CvatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = {"status_code": 407, "response": "denied by rule 'Deny: Private Range'"}
    monkeypatch.setattr(CvatClient, "ping_webhook", lambda *_: got)
    with pytest.raises(
        ToolError, match=r"\(status 407\): CVAT's smokescreen blocks private addresses"
    ) as caught:
        sentences(cvat, "http://10.0.0.5:9090")
    assert str(caught.value).endswith("It got: denied by rule 'Deny: Private Range'")
    monkeypatch.setitem(got, "response", "<html>a page of a proxy</html>")
    with pytest.raises(ToolError, match=r"\(status 407\)") as caught:
        sentences(cvat, "http://10.0.0.5:9090")
    assert "a page" not in str(caught.value)


def test_a_webhook_that_may_not_be_made_is_said(cvat: CvatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise ToolError("CVAT answers 403: no permission", 403)

    monkeypatch.setattr(CvatClient, "add_webhook", refused)
    with pytest.raises(ToolError, match=r"accepted labels never arrive by themselves: CVAT answers 403"):
        sentences(cvat, "http://10.0.0.5:9090")


@pytest.mark.parametrize("host", ["nuclio", "clickmask", "cvat_clickmask.internal"])
def test_a_host_that_cvat_refuses_is_said_with_those_that_it_takes(cvat: CvatServer, host: str) -> None:
    advice = r"target_url: Enter a valid URL\.; CVAT takes no host without a dot"
    with pytest.raises(ToolError, match=advice):
        sentences(cvat, f"http://{host}:8070")
    assert not cvat.hooks


def test_cvat_takes_the_default_address(cvat: CvatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CvatServer, "deliver", lambda *_: {"status_code": 200})
    assert f"The webhook {Cvat.default_our_url}/webhooks/cvat was added" in sentences(
        cvat, Cvat.default_our_url
    )


def test_models_that_cvat_does_not_reach_are_said(cvat: CvatServer, clickmask: Clickmask) -> None:
    cvat.nuclio = "http://127.0.0.1:1"
    with pytest.raises(ToolError, match=r"does not reach clickmask for clicks.*CVAT_NUCLIO_HOST"):
        sentences(cvat, clickmask.url)


def test_another_server_behind_cvat_is_said(cvat: CvatServer, clickmask: Clickmask) -> None:
    del clickmask.models["clickmask-disc"]
    with pytest.raises(ToolError, match="another server answers"):
        sentences(cvat, clickmask.url)


def test_trap_1_a_server_that_invokes_directly_is_said_with_how_to_see_it(
    cvat: CvatServer, clickmask: Clickmask
) -> None:
    cvat.invoke_method = "direct"
    with pytest.raises(ToolError, match=r"printenv CVAT_NUCLIO_INVOKE_METHOD") as caught:
        sentences(cvat, clickmask.url)
    assert "CVAT_NUCLIO_INVOKE_METHOD=dashboard for cvat_server and cvat_worker_annotation" in str(
        caught.value
    )


def test_a_project_without_jobs_connects(cvat: CvatServer, clickmask: Clickmask) -> None:
    del cvat.jobs[3]
    assert "no job with a frame yet" in sentences(cvat, clickmask.url)


def test_a_frame_that_cannot_be_read_is_said(cvat: CvatServer, clickmask: Clickmask) -> None:
    def read(ref: ImageRef) -> object:
        raise ImageUnavailable("cvat answered 404")

    client = CvatClient(cvat.url, f"Bearer {TOKEN}")
    with pytest.raises(ToolError, match="cannot read frame 0 of job 3: cvat answered 404"):
        list(connect(client, "1", clickmask.url, SECRET, read))


# --- the command


def test_the_command_says_what_it_does(cvat: CvatServer, clickmask: Clickmask) -> None:
    environment = {"CVAT_URL": cvat.url, "CVAT_ACCESS_TOKEN": TOKEN, "CVAT_WEBHOOK_SECRET": SECRET}
    result = CliRunner().invoke(
        app, ["connect", "cvat", "1", "--clickmask-url", clickmask.url], env=environment
    )
    assert result.exit_code == 0, result.output
    assert "clickmask reads frame 0 of job 3." in result.output


def test_the_command_ends_with_a_sentence_where_it_fails(cvat: CvatServer) -> None:
    environment = {"CVAT_URL": cvat.url, "CVAT_ACCESS_TOKEN": "wrong", "CVAT_WEBHOOK_SECRET": SECRET}
    result = CliRunner().invoke(app, ["connect", "cvat", "1"], env=environment)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "refuses the credentials" in result.output
