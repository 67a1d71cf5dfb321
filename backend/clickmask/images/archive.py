"""Original bytes of labelled images, kept so that later work needs no labeling tool."""

import errno
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
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
    images without labels (by `is_labelled`) go, longest unused first, or the new one is not kept. `make_room`
    is asked once if the disk is full, and says whether it freed anything."""

    def __init__(
        self,
        folder: Path,
        capacity: int,
        is_labelled: Callable[[str], bool],
        make_room: Callable[[], bool] = lambda: False,
        damaged: files.DamagedFiles | None = None,
    ) -> None:
        self._folder, self._make_room = folder, make_room
        self._capacity = capacity
        self._is_labelled = is_labelled
        self._lock = threading.Lock()
        self._refused = 0
        if damaged:
            for path in self._unusable():
                damaged.set_aside(path, "cannot be read", lambda _: "The next training fetches images again")
        self._count()

    def holds(self, digest: str) -> bool:
        return _is_file(self._path(digest))

    def keep(self, digest: str, raw: bytes) -> bool:
        """Store the original bytes durably. False if there is no room. Raises StoreUnavailable."""
        path = self._path(digest)
        with self._lock:
            if self.holds(digest):
                with suppress(OSError):
                    path.touch()
                return True
            if self._bytes + len(raw) > self._capacity:
                # Count again, since other processes also keep and remove images, then remove what may go.
                for status, stored in sorted(self._count(), key=lambda each: each[0].st_mtime):
                    is_enough = self._bytes + len(raw) <= self._capacity
                    if is_enough or status.st_mtime > time.time() - MIN_AGE_S:
                        break
                    if not self._is_labelled(stored.name):
                        stored.unlink(missing_ok=True)
                        self._bytes -= status.st_size
                        self._images -= 1
            if self._bytes + len(raw) > self._capacity:
                self._refused += 1
                log.warning("image %s is not kept: %d bytes are full", digest[:8], self._capacity)
                return False
            try:
                self._write(path, raw)
            except OSError as error:
                reason = error.strerror or "the disk refuses them"
                raise StoreUnavailable(f"images cannot be kept in CLICKMASK_HOME: {reason}") from error
            self._bytes += len(raw)
            self._images += 1
        return True

    def read(self, digest: str) -> bytes:
        """The original bytes. Raises Gone if they are not kept, or cannot be read."""
        try:
            return files.read(self._path(digest))
        except FileNotFoundError:
            raise Gone(f"image {digest[:8]} is not kept: CLICKMASK_KEPT_BYTES was full") from None
        except OSError as error:
            raise Gone(f"image {digest[:8]} cannot be read: {error.strerror}") from error

    def size_of(self, digest: str) -> int:
        """Bytes of the file, or 0 if it is not kept."""
        path = self._path(digest)
        return path.stat().st_size if _is_file(path) else 0

    def status(self) -> ArchiveStatus:
        with self._lock:
            return ArchiveStatus(self._images, self._bytes, self._capacity, self._refused)

    def _write(self, path: Path, raw: bytes) -> None:
        """Write durably, once more if the disk was full and could be given room. Whatever else has the name
        or the folder's, such as a pipe, makes way. Raises OSError."""
        if os.path.lexists(path.parent) and not path.parent.is_dir():
            files.make_way(path.parent)
        if os.path.lexists(path):
            files.make_way(path)
        files.make_folder(path.parent, 0o700)
        try:
            files.write(path, raw)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._make_room():
                raise
            files.write(path, raw)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is no digest of an image")
        return self._folder / digest[:2] / digest

    def _count(self) -> list[tuple[os.stat_result, Path]]:
        """Set the numbers of images and bytes from the folder, and remove stale drafts."""
        found: list[tuple[os.stat_result, Path]] = []
        for path in self._paths():
            with suppress(OSError):  # another process removed it, or it is a link to nowhere
                status = path.stat()
                if _DIGEST.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                    found.append((status, path))
                elif status.st_mtime < time.time() - MIN_AGE_S and files.ASIDE not in path.name:
                    files.remove(path)  # the draft of a killed process
        self._images, self._bytes = len(found), sum(status.st_size for status, _ in found)
        return found

    def _paths(self) -> Iterator[Path]:
        """Everything in the folders of images, without those folders that this user may not read."""
        for folder in _inside(self._folder):
            if len(folder.name) == 2:
                yield from _inside(folder)

    def _unusable(self) -> list[Path]:
        """What has the name of an image, or of a folder of images, and is none: a power cut leaves empty
        files."""
        folders = [each for each in _inside(self._folder) if len(each.name) == 2 and not each.is_dir()]
        return folders + [
            each for each in self._paths() if _DIGEST.fullmatch(each.name) and not _is_file(each)
        ]


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    with suppress(OSError):
        status = path.stat()
        return stat.S_ISREG(status.st_mode) and status.st_size > 0
    return False
