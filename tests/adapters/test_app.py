from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from clickmask.errors import NotFound
from clickmask.ingest.inbox import Inbox
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.server import places
from clickmask_adapters.settings import Settings
from support.fakes import DiscSegmenter
from support.pictures import png_base64
from support.waiting import until

OTHER_PATHS = {
    *("/", "/status", "/static/playground.js", "/v1/openapi.json", "/docs"),
    *("/health", "/setup", "/versions", "/predict", "/webhook", "/nowhere"),
}
CROWD = 24
CLICK = {"foreground": [[40, 30]]}


@pytest.fixture
def app(workbench: Workbench, tmp_path: Path) -> FastAPI:
    return create_app(Home(Settings(home=tmp_path), workbench))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        yield client


def click(client: TestClient, shade: int) -> Any:
    return client.post("/v1/proposals", json={"image": {"data": png_base64(shade)}, "prompt": CLICK})


def test_health_and_webhooks_wait_for_no_encode(
    client: TestClient, disc: DiscSegmenter, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("MAX_WAIT_S", "PATIENCE_S"):  # on a busy machine, too
        monkeypatch.setattr(places, patience, 60.0)
    disc.hold = threading.Event()
    with ThreadPoolExecutor(CROWD) as pool:
        clicks = [pool.submit(click, client, 7) for _ in range(CROWD)]
        until(lambda: client.get("/v1/status").json()["cache"]["misses"] == CROWD)
        assert client.get("/health").json()["status"] == "UP"
        assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 200
        assert client.post("/setup", json={"project": "1.5", "schema": ""}).status_code == 200
        assert inbox.count() == 1
        assert not any(each.done() for each in clicks)
        disc.hold.set()
        assert {each.result(10).status_code for each in clicks} == {200}
    assert len(disc.encoded) == 1


def test_a_full_queue_is_503_with_retry_after_and_shown_in_the_status(
    client: TestClient, disc: DiscSegmenter
) -> None:
    class Hold(threading.Event):
        reached = threading.Event()

        def wait(self, timeout: float | None = None) -> bool:
            self.reached.set()
            return super().wait(timeout)

    disc.hold = hold = Hold()
    with ThreadPoolExecutor(12) as pool:
        clicks = [pool.submit(click, client, 0)]
        assert hold.reached.wait(10)
        clicks += [pool.submit(click, client, shade) for shade in range(1, 10)]
        # one is encoded, four wait; the others are turned away at once
        until(lambda: sum(each.done() for each in clicks) == 5)
        for each in clicks:
            if each.done():
                assert each.result().status_code == 503
                assert int(each.result().headers["retry-after"]) > 0
        disc.hold.set()
        assert sorted(each.result(10).status_code for each in clicks) == [200] * 5 + [503] * 5
    errors = client.get("/v1/status").json()["errors"]
    assert [error["status"] for error in errors] == [503] * 5
    assert "images wait" in errors[0]["error"]


def test_all_surfaces_are_on_one_port(client: TestClient) -> None:
    assert "<title>" in client.get("/").text
    assert "<title>" in client.get("/status").text
    assert client.get("/versions").status_code == 200
    assert client.get("/v1/segmenters").status_code == 200
    assert "/v1/proposals" in client.get("/v1/openapi.json").json()["paths"]


def test_every_route_stands_behind_the_gate(app: FastAPI) -> None:
    with TestClient(app, "http://127.0.0.1:9090", client=("203.0.113.9", 5000)) as stranger:
        for path in set(app.openapi()["paths"]) | OTHER_PATHS:
            for method in ("GET", "POST", "DELETE", "OPTIONS"):
                assert stranger.request(method, path).status_code == 403


def test_the_gate_opens_to_a_trusted_network_what_the_tools_name_and_no_more(
    workbench: Workbench, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, trusted_networks="172.20.0.0/16", allowed_hosts="clickmask")
    lan = TestClient(
        create_app(Home(settings, workbench)), "http://clickmask:9090", client=("172.20.0.5", 5000)
    )
    for path in ("/health", "/setup", "/predict", "/versions", "/webhook", "/api/functions", "/webhooks/x"):
        assert lan.get(path).status_code != 403
    assert lan.post("/", json={}).status_code != 403
    for path in ("/", "/status", "/static/playground.js", "/api", "/healthy", "/v1/status"):
        assert lan.get(path).status_code == 403
    assert lan.post("/v1/proposals", json={}).status_code == 403


def test_a_default_that_is_not_installed_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="builtin"):
        create_app(Home(Settings(home=tmp_path / "home", segmenter="nothing")))
