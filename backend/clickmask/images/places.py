"""Places of those who wait for a host: few for each, so that slow hosts hold up nobody else."""

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from clickmask.caches import waiting_elsewhere
from clickmask.errors import HostBusy

MAX_THREADS_PER_HOST = 16  # that fetch, or wait for such a fetch
MAX_FETCHES_PER_HOST = 6
MAX_THREADS = 32  # of all hosts together that are no labeling tool's
PATIENCE_S = 5.0
RETRY_S = 5.0


@dataclass
class _Host:
    fetches: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_FETCHES_PER_HOST)
    )
    threads: int = 0


class FetchPlaces:
    """Limits on the threads that wait for hosts, elsewhere than those that compute. For any thread."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}  # those that somebody waits for now
        self._strangers = 0  # threads

    @contextmanager
    def at(self, host: str, trusted: bool) -> Generator[AbstractContextManager[None]]:
        """Count this thread among those that wait for `host`; gives a context for the fetch itself, which
        waits for one of the host's places. Raises HostBusy at once if too many wait. `trusted`: the host is a
        labeling tool, which no other host's slowness may keep from being asked."""
        with self._lock:
            known = self._hosts.setdefault(host, _Host())
            if known.threads >= MAX_THREADS_PER_HOST:
                raise HostBusy(f"many requests wait for images of {host}; try again in a moment", RETRY_S)
            if not trusted and self._strangers >= MAX_THREADS:
                if not known.threads:
                    del self._hosts[host]
                raise HostBusy("many requests wait for images of slow hosts; try again in a moment", RETRY_S)
            known.threads += 1
            self._strangers += not trusted
        try:
            yield self._fetch(host, known)
        finally:
            with self._lock:
                known.threads -= 1
                self._strangers -= not trusted
                if not known.threads:
                    del self._hosts[host]

    @contextmanager
    def _fetch(self, host: str, known: _Host) -> Generator[None]:
        with waiting_elsewhere():
            if not known.fetches.acquire(timeout=self._patience):
                raise HostBusy(f"{host} is slow to send other images; try again in a moment", RETRY_S)
            try:
                yield
            finally:
                known.fetches.release()
