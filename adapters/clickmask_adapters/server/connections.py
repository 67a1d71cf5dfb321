"""The open connections of one server: how many there may be, and how long an answer may stay unread.

A server without a free file descriptor can serve nobody, so connections are limited below the system's limit.
At the limit, the connection that has been without a request for longest is closed for the new one. A new one
is turned away only if a request is at work on each of the others.
"""

import asyncio
import errno
import logging
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import h11
from uvicorn.config import Config

from clickmask_adapters.server.addresses import client_network
from clickmask_adapters.server.uvicorn import ReadTimeouts

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows
    fcntl = resource = termios = None

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
WANTED_FILES = 4096  # descriptors: connections, databases, image files, connections to other servers
BACKLOG = 128  # connections that the system keeps for us, and that are accepted in one go
UNREAD_TIMEOUT_S = 20.0  # in which MIN_READ bytes of an answer must be read, or all the rest
MIN_READ = 256 * 2**10
MAX_UNREAD = 128 * 2**20  # bytes of all unread answers together
CLOSED_WITHOUT_FILES = 16  # idle connections, if the system has no descriptor for a new one
REPEAT_S = 60.0  # between two lines about one state
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
SENTENCE = b'{"error":"all connections are at work; try again in a moment"}'
TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(SENTENCE), SENTENCE)
)
# States of a connection. Those in VICTIMS may be closed for a new connection, the first state first.
AT_WORK, IDLE, RECEIVING, UNREAD = "at work", "idle", "receiving", "unread"
VICTIMS = {  # and how it is counted
    IDLE: "idle_closed",
    RECEIVING: "unfinished_closed",
    UNREAD: "unread_closed",
}  # as they are counted


def raise_file_limit() -> int:
    """Raise this process's limit of open files to WANTED_FILES, or as far as it may. Returns the limit."""
    if resource is None:
        return WANTED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [WANTED_FILES if each == resource.RLIM_INFINITY else each for each in (soft, hard)]
    wanted = max(limits[0], min(limits[1], WANTED_FILES))
    if wanted > limits[0]:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return limits[0]


