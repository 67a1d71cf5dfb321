"""uvicorn's (0.54) protocol class, with reason phrases and an end to silent connections.

CVAT shows its users only the status line of a failed answer, e.g. `422 Client Error: <reason> for url: …`
(measured with 2.73.0). ASGI has no field for the reason, so it travels as a header. uvicorn waits forever for
a request and its body, so anybody who reaches the port could hold every connection.
"""

import asyncio
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER = "x-clickmask-error"
MAX_REASON_CHARS = 300
HEAD_TIMEOUT_S = 30.0  # from the start of a connection or request to the end of its head
BODY_TIMEOUT_S = 60.0  # between two pieces of a body


def reason(error: str) -> str:
    """`error` as a status line or a header can hold it: short, printable ASCII."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in error[:MAX_REASON_CHARS]).strip()


class ErrorInReasonPhrase(H11Protocol):
    """uvicorn's protocol, with an answer's HEADER as its reason phrase."""

    def __init__(self, config: Config, **more: Any) -> None:
        super().__init__(config, **more)
        self.conn = _Connection(h11.SERVER, config.h11_max_incomplete_event_size or 2**16)


class _Connection(h11.Connection):
    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        if isinstance(event, h11.Response):
            phrase = next((value for name, value in event.headers if name == HEADER.encode()), b"")
            if phrase:
                event = h11.Response(status_code=event.status_code, headers=event.headers, reason=phrase)
        return super().send_with_data_passthrough(event)


class ReadTimeouts(ErrorInReasonPhrase):
    """The same with read timeouts; uvicorn's own timer covers only idle connections that were used before."""

    _hanging_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn has it
        super().connection_made(transport)
        self._wait(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._wait(BODY_TIMEOUT_S)
        elif self.conn.their_state is not h11.IDLE:  # the request is complete: the client waits for us
            self._wait(None)
        elif self._hanging_up is None:
            self._wait(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def _wait(self, seconds: float | None) -> None:
        """Hang up after `seconds` without data; never if None."""
        if self._hanging_up:
            self._hanging_up.cancel()
        self._hanging_up = None if seconds is None else self.loop.call_later(seconds, self.hang_up)

    def hang_up(self) -> None:
        """The client was silent for too long."""
        self.transport.close()
