"""A server under attack, what it holds, and how its attackers speak to it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import requests

from support.pictures import to_base64
from support.served import Server

TESTS = Path(__file__).parent.parent
SERVE = """
import sys
sys.path.append({tests!r})
if {nofile}:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, ({nofile}, {nofile}))
import clickmask.segmenters
clickmask.segmenters.__path__.append({plugins!r})
from clickmask_adapters.commands import serve
from fastapi import Response

def with_large_answers(*given):
    made = create_app(*given)
    made.add_api_route("/large", lambda: Response(bytes({large})))
    return made

create_app, serve.create_app = serve.create_app, with_large_answers
from clickmask_adapters.cli import app
app()
"""
LARGE = 8 * 2**20  # bytes of an answer to GET /large, more than the system itself keeps for a client
GET_LARGE = b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SLOW = """
import time
from support.fakes import DiscSegmenter

class Slow(DiscSegmenter):
    name = "slow"

    def encode(self, image):
        time.sleep({seconds})
        return super().encode(image)

def load(variant, host):
    return Slow()
"""


@contextmanager
def attacked(
    folder: Path, nofile: int = 0, encode_s: float | None = None, **environment: str
) -> Iterator[Server]:
    """A server with its home in `folder`, which may have `nofile` files open, if that is not 0. `encode_s`:
    seconds in which its segmenter encodes an image; if None, it is the built-in one."""
    plugins = folder / "plugins"
    plugins.mkdir()
    if encode_s is not None:
        (plugins / "slow.py").write_text(SLOW.format(seconds=encode_s))
        environment["CLICKMASK_SEGMENTER"] = "slow"
    program = SERVE.format(tests=str(TESTS), nofile=nofile, plugins=str(plugins), large=LARGE)
    server = Server(folder / "home", environment, [], ["-c", program, "serve"])
    try:
        yield server
    finally:
        server.stop()


def address_of(server: Server) -> tuple[str, int]:
    where = urlsplit(server.url)
    return str(where.hostname), int(where.port or 0)


def posted(path: str, body: object, length: int | None = None) -> bytes:
    """The bytes of a request. `length`: of a longer body than the one that is sent."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (length or len(content), content)


def connect(server: Server, sent: bytes = b"", receive_buffer: int = 0) -> socket.socket:
    """A connection that has said `sent`. The system takes `receive_buffer` bytes for it, if not 0."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(30)
    client.connect(address_of(server))
    client.sendall(sent)
    return client


@contextmanager
def many(server: Server, number: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that say `sent` and then nothing, nor read anything."""
    clients: list[socket.socket] = []
    try:
        for _ in range(number):
            with contextlib.suppress(OSError):
                clients.append(connect(server, sent))
        yield clients
    finally:
        for client in clients:
            client.close()


def rss(server: Server) -> int:
    """Bytes of memory that the server holds."""
    return psutil.Process(server.process.pid).memory_info().rss


def connections_of(server: Server) -> int:
    """How many connections the server has open."""
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(each.status != psutil.CONN_LISTEN for each in found)


def picture(seed: int, height: int = 60, width: int = 80) -> dict[str, Any]:
    """A picture of noise, as the API takes it; another seed is another picture."""
    rng = np.random.default_rng(seed)
    return {"data": to_base64(rng.integers(0, 256, (height, width, 3), np.uint8))}


def click(server: Server, image: dict[str, Any], timeout: float = 120, **more: Any) -> requests.Response:
    asked = {"image": image, "prompt": {"foreground": [[40, 30]]}, **more}
    return requests.post(f"{server.url}/v1/proposals", json=asked, timeout=timeout)


@dataclass
class Probe:
    """Asks the server for /health again and again, each time on a new connection."""

    server: Server
    times: list[float] = field(default_factory=list)  # seconds, of those answered
    failed: int = 0

    @contextmanager
    def asking(self) -> Iterator[Probe]:
        end = threading.Event()

        def ask() -> None:
            while not end.is_set():
                began = time.monotonic()
                try:
                    requests.get(f"{self.server.url}/health", timeout=10).raise_for_status()
                    self.times.append(time.monotonic() - began)
                except requests.RequestException:
                    self.failed += 1
                end.wait(0.1)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield self
        finally:
            end.set()
            thread.join()

    def __str__(self) -> str:
        longest = max(self.times, default=float("nan"))
        return f"{len(self.times)} answered, {self.failed} not, the longest after {longest:.2f} s"


def seconds_until_stopped(stop: Callable[[], int]) -> tuple[int, float]:
    """What `stop` gives, the exit status, and how long it took."""
    began = time.monotonic()
    return stop(), time.monotonic() - began
