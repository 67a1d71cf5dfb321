"""Checkpoints: where the official files are, whether one is here and complete, and how to fetch it. Only
`fetch` downloads, and only the command line calls it: no request waits for weights. A download resumes where
it broke off, through any proxy."""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests

from clickmask import files
from clickmask.errors import NotFound, NotReady
from clickmask.plugins import Checkpoint

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # bytes so far, bytes of the whole file

_CHUNK = 2**16
_TIMEOUTS = (10.0, 60.0)  # seconds to connect, seconds between two pieces of the body


class WeightsFolder:
    """The files of `checkpoints`, by `family:variant`. For any thread and for several processes. `mirror`, an
    http(s) address or a folder, replaces the official addresses up to the file name. A file's hash is
    remembered beside it (and in memory, for a read-only folder), so that no request hashes gigabytes."""

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
        """The file if it and those beside it are complete and verified. Neither hashes nor downloads."""
        return None if self.missing(name) else self._path(self.checkpoint(name))

    def missing(self, name: str) -> str:
        """The reason that `find` gives no file, as a sentence with its remedy; empty if it gives one."""
        if name not in self.checkpoints:
            return "no weights are known for it"
        for official in self.checkpoint(name).files:
            path = self._path(official)
            if not path.is_file():
                return f"its weights are not here: clickmask weights fetch {name}"
            found = self._digest_seen(path)
            if found is None:
                return f"its weights were not verified yet: clickmask weights path {name}"
            if found != official.sha256:
                other = f"its {path.name} is not the official file (its SHA-256 begins with {found[:12]})"
                return f"{other}: move it away and fetch it"
        return ""

    def verify(self, name: str) -> Path:
        """The complete file, with those beside it, hashed if they are new or changed. Raises NotReady."""
        for path in self._unverified(name):
            with _explained(f"{path.name} cannot be read"):
                before = path.stat()  # a file that changes during hashing is hashed again
                self._remember(path, before, _sha256(path))
        if reason := self.missing(name):
            raise NotReady(f"{name}: {reason}")
        return self._path(self.checkpoint(name))

    def verify_new(self) -> None:
        """Verify new and changed files, before a server takes requests."""
        for name in self.checkpoints:
            if self._unverified(name):
                log.info("verifying the weights of %s", name)
                try:
                    self.verify(name)
                except NotReady as error:
                    log.warning("%s", error)

    def fetch(self, name: str, progress: Progress = lambda done, total: None) -> Path:
        """The file and those beside it, downloaded if they are not here: resumed, verified, then renamed into
        place. Raises NotReady; the next fetch continues the .part file, unless it turns out not to be the
        official file."""
        for checkpoint in self.checkpoint(name).files:
            path = self._path(checkpoint)
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

    def _path(self, checkpoint: Checkpoint) -> Path:
        return self.folder / checkpoint.file

    def _unverified(self, name: str) -> list[Path]:
        """The files that are here, and new or changed since they were hashed."""
        here = [self._path(each) for each in self.checkpoint(name).files]
        return [path for path in here if path.is_file() and self._digest_seen(path) is None]

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
            other = f"its SHA-256 begins with {digest[:12]} instead of {checkpoint.sha256[:12]}"
            raise NotReady(f"what was downloaded is not the official {path.name}: {other}; it was removed")
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
            memo = json.loads(files.read(_memo(path)))
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


