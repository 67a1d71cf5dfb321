"""Downloads of large files over HTTP that resume where they broke off, through any proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests

from clickmask import files
from clickmask.errors import NotReady

Progress = Callable[[int, int], None]  # bytes so far, bytes of the whole file

_CHUNK = 2**16
_TIMEOUTS = (10.0, 60.0)  # seconds to connect, seconds between two pieces of the body


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
            raise NotReady("the mirror's address is none that can be downloaded from") from None
        furthest = -1
        with requests.Session() as session:
            while furthest < self.size < self._total:
                furthest = self.size
                self._transfer(session, address, host, progress)
        if self.size < self._total:
            raise NotReady(
                f"{host} broke off after {megabytes(self.size)} of {megabytes(self._total)}: "
                "the same command goes on from there"
            )

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
            reason = (
                f"{host} cannot be reached: check the network, set CLICKMASK_WEIGHTS_MIRROR, "
                f"or put {self._target.name} into the folder that `clickmask weights list` names"
            )
            if isinstance(error, requests.exceptions.SSLError):
                reason = f"the certificate of {host} cannot be verified"
            elif isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidURL):
                reason = f"the address at {host} is none that can be downloaded from"
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
                raise NotReady(
                    f"{host} offers {total:,} bytes as {self._target.name}; "
                    f"the official file has {self._total:,}"
                )
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
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        start, total = (int(part[1]), part[2]) if part else (-1, "")
    etag = headers.get("ETag", "")
    # A weak ETag may not be sent back in If-Range (RFC 9110, 13.1.5).
    validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return start, int(total) if re.fullmatch(r"\d{1,18}", total) else None, validator


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