class Connections:
    """The open connections, by state and in the order in which they came into it. Used in one event loop.

    There are at most half as many as `files`, those that this process may have open. `count` is told what was
    closed or turned away, by a word for it.
    """

    def __init__(self, files: int, count: Callable[[str], None]) -> None:
        self.limit = max(1, min(MAX_CONNECTIONS, files // 2))
        self.backlog = max(1, min(BACKLOG, self.limit // 4))
        self.count = count
        self._by_state: dict[str, dict[BoundedConnection, None]] = {each: {} for each in (AT_WORK, *VICTIMS)}
        self._by_address = Counter[str]()
        self._said_at: dict[str, float] = {}

    def __len__(self) -> int:
        return self._by_address.total()

    def add(self, new: "BoundedConnection") -> None:
        """Take in a connection, and close another if there are too many; `new` itself if it must be."""
        self._by_address[new.address] += 1
        new.noted = new.state
        self._by_state[new.noted][new] = None
        if len(self) <= self.limit:
            return
        self._say("there are %d connections: for each new one the longest idle is closed", self.limit)
        victim = self._victim(new)
        if victim is None:
            self.count("turned_away")
            new.transport.write(TURNED_AWAY)
            new.transport.close()
        else:
            self._close(victim, VICTIMS[victim.noted])

    def moved(self, one: "BoundedConnection") -> None:
        """Note the connection's state, if it is another."""
        if one.noted and one.state != one.noted:
            del self._by_state[one.noted][one]
            one.noted = one.state
            self._by_state[one.noted][one] = None

    def remove(self, one: "BoundedConnection") -> None:
        if one.noted:
            del self._by_state[one.noted][one]
            one.noted = ""
            self._by_address[one.address] -= 1
            if not self._by_address[one.address]:
                del self._by_address[one.address]

    def give_up(self, one: "BoundedConnection") -> None:
        """Close a connection whose answer nobody reads."""
        self._close(one, VICTIMS[UNREAD])

    def limit_unread(self) -> None:
        """Give up the answers that have been unread for longest, if there are more than MAX_UNREAD bytes."""
        unread = list(self._by_state[UNREAD])
        total = sum(one.unread for one in unread)
        for one in unread[:-1]:
            if total <= MAX_UNREAD:
                break
            total -= one.unread
            self.give_up(one)

    def close_idle(self) -> None:
        """Close all connections without a whole request, because the server ends."""
        for one in [*self._by_state[IDLE], *self._by_state[RECEIVING]]:
            self.remove(one)
            one.transport.abort()

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An event loop's exception handler. If there is no descriptor left for a new connection, idle
        connections are closed; asyncio itself tries again after a second."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in NO_DESCRIPTOR and "socket" in context):
            loop.default_exception_handler(context)
        elif self._say("no connection can be accepted: %s", error.strerror, every=1.0):
            self.count("not_accepted")
            for one in list(self._by_state[IDLE])[:CLOSED_WITHOUT_FILES]:
                self._close(one, VICTIMS[IDLE])

    def _victim(self, new: "BoundedConnection") -> "BoundedConnection | None":
        """The connection to close for `new`. An address that has more than half of them pays itself, so that
        one client keeps no others out."""
        crowded = self._by_address[new.address] > self.limit // 2
        for state in VICTIMS:
            others: Iterable[BoundedConnection] = (one for one in self._by_state[state] if one is not new)
            if crowded:
                others = (one for one in others if one.address == new.address)
            if (victim := next(iter(others), None)) is not None:
                return victim
        return None

    def _close(self, one: "BoundedConnection", kind: str) -> None:
        self.count(kind)
        self.remove(one)
        one.transport.abort()

    def _say(self, line: str, *values: object, every: float = REPEAT_S) -> bool:
        """Log the line, unless it was logged less than `every` seconds ago. Returns whether it was."""
        if time.monotonic() - self._said_at.get(line, -every) < every:
            return False
        self._said_at[line] = time.monotonic()
        log.warning(line, *values)
        return True


class BoundedConnection(ReadTimeouts):
    """A connection among others, whose client must read its answers."""

    address = ""  # of the client
    noted = ""  # the state in which `Connections` lists it; empty if it is not listed
    _giving_up: asyncio.TimerHandle | None = None

    def __init__(self, config: Config, connections: Connections, **more: Any) -> None:
        super().__init__(config, **more)
        self._connections = connections

    @property
    def state(self) -> str:
        if self._giving_up:
            return UNREAD
        if self.cycle is None or self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]  # None before the first request
            return IDLE
        return RECEIVING if self.conn.their_state is h11.SEND_BODY else AT_WORK

    @property
    def unread(self) -> int:
        """Bytes that neither the client nor the system has taken."""
        return self.transport.get_write_buffer_size()

    @property
    def not_received(self) -> int:
        """Bytes that the client's system has not taken: `unread`, and those that ours holds for it, megabytes
        of which may pass before it takes one more from us."""
        queued = 0
        if fcntl and termios:
            with suppress(OSError, ValueError):
                asked = fcntl.ioctl(
                    self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4
                )
                (queued,) = struct.unpack("i", asked)
        return self.unread + queued

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused while anything is unread
        self.address = client_network(self.client[0] if self.client else "")
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._connections.moved(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._connections.moved(self)

    def hang_up(self) -> None:
        self._connections.count("silent_closed")
        super().hang_up()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()
        self._connections.moved(self)
        self._connections.limit_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_expecting()
        self._connections.moved(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        self._connections.remove(self)
        super().connection_lost(exc)

    def _expect_reading(self) -> None:
        self._giving_up = self.loop.call_later(UNREAD_TIMEOUT_S, self._check_reading, self.not_received)

    def _check_reading(self, before: int) -> None:
        if self.not_received > before - MIN_READ:
            self._connections.give_up(self)
        else:
            self._expect_reading()

    def _stop_expecting(self) -> None:
        if self._giving_up:
            self._giving_up.cancel()
            self._giving_up = None
