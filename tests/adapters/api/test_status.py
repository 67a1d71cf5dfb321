"""What an administrator reads in /v1/status when something is wrong."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clickmask.errors import StoreUnavailable
from clickmask.ingest import reader
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.waiting import until

EVENT = {"action": "PROJECT_UPDATED", "project": {"id": 1}}


def client_of(folder: Path) -> tuple[Home, TestClient]:
    home = Home(Settings(home=folder, segmenter="contours"))
    return home, TestClient(create_app(home), "http://127.0.0.1:9090", client=("127.0.0.1", 5000))


def troubles(client: TestClient) -> Any:
    answer = client.get("/v1/status")
    assert answer.status_code == 200, answer.text
    return answer.json()["troubles"]


def test_a_server_that_is_well_has_no_troubles(tmp_path: Path) -> None:
    _, client = client_of(tmp_path)
    with client:
        assert troubles(client) == {"now": [], "damaged": [], "reader_failures": 0}


def test_what_was_set_aside_is_said_until_it_is_moved_away(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"no database")
    (tmp_path / "models").write_bytes(b"no folder")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "1.json").write_bytes(b"{")
    _, client = client_of(tmp_path)
    with client:
        found = troubles(client)
    assert [each["name"] for each in found["damaged"]] == ["models", "store.sqlite"]
    assert "`clickmask pull TOOL PROJECT`" in found["damaged"][1]["sentence"]
    (said,) = found["now"]
    assert "the job 1.json of an earlier version cannot be read" in said
    assert [path.name for path in tmp_path.glob("jobs-imported-*/*")] == ["1.json"]
    _, client = client_of(tmp_path)
    with client:
        assert [each["name"] for each in troubles(client)["damaged"]] == ["models", "store.sqlite"]


def test_the_status_is_told_while_the_store_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: object) -> None:
        raise StoreUnavailable("the database cannot be used just now")

    monkeypatch.setattr(reader, "MIN_PAUSE_S", 0.01)
    home, client = client_of(tmp_path)
    with client:
        monkeypatch.setattr(home.store, "read_to", away)
        assert client.post("/webhook", json=EVENT).json() == {"status": "kept"}, "the inbox keeps it"
        until(lambda: troubles(client)["reader_failures"] > 1)
        status = client.get("/v1/status").json()
        assert status["troubles"]["now"] == [
            "events wait in the inbox: the database cannot be used just now",
            "the database cannot be used just now",
        ]
        assert (status["intake"], status["inbox"]) == (None, 1)


def test_no_webhook_is_answered_kept_while_events_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MIN_PAUSE_S", 0.01)
    home, client = client_of(tmp_path)
    with client:
        with sqlite3.connect(tmp_path / "inbox.sqlite") as other:
            other.execute("ALTER TABLE events RENAME TO elsewhere")
        other.close()
        home.inbox.arrived.set()
        until(lambda: troubles(client)["now"] != [])
        answer = client.post("/webhook", json=EVENT)
        assert answer.status_code == 503
        assert "the inbox cannot be read" in answer.json()["error"]