class PartialFile:
    """`target`.part, the beginning of a file of `total` bytes, with its server's validator (ETag or date)
    beside it, so that another file's end is never appended. The caller checks the hash before `finish`."""

    def __init__(self, target: Path, total: int) -> None:
        self.path = target.with_name(target.name + ".part")
        self._target = target
        self._total = total
        self._validator_path = target.with_name(target.name + ".part.etag")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._validator_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Rename it to its target. The bytes are durable before the rename, the name after it."""
        files.flush(self.path)
        self.path.replace(self._target)
        self._validator_path.unlink(missing_ok=True)
        files.flush(self._target.parent)

    def copy(self, source: Path, progress: Progress) -> None:
        """Fill it from a file. Raises OSError, and NotReady if there is no such file."""
        if not source.is_file():
            raise NotReady(f"the mirror has no {source.name}")
        self._validator_path.unlink(missing_ok=True)
        with source.open("rb") as file:
            self._write(iter(lambda: file.read(_CHUNK), b""), 0, progress)

    def download(self, address: str, progress: Progress) -> None:
        """Complete it from `address`, through the environment's proxies. Raises NotReady, and OSError if the
        disk fails. The received part stays for the next call."""
        try:
            host = urlsplit(address).hostname or "the mirror"
        except ValueError:
            raise NotReady("nothing can be downloaded from the mirror's address") from None
        furthest = -1
        with requests.Session() as session:
            while furthest < self.size < self._total:
                furthest = self.size
                self._transfer(session, address, host, progress)
        if self.size < self._total:
            after = f"{megabytes(self.size)} of {megabytes(self._total)}"
            raise NotReady(f"{host} broke off after {after}: the same command goes on from there")

    def _transfer(self, session: requests.Session, address: str, host: str, progress: Progress) -> None:
        have, validator = self.size, ""
        with suppress(OSError, ValueError):
            written = self._validator_path.read_text("ascii")
            validator = written if written.isprintable() else ""
        headers = {"User-Agent": "clickmask", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
        try:
            response = session.get(address, headers=headers, stream=True, timeout=_TIMEOUTS)
        except requests.RequestException as error:
            by_hand = f"put {self._target.name} into the folder that `clickmask weights list` names"
            remedy = f"check the network, set CLICKMASK_WEIGHTS_MIRROR, or {by_hand}"
            reason = f"{host} cannot be reached: {remedy}"
            if isinstance(error, requests.exceptions.SSLError):
                reason = f"the certificate of {host} cannot be verified"
            elif isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidURL):
                reason = f"nothing can be downloaded from the address at {host}"
            raise NotReady(reason) from error
        with response:
            start, total, offered = _offer(response)
            goes_on = have and start == have and validator in ("", offered)
            if start != 0 and not goes_on:  # 416, a part that was not asked for, or another file
                if not have:
                    raise NotReady(f"{host} answered {response.status_code} to a plain download")
                self.remove()
                self._transfer(session, address, host, progress)
                return
            if total not in (None, self._total):
                offer = f"{host} offers {total:,} bytes as {self._target.name}"
                raise NotReady(f"{offer}; the official file has {self._total:,}")
            if not goes_on:
                self._validator_path.write_text(offered)
            with suppress(requests.RequestException):  # it broke off: `download` goes on from there
                self._write(response.iter_content(_CHUNK), have if goes_on else 0, progress)

    def _write(self, chunks: Iterator[bytes], done: int, progress: Progress) -> None:
        """Append after `done` bytes, or begin a new file if `done` is 0."""
        progress(done, self._total)
        with self.path.open("ab" if done else "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                done += len(chunk)
                if done > self._total:
                    break  # a different file: its hash will show that
                progress(done, self._total)


def _offer(response: requests.Response) -> tuple[int, int | None, str]:
    """The body's offset in the file (-1 if it has none), the file's bytes, and its validator, all from the
    headers. Raises NotReady if the response has no file."""
    status, headers = response.status_code, response.headers
    if status not in (200, 206, 416):
        is_temporary = status in (408, 429) or status >= 500
        advice = "try again later" if is_temporary else "check the mirror, or the proxy"
        raise NotReady(f"{urlsplit(response.url).hostname} answered {status}: {advice}")
    start, total = 0, headers.get("Content-Length", "")
    if status != 200:
        part = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        start, total = (int(part[1]), part[2]) if part else (-1, "")
    etag = headers.get("ETag", "")
    # A weak ETag may not be sent back in If-Range (RFC 9110, 13.1.5).
    validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return start, int(total) if re.fullmatch(r"\d{1,18}", total) else None, validator


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
