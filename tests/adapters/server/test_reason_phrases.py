from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException

from clickmask_adapters.server import failures
from clickmask_adapters.server.uvicorn import MAX_REASON_CHARS, ErrorInReasonPhrase, reason
from support.waiting import until


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = FastAPI()
    failures.install(app, failures.RecentFailures())

    @app.get("/fine")
    def fine() -> str:
        return "fine"

    @app.get("/refused")
    def refused(sentence: str) -> None:
        raise HTTPException(422, sentence)

    server = uvicorn.Server(uvicorn.Config(app, http=ErrorInReasonPhrase, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        until(lambda: server.started)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def ask(port: int, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.reason, answer.read()
    connection.close()
    return found


def test_an_errors_sentence_is_its_reason_phrase(port: int) -> None:
    sentence = "point (9, 9) lies outside the 4x4 image"
    status, phrase, body = ask(port, "/refused?sentence=" + sentence.replace(" ", "%20"))
    assert (status, phrase) == (422, sentence)
    assert body == b'{"error":"%b"}' % sentence.encode()


def test_what_succeeds_keeps_its_usual_phrase(port: int) -> None:
    assert ask(port, "/fine") == (200, "OK", b'"fine"')


def test_an_empty_sentence_leaves_the_usual_phrase(port: int) -> None:
    usual = HTTPStatus(422).phrase  # Unprocessable Entity; Content from Python 3.13 on
    assert ask(port, "/refused?sentence=%20")[1] == usual


@pytest.mark.parametrize("sentence", ["a%0D%0ASet-Cookie:%20x=y", "gr%C3%BC%C3%9Fe", "%00%7F", "x" * 900])
def test_nothing_in_a_sentence_can_break_the_status_line(sentence: str, port: int) -> None:
    status, phrase, _ = ask(port, f"/refused?sentence={sentence}")
    assert status == 422
    assert phrase.isascii() and phrase.isprintable() and 0 < len(phrase) <= MAX_REASON_CHARS


def test_a_reason_is_printable_ascii() -> None:
    assert reason(" a\r\nb é\x7f ") == "a??b ??"
