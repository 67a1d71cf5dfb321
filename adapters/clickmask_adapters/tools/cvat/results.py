"""Answers that CVAT may ask for again: a detector takes longer than CVAT waits."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Response

from clickmask.caches import Lru
from clickmask.errors import Busy

log = logging.getLogger(__name__)
MAX_RESULTS = 4  # each may have many megabytes
RESULT_TTL_S = 900.0  # a model trained since would answer differently


class ResultCache:
    """Answers that outlast CVAT's wait, finished and kept for its retry. For one event loop. Otherwise each
    retry would restart a three-minute annotation, and it would never finish."""

    def __init__(self) -> None:
        self._begun = Lru[bytes, asyncio.Future[Response]](max_count=MAX_RESULTS)

    async def wait(
        self, until: float, key: bytes, begin: Callable[[], Coroutine[Any, Any, Response]]
    ) -> Response:
        """The answer for `key`, begun before or now, forgotten once given. Raises Busy after `until`."""
        begun = self._begun.get(key)
        if begun is None:
            begun = asyncio.ensure_future(begin())
            self._begun.put(key, begun)
        try:
            return await wait(until, begun)
        finally:
            if begun.done():
                self._forget(key, begun)
            else:
                asyncio.get_running_loop().call_later(RESULT_TTL_S, self._forget, key, begun)

    def _forget(self, key: bytes, begun: asyncio.Future[Response]) -> None:
        if self._begun.get(key) is begun:  # not one that another call has begun since
            self._begun.pop(key)


async def wait(until: float, begun: asyncio.Future[Response]) -> Response:
    """The result of `begun`. Raises Busy after `until`, a time of `time.monotonic`; `begun` then goes on."""
    done, _ = await asyncio.wait({begun}, timeout=max(0.0, until - time.monotonic()))
    if done:
        return begun.result()

    def log_late(late: asyncio.Future[Response]) -> None:
        error = None if late.cancelled() else late.exception()
        log.info("cvat: an answer came too late%s", f": {error}" if error else "")

    begun.add_done_callback(log_late)
    raise Busy("clickmask is still working on this image; try again in a moment")
