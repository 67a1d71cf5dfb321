from __future__ import annotations

import inspect

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from clickmask import errors
from clickmask_adapters.server import failures

ALL_ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_has_a_status_of_its_own(kind: type[errors.ClickmaskError]) -> None:
    assert kind in failures.STATUS


def app_that_raises(error: Exception) -> tuple[TestClient, failures.RecentFailures]:
    app, recent = FastAPI(), failures.RecentFailures()
    failures.install(app, recent)

    @app.get("/click")
    def click() -> None:
        raise error

    return TestClient(app, raise_server_exceptions=False), recent


def test_an_error_becomes_its_status_and_its_sentence() -> None:
    client, recent = app_that_raises(errors.TooLarge("the image is too large"))
    answer = client.get("/click")
    assert (answer.status_code, answer.json()) == (413, {"error": "the image is too large"})
    (failure,) = recent.all()
    assert (failure.method, failure.path, failure.status) == ("GET", "/click", 413)
    assert failure.error == "the image is too large"


def test_a_failed_request_leaves_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", failures.log.name)
    client, recent = app_that_raises(errors.TooLarge("the image is too large"))
    client.get("/click?token=hush")
    recent.add("GET", "/nowhere\n2026-01-01\x1b[2J\u2028", 404, "Not Found")
    recent.add("GET", "/wp-login", 401, "this server has a secret")
    assert [(each.levelname, each.getMessage()) for each in caplog.records if "failures" in each.name] == [
        ("WARNING", "GET /click: 413, the image is too large"),
        ("WARNING", "GET /nowhere?2026-01-01?[2J?: 404, Not Found"),
        ("INFO", "GET /wp-login: 401, this server has a secret"),  # strangers can be refused without end
    ]


def test_busy_says_when_to_come_again() -> None:
    client, _ = app_that_raises(errors.Busy("full", retry_after=2.5))
    answer = client.get("/click")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


def test_what_nobody_expected_is_never_shown() -> None:
    client, recent = app_that_raises(RuntimeError("/home/me/secret-token"))
    answer = client.get("/click")
    assert (answer.status_code, answer.json()) == (500, {"error": failures.UNEXPECTED})
    assert "secret" not in str(recent.all())


def test_an_unknown_path_is_a_sentence_too() -> None:
    client, recent = app_that_raises(RuntimeError())
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert recent.all()[0].status == 404


def test_the_newest_fifty_are_kept() -> None:
    recent = failures.RecentFailures()
    for number in range(60):
        recent.add("GET", f"/{number}", 404, "x" * 1000)
    assert [failure.path for failure in recent.all()] == [f"/{number}" for number in range(59, 9, -1)]
    assert len(recent.all()[0].error) == 500


def test_strangers_at_the_door_push_out_nothing_that_an_annotator_met() -> None:
    recent = failures.RecentFailures()
    recent.add("POST", "/predict", 422, "the image is damaged")
    for number in range(200):
        recent.add("GET", f"/wp-login-{number}", 401, "this server has a secret")
        recent.add("POST", "/webhooks/cvat", 413, "too large")
    kept = recent.all()
    assert len(kept) == 11
    assert (kept[0].status, kept[-1].error) == (413, "the image is damaged")


def test_an_image_that_is_refused_is_not_a_stranger() -> None:
    client, recent = app_that_raises(errors.Refused("a private network"))
    client.get("/click")
    for _ in range(20):
        recent.add("GET", "/", 403, "only this machine is served")
    assert recent.all()[-1].error == "a private network"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_is_said_whatever_library_finds_it(error: Exception) -> None:
    client, _ = app_that_raises(error)
    answer = client.get("/click")
    assert answer.status_code == 503
    assert answer.json()["error"] == f"clickmask {errors.NEEDS_MEMORY}"


def test_other_errors_are_no_lack_of_memory() -> None:
    try:
        raise ValueError("a bad box") from KeyError("memory")
    except ValueError as error:
        assert not errors.is_out_of_memory(error)
