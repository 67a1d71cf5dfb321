from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from clickmask_adapters.server import connections as module
from clickmask_adapters.server.connections import BoundedConnection, Connections, raise_file_limit
from support.waiting import until

resource = pytest.importorskip("resource")


@dataclass
class Served:
    port: int
    connections: Connections
    counted: Counter[str]
    go_on: threading.Event = field(default_factory=threading.Event)

    def connect(self, sent: bytes = b"", **options: int) -> socket.socket:
        before, client = len(self.connections), socket.socket()
        for name, value in options.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        client.connect(("127.0.0.1", self.port))
        client.settimeout(60)
        client.sendall(sent)
        until(lambda: len(self.connections) > before or bool(self.counted))
        return client

    def ask(self, path: str = "/") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status


Serving = Callable[[int], AbstractContextManager[Served]]


@pytest.fixture
def serving() -> Serving:
    """Serves at most so many connections: /large with 16 MiB, /held when it may go on."""

    @contextmanager
    def serve(limit: int) -> Iterator[Served]:
        app, counted = FastAPI(), Counter[str]()
        connections = Connections(2 * limit, lambda kind: counted.update([kind]))

        @app.get("/")
        async def soon() -> None: ...

        @app.get("/large")
        async def large() -> Response:
            return Response(bytes(2**24))

        @app.post("/body")
        async def body(request: Request) -> int:
            with contextlib.suppress(ClientDisconnect):
                return len(await request.body())
            return 0

        @app.get("/held")
        def held() -> None:
            assert served.go_on.wait(60)

        protocol = cast("Any", partial(BoundedConnection, connections=connections))
        server = uvicorn.Server(
            uvicorn.Config(app, http=protocol, log_level="error", timeout_graceful_shutdown=1)
        )
        with socket.create_server(("127.0.0.1", 0)) as bound:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
            thread.start()
            until(lambda: server.started)
            served = Served(bound.getsockname()[1], connections, counted)
            try:
                yield served
            finally:
                served.go_on.set()
                server.should_exit = True
                thread.join(60)

    return serve


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


HELD = b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na"
LARGE = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"


def test_at_the_limit_the_longest_idle_connection_is_closed_for_a_new_one(serving: Serving) -> None:
    with serving(4) as served:
        clients = [served.connect() for _ in range(4)]
        assert served.ask() == 200
        assert is_closed(clients[0])
        assert served.counted["idle_closed"] >= 1
        clients[3].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" in clients[3].recv(100)
        for client in clients:
            client.close()


def test_a_request_at_work_is_never_closed_and_one_connection_too_many_is_answered(serving: Serving) -> None:
    with serving(2) as served:
        at_work = [served.connect(HELD) for _ in range(2)]
        until(lambda: [one.state for one in served.connections._by_state[module.AT_WORK]] == ["at work"] * 2)
        refused = served.connect()
        assert b"503 Service Unavailable\r\nRetry-After: 2" in refused.recv(1000)
        assert served.counted == {"turned_away": 1}
        served.go_on.set()
        assert [client.recv(12) for client in at_work] == [b"HTTP/1.1 200"] * 2
        for client in (*at_work, refused):
            client.close()


def test_a_body_that_does_not_come_goes_before_a_request_at_work(serving: Serving) -> None:
    with serving(2) as served:
        at_work, dripping = served.connect(HELD), served.connect(BODY)
        until(lambda: bool(served.connections._by_state[module.RECEIVING]))
        with contextlib.suppress(ConnectionError):
            assert served.ask() == 200
        assert is_closed(dripping)
        assert served.counted["unfinished_closed"] == 1
        served.go_on.set()
        assert at_work.recv(12) == b"HTTP/1.1 200"
        at_work.close()
        dripping.close()


