"""Images that were sent before, recognised by their base64 before anything is decoded."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from clickmask.errors import ImageUnknown, InvalidImage
from clickmask.types import ImageRef
from clickmask.workbench import Workbench

T = TypeVar("T")

MOST = 10_000  # images; about 250 bytes each


class KnownImages:
    """Digests by the hash of the text that an image came as, for any thread. Bounded: the oldest use goes."""

    def __init__(self, workbench: Workbench, most: int = MOST) -> None:
        self._workbench = workbench
        self._most = most
        self._lock = threading.Lock()
        self._digests: OrderedDict[bytes, str] = OrderedDict()

    def show(self, text: memoryview, ask: Callable[[ImageRef], T]) -> T:
        """What `ask` makes of the image in the base64 `text`; decoded only where its pixels are missing.

        `ask` is called again if it raised ImageUnknown: pixels are not kept for ever.
        """
        key = hashlib.sha256(text).digest()
        digest = self._recall(key)
        if digest is not None:
            try:
                return ask(ImageRef(f"digest:{digest}"))
            except ImageUnknown:
                pass
        sent = ImageRef("data:;base64," + _ascii(text))
        digest = self._workbench.identify(sent).digest
        self._keep(key, digest)
        try:
            return ask(ImageRef(f"digest:{digest}"))
        except ImageUnknown:  # others took its place since
            return ask(sent)

    def _recall(self, key: bytes) -> str | None:
        with self._lock:
            if key in self._digests:
                self._digests.move_to_end(key)
            return self._digests.get(key)

    def _keep(self, key: bytes, digest: str) -> None:
        with self._lock:
            self._digests[key] = digest
            self._digests.move_to_end(key)
            if len(self._digests) > self._most:
                self._digests.popitem(last=False)


def _ascii(text: memoryview) -> str:
    try:
        return str(text, "ascii")
    except UnicodeDecodeError:
        raise InvalidImage("the image's base64 is damaged") from None
