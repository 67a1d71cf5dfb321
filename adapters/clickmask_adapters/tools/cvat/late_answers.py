"""Answers that take longer than CVAT waits: they are finished and kept for its next try.

A frame that is annotated in three minutes would else be begun anew with each call, and never be done.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Response

from clickmask.errors import Busy

log = logging.getLogger(__name__)

Begin = Callable[[], Coroutine[Any, Any, Response]]

MOST = 4  # of them; each may have many megabytes
KEPT_FOR = 900.0  # seconds; a model that was trained since would answer otherwise


class LateAnswers:
    """By the request that they are for. Of the event loop, as asyncio's own objects are."""

    def __init__(self) -> None:
        self._begun: OrderedDict[bytes, asyncio.Future[Response]] = OrderedDict()

    async def within(self, until: float, key: bytes, begin: Begin) -> Response:
        """What was begun for `key` before, or begins now; Busy if it takes longer than until then.

        What was given once is not kept. `until` is a time of `time.monotonic`.
        """
        begun = self._begun.get(key)
        if begun is None:
            begun = self._begun[key] = asyncio.ensure_future(begin())
            while len(self._begun) > MOST:
                self._begun.popitem(last=False)
        try:
            return await within(until, begun)
        finally:
            if begun.done():
                self._forget(key, begun)
            else:
                asyncio.get_running_loop().call_later(KEPT_FOR, self._forget, key, begun)

    def _forget(self, key: bytes, begun: asyncio.Future[Response]) -> None:
        if self._begun.get(key) is begun:  # and not what another call has begun since
            del self._begun[key]


def key_of(function: str, body: bytes) -> bytes:
    """Of a request; hashing takes 0.7 ms a megabyte."""
    return hashlib.sha256(function.encode() + b"\n" + body).digest()


async def within(until: float, begun: asyncio.Future[Response]) -> Response:
    """What `begun` gives; Busy if it takes longer, and it goes on. `until`: as above."""
    done, _ = await asyncio.wait({begun}, timeout=max(0.0, until - time.monotonic()))
    if done:
        return begun.result()
    begun.add_done_callback(_log_late)
    raise Busy("clickmask is still working on this image; try again in a moment")


def _log_late(begun: asyncio.Future[Response]) -> None:
    error = None if begun.cancelled() else begun.exception()
    log.info("cvat: an answer came too late%s", f": {error}" if error else "")
