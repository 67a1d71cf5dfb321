from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI, Request

from clickmask_adapters.server import uvicorn as slow_clients
from clickmask_adapters.server.uvicorn import ReadTimeouts
from support.waiting import until

SOON = 0.3  # seconds


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(slow_clients, "HEAD_TIMEOUT_S", SOON)
    monkeypatch.setattr(slow_clients, "BODY_TIMEOUT_S", SOON)
    app = FastAPI()

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/slow")
    def slow() -> str:
        time.sleep(3 * SOON)
        return "slow"

    server = uvicorn.Server(uvicorn.Config(app, http=ReadTimeouts, log_level="error", timeout_keep_alive=60))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        until(lambda: server.started)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def all_of(client: socket.socket) -> bytes:
    """What comes until the server hangs up, which it does."""
    client.settimeout(60)
    found = b""
    while piece := client.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /length HTTP/1.1\r\nHost: a\r\n",
        b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_client_that_says_no_more_is_left(sent: bytes, port: int) -> None:
    # A ConnectionError where it was left already.
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(sent)
        assert b"200 OK" not in all_of(client)


def test_a_head_that_drips_is_left_too(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /slow HTTP/1.1\r\n")
        with pytest.raises(OSError):  # a pipe that broke or was reset, as it happens
            for _ in range(600):
                client.sendall(b"X: y\r\n")
                time.sleep(0.1)


def test_a_request_that_is_all_there_may_take_its_time_and_be_followed_by_another(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "HEAD_TIMEOUT_S", 60.0)  # as this client may be slow to begin
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for path, body, answer in (("/slow", b"abc", b'"slow"'), ("/length", b"abc", b"3")):
        connection.request("POST", path, body)
        assert connection.getresponse().read() == answer
    connection.close()
