"""The webhook under what CVAT sends, forged and broken deliveries, and through the gate."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask.errors import InvalidRequest
from clickmask.ingest.inbox import Inbox
from clickmask.labels.submissions import AnnotationDeleted, TaskDeleted
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.server import failures
from clickmask_adapters.server.gate import MAX_SIGNED_BODY, Gate
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat import WEBHOOK, routes
from clickmask_adapters.tools.cvat.labels import JobJudged, is_accepted, meaning, timestamp
from support import CONTRACTS

RECORDED = CONTRACTS / "cvat"
DELIVERIES = sorted(path.stem.removeprefix("webhook_") for path in RECORDED.glob("webhook_*.json"))
SECRET = "s3cret with ümlauts"
STRANGER = "203.0.113.9"


def delivery(name: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"webhook_{name}.json").read_text())["request"]["body"]


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Signature-256": f"sha256={digest}", "Content-Type": "application/json"}


def client(workbench: Workbench, address: str = STRANGER, **configuration: Any) -> TestClient:
    """The route behind the gate, for a caller that nothing else admits."""
    app = FastAPI()
    recent = failures.RecentFailures()
    failures.install(app, recent)
    configured = Settings(**configuration)
    app.include_router(routes.router(workbench, configured, 0.98))
    app.add_middleware(Gate, settings=configured, recent=recent, signed_paths={WEBHOOK})
    return TestClient(app, "http://unknown-name:9090", client=(address, 5000), raise_server_exceptions=False)


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLICKMASK_TOKEN", "CLICKMASK_TRUSTED_NETWORKS", "CVAT_WEBHOOK_SECRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[None, "the server's own secret"], ids=["open", "with a token"])
def http(workbench: Workbench, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    with client(workbench, cvat_webhook_secret=SECRET, token=request.param) as http:
        yield http


# --- deliveries


def test_a_delivery_is_not_answered_with_success_before_it_is_on_the_disk(
    http: TestClient, inbox: Inbox
) -> None:
    """CVAT delivers it again, then."""
    inbox._writer.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'full'); END")
    body = json.dumps(delivery(next(name for name in DELIVERIES if name != "ping"))).encode()
    assert http.post(WEBHOOK, content=body, headers=signed(body)).status_code == 503
    assert inbox.count() == 0


@pytest.mark.parametrize("name", [name for name in DELIVERIES if name != "ping"])
def test_a_signed_delivery_is_in_the_inbox_when_it_is_answered(
    http: TestClient, inbox: Inbox, name: str
) -> None:
    body = json.dumps(delivery(name)).encode()
    answer = http.post(WEBHOOK, content=body, headers=signed(body))
    assert answer.status_code == 202
    (event,) = inbox.events()
    assert (event.source, event.body) == ("cvat", body)


def test_a_ping_is_answered_and_not_kept(http: TestClient, inbox: Inbox) -> None:
    body = json.dumps(delivery("ping")).encode()
    assert http.post(WEBHOOK, content=body, headers=signed(body)).status_code == 200
    assert inbox.count() == 0


def test_the_signature_is_over_the_bytes_and_not_over_what_they_mean(http: TestClient, inbox: Inbox) -> None:
    event = delivery("job_accepted")
    sent, same_meaning = json.dumps(event).encode(), json.dumps(event, indent=1).encode()
    assert http.post(WEBHOOK, content=same_meaning, headers=signed(sent)).status_code == 401
    assert inbox.count() == 0


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        "sha256=" + "0" * 64,
        "sha1=" + hmac.new(SECRET.encode(), b"{}", hashlib.sha1).hexdigest(),
        hmac.new(
            SECRET.encode(), b'{"event": "update:job"}', hashlib.sha256
        ).hexdigest(),  # without its scheme
        signed(b'{"event": "update:job"}', "another secret")["X-Signature-256"],
        signed(b'{"event": "update:job"}', "")["X-Signature-256"],
        b"sha256=\xff\xfe\x00\xe4",
        "sha256=" + "é" * 64,
    ],
    ids=str,
)
def test_a_forged_signature_is_refused(http: TestClient, inbox: Inbox, header: str | bytes | None) -> None:
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
    if header is not None:
        headers.append((b"x-signature-256", header if isinstance(header, bytes) else header.encode()))
    answer = http.post(WEBHOOK, content=b'{"event": "update:job"}', headers=headers)
    assert answer.status_code == 401
    assert "CVAT_WEBHOOK_SECRET" in answer.json()["error"]
    assert inbox.count() == 0


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return True

    monkeypatch.setattr(routes.hmac, "compare_digest", compare)
    routes.require_signature(b"secret", b"{}", "sha256=given")
    assert compared == [(routes.signature(b"secret", b"{}").encode(), b"sha256=given")]


@pytest.mark.parametrize("unset", [{}, {"cvat_webhook_secret": ""}], ids=["unset", "empty"])
def test_without_a_secret_every_webhook_is_refused_with_a_sentence(
    workbench: Workbench, inbox: Inbox, unset: dict[str, str]
) -> None:
    body = json.dumps(delivery("job_accepted")).encode()
    with client(workbench, **unset) as http:
        for headers in (signed(body), signed(body, "")):
            answer = http.post(WEBHOOK, content=body, headers=headers)
            assert answer.status_code == 403
            assert "CVAT_WEBHOOK_SECRET" in answer.json()["error"]
    assert inbox.count() == 0


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b'{"event": 3}', b"{}", b'"event"', b"\xff"], ids=str
)
def test_a_signed_body_that_is_no_event_is_refused(http: TestClient, inbox: Inbox, body: bytes) -> None:
    answer = http.post(WEBHOOK, content=body, headers=signed(body))
    assert answer.status_code == 400
    assert inbox.count() == 0


# --- the gate


def test_the_gate_opens_for_this_path_and_no_other(workbench: Workbench) -> None:
    with client(workbench, cvat_webhook_secret=SECRET, token="secret") as http:
        body = b'{"event": "ping"}'
        assert http.post(WEBHOOK, content=body, headers=signed(body)).status_code == 200
        for path in (f"{WEBHOOK}/", "/webhooks/other", "//webhooks/cvat", "/v1/status", "/webhook"):
            assert http.post(path, content=body, headers=signed(body)).status_code == 401, path
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
            assert http.request(method, WEBHOOK, headers=signed(b"")).status_code == 401, method


def test_a_stranger_may_not_send_much(workbench: Workbench, inbox: Inbox) -> None:
    with client(workbench, cvat_webhook_secret=SECRET) as http:
        for body in (b" " * (MAX_SIGNED_BODY + 1), iter([b" " * MAX_SIGNED_BODY, b"{}"])):
            headers = {"Content-Type": "application/json", "X-Signature-256": "sha256="}
            assert http.post(WEBHOOK, content=body, headers=headers).status_code == 413
        fits = b'{"event": "update:job"' + b" " * 1000_000 + b"}"
        assert http.post(WEBHOOK, content=fits, headers=signed(fits)).status_code == 202
    assert inbox.count() == 1


def test_a_page_in_a_browser_may_not_post_a_webhook(workbench: Workbench) -> None:
    body = b'{"event": "ping"}'
    with client(workbench, cvat_webhook_secret=SECRET) as http:
        headers = {**signed(body), "Origin": "https://evil.example"}
        assert http.post(WEBHOOK, content=body, headers=headers).status_code == 403


def test_the_application_lets_a_signed_webhook_in(workbench: Workbench, inbox: Inbox, tmp_path: Path) -> None:
    configured = Settings.model_validate({"home": tmp_path, "token": "s", "cvat_webhook_secret": SECRET})
    body = json.dumps(delivery("job_accepted")).encode()
    with TestClient(create_app(Home(configured, workbench)), client=(STRANGER, 5000)) as http:
        assert http.post(WEBHOOK, content=body, headers=signed(body)).status_code == 202
        assert http.post(WEBHOOK, content=body, headers=signed(body, "wrong")).status_code == 401
        assert http.get("/api/functions", headers=signed(b"")).status_code == 401


# --- what they mean


def test_trap_18_a_saved_job_is_not_an_accepted_one() -> None:
    assert meaning(delivery("job_saved")) is None


def test_a_job_that_is_completed_is_accepted() -> None:
    assert meaning(delivery("job_accepted")) == JobJudged(3, 1795370131.709655)


def test_a_save_after_the_acceptance_makes_the_job_dirty_again() -> None:
    accepted, saved = meaning(delivery("job_accepted")), meaning(delivery("job_saved_after_acceptance"))
    assert isinstance(saved, JobJudged)
    assert isinstance(accepted, JobJudged)
    assert saved.updated_at > accepted.updated_at


def test_a_repeated_delivery_means_the_same() -> None:
    assert meaning(delivery("job_accepted")) == meaning(json.loads(json.dumps(delivery("job_accepted"))))


def test_a_job_that_is_rejected_withdraws_what_was_accepted_once() -> None:
    event = delivery("job_reopened")
    event["job"]["state"] = "rejected"
    assert meaning(event) == JobJudged(3, timestamp(event["job"]))
    event["changes"] = {"updated_date": event["changes"]["updated_date"]}  # its annotator mends and saves
    assert meaning(event) is None


@pytest.mark.parametrize("name", ["job_reopened", "ping"])
def test_what_is_no_acceptance_means_nothing(name: str) -> None:
    assert meaning(delivery(name)) is None


def test_what_is_deleted_is_withdrawn() -> None:
    assert meaning(delivery("job_deleted")) == AnnotationDeleted("cvat", "3")
    assert meaning(delivery("task_deleted")) == TaskDeleted("cvat", "3")


@pytest.mark.parametrize(
    ("stage", "state", "accepted"),
    [
        ("annotation", "new", False),
        ("annotation", "in progress", False),
        ("annotation", "completed", True),  # the annotator's word, where nobody reviews
        ("validation", "new", False),
        ("validation", "completed", True),
        ("acceptance", "new", True),  # the UI sets the state back (cvat-ai/cvat#7206)
        ("acceptance", "completed", True),
        ("acceptance", "rejected", False),
        ("annotation", "rejected", False),
        (None, None, False),
    ],
)
def test_stage_and_state_together_say_what_is_accepted(
    stage: str | None, state: str | None, accepted: bool
) -> None:
    assert is_accepted({"stage": stage, "state": state}) is accepted


def test_an_older_cvat_says_what_changed_in_before_update_alone() -> None:
    event = delivery("job_accepted")
    del event["changes"]
    assert meaning(event) == meaning(delivery("job_accepted"))
    saved = delivery("job_saved_after_acceptance")
    del saved["changes"]
    assert meaning(saved) == meaning(delivery("job_saved_after_acceptance"))


@pytest.mark.parametrize("date", [None, 3, "", "yesterday", "2026-13-01T00:00:00Z"])
def test_a_job_without_a_date_is_refused(date: object) -> None:
    with pytest.raises(InvalidRequest):
        timestamp({"updated_date": date})
    with pytest.raises(InvalidRequest):
        timestamp({})


@pytest.mark.parametrize("number", [None, "3", True, 3.0, [3]])
def test_a_job_without_a_number_is_refused(number: object) -> None:
    event = delivery("job_accepted")
    event["job"]["id"] = number
    with pytest.raises(InvalidRequest):
        meaning(event)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@pytest.mark.parametrize("changes", [[], [1], "state", 3])
def test_changes_that_are_no_object_name_no_change(changes: object) -> None:
    event = delivery("job_accepted")
    rejected = {**event, "job": {**event["job"], "state": "rejected"}}
    assert isinstance(meaning(rejected), JobJudged)
    assert meaning({**rejected, "changes": changes, "before_update": None}) is None


@settings(deadline=None)
@given(
    event=st.dictionaries(st.sampled_from(["event", "job", "task", "changes"]), JSON),
    name=st.sampled_from(["update:job", "delete:job", "delete:task", "update:task", ""]),
)
def test_broken_events_are_refused_or_mean_nothing(event: dict[str, Any], name: str) -> None:
    try:
        assert meaning({**event, "event": name}) is None
    except InvalidRequest:
        assert name in {"update:job", "delete:job", "delete:task"}