def test_an_address_that_has_most_connections_pays_for_its_new_ones() -> None:
    counted = Counter[str]()
    connections = Connections(2 * 6, lambda kind: counted.update([kind]))

    class Fake:
        state, noted = module.IDLE, ""

        def __init__(self, address: str) -> None:
            self.address = address
            self.transport = self
            connections.add(cast("BoundedConnection", self))

        def abort(self) -> None:
            self.state = "closed"

    guest = Fake("10.0.0.1")
    crowd = [Fake("10.0.0.2") for _ in range(5)]
    more = [Fake("10.0.0.2") for _ in range(3)]
    assert [each.state for each in (guest, *crowd)] == ["idle", *["closed"] * 3, "idle", "idle"]
    other = Fake("10.0.0.3")  # the longest idle one goes, whosever it is
    assert (guest.state, other.state, more[0].state) == ("closed", "idle", "idle")
    assert len(connections) == 6


def test_an_answer_that_nobody_reads_is_given_up(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNREAD_TIMEOUT_S", 0.05)
    with serving(4) as served:
        client = served.connect(LARGE, SO_RCVBUF=4096)
        until(lambda: served.counted["unread_closed"] == 1)
        until(lambda: len(served.connections) == 0)
        client.close()


def test_an_answer_that_is_read_slowly_comes_to_its_end(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNREAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(module, "MIN_READ", 1)
    with serving(4) as served:
        client, size = served.connect(LARGE, SO_RCVBUF=2**16), 0
        while size < 2**24:
            piece = client.recv(2**20)
            assert piece
            size += len(piece)
        assert not served.counted
        client.close()


def test_bytes_that_the_system_holds_for_a_client_are_not_received_yet(serving: Serving) -> None:
    """The system takes the next bytes from us only when a third of its megabytes is free."""
    with serving(4) as served:
        client = served.connect(LARGE, SO_RCVBUF=2**16)
        unread = served.connections._by_state[module.UNREAD]
        until(lambda: bool(unread))
        (connection,) = unread
        assert connection.not_received > connection.unread > 0
        before = connection.not_received
        for _ in range(4):
            client.recv(2**16)
        until(lambda: connection.not_received < before)
        client.close()


def test_all_unread_answers_together_are_bounded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD", 2**24)
    with serving(8) as served:
        clients = [served.connect(LARGE, SO_RCVBUF=4096) for _ in range(4)]
        until(lambda: served.counted["unread_closed"] >= 2)
        assert sum(one.unread for one in served.connections._by_state[module.UNREAD]) <= 2**24
        for client in clients:
            client.close()


def test_without_descriptors_idle_connections_are_closed_and_little_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted = Counter[str]()
    connections, loop = Connections(100, lambda kind: counted.update([kind])), asyncio.new_event_loop()
    closed: list[object] = []
    for number in range(20):
        idle = cast("Any", type("Idle", (), {"state": module.IDLE, "noted": "", "address": str(number)})())
        idle.transport = type("Transport", (), {"abort": lambda self: closed.append(self)})()
        connections.add(idle)
    error = OSError(errno.EMFILE, "Too many open files")
    for _ in range(1000):
        connections.failed(loop, {"message": "", "exception": error, "socket": None})
    assert len(closed) == module.CLOSED_WITHOUT_FILES
    assert len(caplog.records) == 1 and "Too many open files" in caplog.text
    connections.failed(loop, {"message": "another error", "exception": ValueError("other")})
    assert "another error" in caplog.text
    loop.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [((256, 256), 256), ((1024, 2**20), 4096), ((1024, -1), 4096), ((-1, -1), 4096), ((9000, 9000), 9000)],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(
    before: tuple[int, int], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resource.RLIM_INFINITY == -1
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    assert raise_file_limit() == after
    assert set_to == ([(after, before[1])] if before[0] == 1024 else [])


def test_connections_leave_descriptors_for_files() -> None:
    for files in (64, 256, 1024, 2**20):
        connections = Connections(files, lambda kind: None)
        assert connections.limit + connections.backlog <= 0.63 * files
