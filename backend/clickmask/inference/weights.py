"""Checkpoints: where the official files are, whether one is here and complete, and how to fetch it.

Only `fetch` downloads, and only the command line calls it: no request waits for weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from clickmask import files
from clickmask.errors import NotFound, NotReady
from clickmask.inference.downloads import PartialFile, Progress, megabytes
from clickmask.plugins import Checkpoint

log = logging.getLogger(__name__)


class WeightsFolder:
    """The files of `checkpoints`, by `family:variant`. For any thread and for several processes.

    `mirror`, an http(s) address or a folder, replaces the official addresses up to the file name. A file's
    hash is remembered beside it (and in memory, for a read-only folder), so that no request hashes gigabytes.
    """

    def __init__(
        self, folder: Path, mirror: str | None = None, checkpoints: Mapping[str, Checkpoint] | None = None
    ) -> None:
        self.folder = folder
        self.checkpoints = checkpoints or {}
        self._mirror = mirror
        self._lock = threading.Lock()
        self._seen: dict[tuple[Path, int, int], str] = {}  # hash by size and time, which show a change

    def checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint. Raises NotFound with the names that have weights."""
        if name not in self.checkpoints:
            known = ", ".join(self.checkpoints) or "none"
            raise NotFound(f"there are no weights named {name[:80]!r}; known: {known}")
        return self.checkpoints[name]

    def find(self, name: str) -> Path | None:
        """The file if it is complete and verified. Neither hashes nor downloads."""
        return None if self.missing(name) else self._path(name)

    def missing(self, name: str) -> str:
        """The reason that `find` gives no file, as a sentence with its remedy; empty if it gives one."""
        if name not in self.checkpoints:
            return "no weights are known for it"
        path = self._path(name)
        if not path.is_file():
            return f"its weights are not here: clickmask weights fetch {name}"
        found = self._digest_seen(path)
        if found is None:
            return f"its weights were not verified yet: clickmask weights path {name}"
        if found == self.checkpoint(name).sha256:
            return ""
        return (
            f"its {path.name} is not the official file (its SHA-256 begins with {found[:12]}): "
            "move it away and fetch it"
        )

    def verify(self, name: str) -> Path:
        """The complete file, hashed if it is new or changed. Raises NotReady."""
        path = self._path(name)
        if path.is_file() and self._digest_seen(path) is None:
            with _explained(f"{path.name} cannot be read"):
                before = path.stat()  # a file that changes during hashing is hashed again
                self._remember(path, before, _sha256(path))
        if reason := self.missing(name):
            raise NotReady(f"{name}: {reason}")
        return path

    def verify_new(self) -> None:
        """Verify new and changed files, before a server takes requests."""
        for name in self.checkpoints:
            if self._path(name).is_file() and self._digest_seen(self._path(name)) is None:
                log.info("verifying the weights of %s", name)
                try:
                    self.verify(name)
                except NotReady as error:
                    log.warning("%s", error)

    def fetch(self, name: str, progress: Progress = lambda done, total: None) -> Path:
        """The file, downloaded if it is not here: resumed, verified, then renamed into place. Raises
        NotReady; the next fetch continues the .part file, unless it turns out not to be the official file."""
        checkpoint, path = self.checkpoint(name), self._path(name)
        if not path.exists():
            with _explained(f"{checkpoint.file} cannot be written"):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    with files.lock(self.folder / ".lock", blocking=False):
                        if not path.exists():
                            self._download(checkpoint, path, progress)
                except BlockingIOError:
                    raise NotReady("another process is fetching weights into this folder") from None
        return self.verify(name)

    def _path(self, name: str) -> Path:
        return self.folder / self.checkpoint(name).file

    def _download(self, checkpoint: Checkpoint, path: Path, progress: Progress) -> None:
        part = PartialFile(path, checkpoint.bytes)
        missing, free = checkpoint.bytes - part.size, shutil.disk_usage(self.folder).free
        if missing > free:
            raise NotReady(f"{path.name} needs {megabytes(missing)}, and the disk has {megabytes(free)} left")
        if not self._mirror:
            part.download(checkpoint.address, progress)
        elif self._mirror.startswith(("http://", "https://")):
            part.download(f"{self._mirror.rstrip('/')}/{checkpoint.file}", progress)
        else:
            part.copy(Path(self._mirror.removeprefix("file://")).expanduser() / checkpoint.file, progress)
        if (digest := _sha256(part.path)) != checkpoint.sha256:
            part.remove()
            raise NotReady(
                f"what was downloaded is not the official {checkpoint.file}: its SHA-256 begins with "
                f"{digest[:12]} instead of {checkpoint.sha256[:12]}; it was removed"
            )
        part.finish()
        self._remember(path, path.stat(), digest)

    def _digest_seen(self, path: Path) -> str | None:
        """The hash of the file, or None if it changed since hashing or was never hashed."""
        try:
            status = path.stat()
            size, time = status.st_size, status.st_mtime_ns
            with self._lock:
                if seen := self._seen.get((path, size, time)):
                    return seen
            memo = json.loads(_memo(path).read_text())
            return memo["sha256"] if (memo["bytes"], memo["mtime_ns"]) == (size, time) else None
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def _remember(self, path: Path, status: os.stat_result, digest: str) -> None:
        memo = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
        with self._lock:
            self._seen[path, status.st_size, status.st_mtime_ns] = digest
        with suppress(OSError):  # a read-only folder: this process remembers, others hash again
            files.write(_memo(path), json.dumps(memo).encode(), durable=False)


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Raise OSErrors as NotReady, with a sentence."""
    try:
        yield
    except OSError as error:
        raise NotReady(f"{what}: {error.strerror or type(error).__name__}") from error


def _memo(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
