"""Connections to checked addresses, within a total time. A name is resolved once and the connection made to
those very addresses: a name server that answers differently the second time (DNS rebinding) is never asked.
Host header, SNI and certificate still use the name."""

import ipaddress
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Self

from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

from clickmask.errors import Busy, ImageUnavailable

# Networks that the ipaddress module calls public (3.11.7): protocol assignments, among them a cloud's
# metadata (RFC 6890); 6to4 relays (RFC 7526); Azure's metadata and agent.
_NOT_PUBLIC = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
# IPv6 addresses that lead to an IPv4 one: NAT64 (RFC 6052, RFC 8215), 6to4.
_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))

MAX_LOOKUPS = 64  # at once, with those that nobody waits for any more

Address = tuple[int, tuple[Any, ...]]  # family and address, as the socket module takes them


class Resolver:
    """The system's name resolution with a limit on its time, which is otherwise up to a minute. For any
    thread."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(MAX_LOOKUPS)

    def addresses_of(self, host: str, port: int, seconds: float) -> list[Address]:
        """All addresses of `host`, in the resolver's order. Raises ImageUnavailable if there are none, or
        none within `seconds`, and Busy while too many lookups hang."""
        found = Future[list[Any]]()

        def resolve() -> None:
            try:
                found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
                found.set_exception(error)
            finally:
                self._places.release()

        if not self._places.acquire(blocking=False):
            raise Busy("many names of hosts are being looked up; try again in a moment")
        try:
            threading.Thread(target=resolve, name="resolve", daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        if not wait([found], seconds).done:
            raise ImageUnavailable(f"the name {host} could not be looked up in time: try again later")
        try:
            return [(family, sockaddr) for family, _, _, _, sockaddr in found.result()]
        except (OSError, UnicodeError):
            raise ImageUnavailable(f"the name {host} is not known: check the image's address") from None


def is_public(address: str) -> bool:
    """Whether `address` is a plain address of the open internet: not private, loopback, link-local, shared
    (100.64.0.0/10), reserved, multicast, unspecified, a cloud's metadata, or IPv6 for an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.ipv4_mapped is not None or ip.is_site_local or any(ip in network for network in _IPV4_INSIDE)
    ):
        return False
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_reserved or ip.is_multicast
    special = special or ip.is_unspecified or any(ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not special


class Deadline:
    """A total time for all that the watched sockets receive, as a context manager; `passed` says if it is up.
    A socket's own timeout restarts with each byte, so a server that drips would hold a thread for ever."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left == 0.0

    def watch(self, connected: socket.socket) -> None:
        """Cut this connection when the time is up. Keeps a duplicate, since TLS takes the socket over."""
        with self._lock:
            self._watched.append(connected.dup())

    def _cut(self) -> None:
        with self._lock:
            for watched in self._watched:
                with suppress(OSError):  # the other side closed first
                    watched.shutdown(socket.SHUT_RDWR)  # wakes a blocked reader; close would not

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for watched in self._watched:
                watched.close()
            self._watched.clear()


class PinnedAdapter(HTTPAdapter):
    """An adapter to the first of `addresses` that answers, whatever the URL's name resolves to by then."""

    def __init__(self, addresses: Sequence[Address], deadline: Deadline) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._addresses = addresses
        self._deadline = deadline

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)

        def new_connection(connection: Any) -> socket.socket:
            return self._connect(connection.timeout)

        # Replace only the socket: urllib3 sends the name as Host and SNI and verifies the certificate by it.
        made: Any = type("PinnedConnection", (pool.ConnectionCls,), {"_new_conn": new_connection})
        pool.ConnectionCls = made
        return pool

    def _connect(self, timeout: float | None) -> socket.socket:
        failure = OSError("no address")
        for family, address in self._addresses:
            if self._deadline.passed:
                raise TimeoutError
            connected = socket.socket(family, socket.SOCK_STREAM)
            try:
                connected.settimeout(min(timeout or self._deadline.left, self._deadline.left))
                connected.connect(address)
                self._deadline.watch(connected)
                connected.settimeout(timeout)
                return connected
            except OSError as error:
                connected.close()
                failure = error
        raise failure
