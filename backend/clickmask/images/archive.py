"""Original bytes of labelled images, kept so that later work needs no labeling tool."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clickmask import files
from clickmask.errors import Gone, StoreUnavailable

log = logging.getLogger(__name__)

MIN_AGE_S = 3600.0  # an image stays this long even without labels, which may be on their way
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ArchiveStatus:
    images: int
    bytes: int
    capacity: int
    refused: int  # images since the start for which there was no room


class ImageArchive:
    """Files named by pixel digest, at most `capacity` bytes. For any thread and several processes. If full,
    images without labels (by `is_labelled`) go, longest unused first, or the new one is not kept."""

    def __init__(self, folder: Path, capacity: int, is_labelled: Callable[[str], bool]) -> None:
        self._folder = folder
        self._capacity = capacity
        self._is_labelled = is_labelled
        self._lock = threading.Lock()
        self._refused = 0
        self._count()

    def holds(self, digest: str) -> bool:
        return self._path(digest).exists()

    def keep(self, digest: str, raw: bytes) -> bool:
        """Store the original bytes durably. False if there is no room. Raises StoreUnavailable."""
        path = self._path(digest)
        with self._lock:
            if path.exists():
                path.touch()
                return True
            if self._bytes + len(raw) > self._capacity:
                # Count again, since other processes also keep and remove images, then remove what may go.
                for stat, stored in sorted(self._count(), key=lambda each: each[0].st_mtime):
                    is_enough = self._bytes + len(raw) <= self._capacity
                    if is_enough or stat.st_mtime > time.time() - MIN_AGE_S:
                        break
                    if not self._is_labelled(stored.name):
                        stored.unlink(missing_ok=True)
                        self._bytes -= stat.st_size
                        self._images -= 1
            if self._bytes + len(raw) > self._capacity:
                self._refused += 1
                log.warning("image %s is not kept: %d bytes are full", digest[:8], self._capacity)
                return False
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                files.write(path, raw)
                files.flush(self._folder)  # path.parent may be new
            except OSError as error:
                reason = error.strerror or "the disk refuses them"
                raise StoreUnavailable(f"images cannot be kept in CLICKMASK_HOME: {reason}") from error
            self._bytes += len(raw)
            self._images += 1
        return True

    def read(self, digest: str) -> bytes:
        """The original bytes. Raises Gone if they are not kept."""
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            raise Gone(f"image {digest[:8]} is not kept: CLICKMASK_KEPT_BYTES was full") from None

    def size_of(self, digest: str) -> int:
        """Bytes of the file, or 0 if it is not kept."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def status(self) -> ArchiveStatus:
        with self._lock:
            return ArchiveStatus(self._images, self._bytes, self._capacity, self._refused)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is no digest of an image")
        return self._folder / digest[:2] / digest

    def _count(self) -> list[tuple[os.stat_result, Path]]:
        """Set the numbers of images and bytes from the folder, and remove stale drafts."""
        found: list[tuple[os.stat_result, Path]] = []
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):  # another process removed it
                stat = path.stat()
                if _DIGEST.fullmatch(path.name):
                    found.append((stat, path))
                elif stat.st_mtime < time.time() - MIN_AGE_S:  # the draft of a killed process
                    path.unlink()
        self._images, self._bytes = len(found), sum(stat.st_size for stat, _ in found)
        return found
