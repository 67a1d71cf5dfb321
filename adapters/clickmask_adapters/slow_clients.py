"""Connections on which nothing comes are closed: uvicorn 0.54 waits for ever for a request and its body.

Anybody who reaches the port could else hold all the connections that the system allows.
"""

from __future__ import annotations

import asyncio

import h11

from clickmask_adapters.reason_phrases import ReasonPhrases

HEAD = 30.0  # seconds from its beginning, or from the connection's, to the end of a request's head
BODY = 60.0  # seconds between two pieces of a body


class Impatient(ReasonPhrases):
    """uvicorn's protocol, with our reason phrases, that hangs up. Its own timer is for idle connections
    that were used before."""

    _hanging_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn has it
        super().connection_made(transport)
        self._wait(HEAD)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._wait(BODY)
        elif self.conn.their_state is not h11.IDLE:  # all of it is here: now it waits for us
            self._wait(None)
        elif self._hanging_up is None:
            self._wait(HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def _wait(self, seconds: float | None) -> None:
        if self._hanging_up:
            self._hanging_up.cancel()
        self._hanging_up = None if seconds is None else self.loop.call_later(seconds, self.transport.close)
