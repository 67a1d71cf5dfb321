"""A server that answers as a script says, with connections that are kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, object] | tuple[int, object, Mapping[str, str]]


@dataclass
class ScriptedServer:
    """`answer(method, path, authorization)` gives status, body (bytes, or what becomes JSON) and headers.

    `asked` remembers method, path and Authorization of each request, `connections` who made them.
    """

    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    connections: list[object] = field(default_factory=list)
    answer: Callable[[str, str, str | None], Answer] = lambda *_: (200, {})

    def script(self, *answers: Answer) -> None:
        """One answer after the other, the last for ever."""
        left = list(answers)
        self.answer = lambda *_: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = (self.command, self.path, self.headers.get("Authorization"))
            scripted.asked.append(asked)
            if self.client_address not in scripted.connections:
                scripted.connections.append(self.client_address)
            status, body, *headers = scripted.answer(*asked)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            own = {"Content-Length": str(len(raw))}
            if status == 302:
                own["Location"] = "http://127.0.0.1:1/elsewhere"
            for name, value in (own | dict(*headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_request(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    scripted.url = f"http://127.0.0.1:{server.server_port}"
    yield scripted
    server.shutdown()
    server.server_close()
    thread.join(5)
