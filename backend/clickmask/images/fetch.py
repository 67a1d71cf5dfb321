"""Bytes of an image by its address: data:, file:// inside configured folders, http(s)://.

Anyone who may write tasks chooses the addresses, so they are not trusted: a name is resolved once, all its
addresses are checked, and the connection is made to a checked one; each redirect starts over. Only configured
origins get credentials. Errors name no paths, queries or tokens.
"""

import binascii
import io
import os
import stat
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import requests
import urllib3.exceptions

from clickmask.errors import ImageUnavailable, InvalidInput, Refused, TooLarge
from clickmask.images.connections import Deadline, PinnedAdapter, Resolver, is_public
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits
from clickmask.types import ImageRef

_CHUNK = 2**16
_MAX_REDIRECTS = 3
_FIRST_ROOM = 2**20  # bytes that a body may take at first; then twice what there is
Require = Callable[[int], None]
# The path was already resolved, so a link there now is a trick. A pipe must not block.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither
_PORTS = {"http": 80, "https": 443}
_STANDARD_ALPHABET, _WHITESPACE = bytes.maketrans(b"-_", b"+/"), b" \t\n\v\f\r"
_ADVICE = {
    401: "it wants credentials: check the API key that clickmask was given",
    403: "it refuses these credentials: check that the API key may read the image",
    404: "check the image's address in the task",
    410: "the image is gone",
    429: "too many requests: try again later",
}


@dataclass(frozen=True)
class Validator:
    """The ETag of an image, and the address (without its query) that sent it."""

    etag: str
    address: str


@dataclass(frozen=True)
class Fetched:
    """The bytes of an image, and the seconds to trust that they have not changed."""

    raw: bytes
    trusted_for: float
    validator: Validator | None


@dataclass(frozen=True)
class NotModified:
    """The image is the same as when its validator was sent."""

    trusted_for: float


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http(s) URL. Raises ValueError if it has none."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("an origin is http(s)://host[:port]")
    return parts.scheme, parts.hostname.rstrip("."), parts.port or _PORTS[parts.scheme]


class Fetcher:
    """A reader of the bytes behind an ImageRef. Callable from any thread. `roots`: folders that
    file:// may read. `hosts`: `host` or `host:port` whose address may be private. `trusted_origins`: URLs of
    labeling tools, which may be private too; only they get a ref's headers. `ca_bundle`: a PEM file that
    replaces certifi's. Timeouts are in seconds; the total one spans redirects."""

    def __init__(
        self,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        roots: Sequence[Path] = (),
        hosts: Sequence[str] = (),
        trusted_origins: Sequence[str] = (),
        ca_bundle: Path | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 15.0,
        total_timeout: float = 60.0,
        trust_etag_for: float = 60.0,
        trust_url_for: float = 300.0,
    ) -> None:
        self._limits = limits
        self._roots = tuple(root.resolve() for root in roots)
        self._hosts = frozenset(host.lower() for host in hosts)
        self._trusted = frozenset(map(origin_of, trusted_origins))
        self._verify = str(ca_bundle) if ca_bundle else True
        self._timeouts = (connect_timeout, read_timeout)
        self._total_timeout = total_timeout
        self._resolver = Resolver()
        self._trust_etag_for = trust_etag_for
        self._trust_url_for = trust_url_for

    def host_of(self, ref: ImageRef) -> tuple[str, bool]:
        """The host that is asked first for `ref`, and whether it is that of a labeling tool; "" for an
        address that needs no network, or is none."""
        try:
            origin = origin_of(ref.uri)
        except ValueError:
            return "", False
        return f"{origin[1]}:{origin[2]}", origin in self._trusted

    def fetch(
        self, ref: ImageRef, known: Validator | None = None, require: Require = lambda count: None
    ) -> Fetched | NotModified:
        """The bytes behind `ref`, or NotModified if they are still those of `known`. `require` is told how
        many bytes there will be in memory, more and more of them, and may raise. Raises Refused,
        ImageUnavailable, TooLarge, and InvalidInput for a damaged data: URI."""
        scheme = ref.uri.partition(":")[0].lower()
        if scheme == "data":
            require(min(len(ref.uri), self._limits.max_bytes))
            return Fetched(read_data_uri(ref.uri, self._limits), 0.0, None)
        if scheme == "file":
            return self._read_file(ref.uri, known, require)
        if scheme in _PORTS:
            return self._follow(ref, known, require)
        raise Refused("an image's address starts with https://, http://, file:// or data:")

    def _read_file(self, uri: str, known: Validator | None, require: Require) -> Fetched | NotModified:
        try:
            parts = urlsplit(uri)
        except ValueError:  # of brackets that hold no address
            raise Refused("a file address is file:///path, on this machine") from None
        path = unquote(parts.path)
        if os.name == "nt":  # file:///C:/images
            path = path.removeprefix("/")
        if parts.netloc not in ("", "localhost") or "\0" in path:
            raise Refused("a file address is file:///path, on this machine")
        refused = Refused("the file lies outside of the folders that clickmask may read (image roots)")
        try:
            # Resolve symlinks before the check, so that an outsider does not learn which files exist.
            real = Path(path).resolve()
        except (OSError, RuntimeError):  # a loop of symlinks
            raise refused from None
        if not any(real.is_relative_to(root) for root in self._roots):
            raise refused
        try:
            handle = os.open(real, _OPEN_FLAGS)
        except OSError as error:
            raise ImageUnavailable(f"the image's file cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("the image's address is not that of a plain file")
            self._limits.require_bytes(status.st_size)
            validator = Validator(f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}", "file")
            if validator == known:
                return NotModified(0.0)
            require(status.st_size)
            with open(handle, "rb", closefd=False) as file:
                raw = file.read(self._limits.max_bytes + 1)
        finally:
            os.close(handle)
        self._limits.require_bytes(len(raw))
        return Fetched(raw, 0.0, validator)  # asking the file system again costs nothing

    def _follow(self, ref: ImageRef, known: Validator | None, require: Require) -> Fetched | NotModified:
        url = _prepared(ref.uri, {}).url or ""
        # The first redirect to another origin drops them for good: the rest of the chain is foreign.
        credentials = dict(ref.headers) if origin_of(url) in self._trusted else {}
        with Deadline(self._total_timeout) as deadline:
            for _ in range(_MAX_REDIRECTS + 1):
                request = _prepared(url, credentials | _conditions(url, known))
                try:
                    with self._hop(request, deadline) as response:
                        location = response.headers.get("Location", "")
                        if not (location and response.is_redirect):
                            return self._answer(response, url, known, deadline, require)
                except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                    raise _unavailable(url, error, deadline) from error
                target = _prepared(urljoin(url, location), {}).url or ""
                if origin_of(target) != origin_of(url):
                    credentials = {}
                url = target
        raise ImageUnavailable(f"{origin_of(url)[1]} redirects more than {_MAX_REDIRECTS} times")

    @contextmanager
    def _hop(self, request: requests.PreparedRequest, deadline: Deadline) -> Generator[requests.Response]:
        """The response to one request, from checked addresses, before its body is read. A Session would read
        the body of a redirect, keep cookies, and ask the environment for proxies, passwords and certificates
        unless told otherwise (trust_env)."""
        _, host, port = origin = origin_of(request.url or "")
        addresses = self._resolver.addresses_of(host, port, min(self._timeouts[0], deadline.left))
        spellings = {host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}"}
        allowed = origin in self._trusted or not self._hosts.isdisjoint(spellings)
        if not allowed and not all(is_public(address[0]) for _, address in addresses):
            remedy = "list it in CLICKMASK_IMAGE_HOSTS to allow it"
            raise Refused(f"{host} has an address in a private network; {remedy}")
        adapter = PinnedAdapter(addresses, deadline)
        send = partial(adapter.send, stream=True, timeout=self._timeouts, verify=self._verify)
        with closing(adapter), closing(send(request)) as response:
            yield response

    def _answer(
        self,
        response: requests.Response,
        url: str,
        known: Validator | None,
        deadline: Deadline,
        require: Require,
    ) -> Fetched | NotModified:
        host, status = origin_of(url)[1], response.status_code
        if status == 304 and _conditions(url, known):
            return NotModified(self._trust_etag_for)
        if status != 200:
            advice = _ADVICE.get(status, "try again later" if status >= 500 else "check the image's address")
            raise ImageUnavailable(f"{host} answered {status}: {advice}")
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            advice = "check the address, and the API key if it asks to log in"
            raise ImageUnavailable(f"{host} answered with a web page instead of an image: {advice}")
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit():
            self._limits.require_bytes(int(length[:20]))
        raw, held = io.BytesIO(), 0  # unlike a bytearray, it gives its bytes away without a copy
        for chunk in _decoded(response, self._limits.max_bytes + 1):
            size = raw.tell() + len(chunk)
            self._limits.require_bytes(size)
            if size > held:
                held = min(max(_FIRST_ROOM, 2 * size), self._limits.max_bytes)
                require(held)
            raw.write(chunk)
        if deadline.passed:  # a cut connection looks like the end of the body
            raise TimeoutError
        etag = response.headers.get("ETag", "")
        if not etag or len(etag) > 256 or not (etag.isascii() and etag.isprintable()):
            return Fetched(raw.getvalue(), self._trust_url_for, None)
        return Fetched(raw.getvalue(), self._trust_etag_for, Validator(etag, url.partition("?")[0]))


def read_data_uri(uri: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes in a data: URI (RFC 2397). Raises InvalidInput for junk, TooLarge over the cap."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise InvalidInput("a data: address is data:[type][;base64],content")
    escapes = payload.count("%")
    if header.rstrip().lower().endswith(";base64"):
        return decode_base64(unquote_to_bytes(payload) if escapes else payload, limits)
    limits.require_bytes(len(payload) - 2 * escapes)
    raw = unquote_to_bytes(payload)
    limits.require_bytes(len(raw))
    return raw


def decode_base64(text: str | bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes in base64. It may be a data: URI, have line breaks, be of the URL alphabet (RFC 4648, 5), and
    lack its padding. Raises InvalidInput for junk, and TooLarge over the cap before decoding."""
    try:
        try:
            limits.require_bytes(len(text) * 3 // 4 - 2)
            raw = binascii.a2b_base64(text, strict_mode=True)
        except (TooLarge, ValueError):  # only these pay for a copy: known images come with each click
            limits.require_bytes((len(text) - 200) // 2)  # a prefix and line breaks take less
            plain = (text.encode("ascii") if isinstance(text, str) else bytes(text)).strip()
            if plain[:5].lower() == b"data:":
                plain = unquote_to_bytes(plain.partition(b",")[2])
            standard = plain.translate(_STANDARD_ALPHABET, _WHITESPACE)
            limits.require_bytes(len(standard) * 3 // 4 - 2)
            if not standard.endswith(b"="):
                standard += b"=" * (-len(standard) % 4)
            raw = binascii.a2b_base64(standard, strict_mode=True)
    except ValueError:  # includes binascii.Error, and text that is not ASCII
        raise InvalidInput("the image's base64 is damaged or cut short") from None
    limits.require_bytes(len(raw))
    return raw


def _prepared(url: str, headers: dict[str, str]) -> requests.PreparedRequest:
    """A GET of the normalized `url`. Raises Refused for an address that must not be requested."""
    own = {"User-Agent": "clickmask", "Accept": "*/*", "Accept-Encoding": "identity"}
    try:
        request = requests.Request("GET", url.partition("#")[0].strip(), headers=headers | own).prepare()
        origin_of(request.url or "")
        netloc = urlsplit(request.url or "").netloc
    except ValueError:  # base class of requests' errors about URLs and headers
        raise Refused("the image's address is not an http:// or https:// address") from None
    if "@" in str(netloc) or "@" in urlsplit(url).netloc:
        raise Refused("an image's address may not carry a user name or password")
    return request


def _conditions(url: str, known: Validator | None) -> dict[str, str]:
    return {"If-None-Match": known.etag} if known and known.address == url.partition("?")[0] else {}


def _decoded(response: requests.Response, most: int) -> Iterator[bytes]:
    """The body in pieces. A compressed body is unpacked in pieces of at most `most` bytes."""
    chunks: Iterator[bytes] = response.raw.stream(_CHUNK, decode_content=False)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        yield from chunks
    elif encoding in ("gzip", "x-gzip", "deflate"):
        unpacker = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
        try:
            for chunk in chunks:
                yield unpacker.decompress(chunk, most)
        except zlib.error:
            raise InvalidInput("the image's compressed transfer is damaged") from None
        if not unpacker.eof:
            raise InvalidInput("the image's compressed transfer is cut short")
    else:
        raise ImageUnavailable("the image's server compresses it in a way that was not asked for")


def _unavailable(url: str, error: Exception, deadline: Deadline) -> ImageUnavailable:
    host = origin_of(url)[1]
    if deadline.passed:
        return ImageUnavailable(f"{host} did not send the image within {deadline.seconds:g} seconds")
    if isinstance(error, requests.exceptions.SSLError):
        return ImageUnavailable(f"the certificate of {host} cannot be verified")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return ImageUnavailable(f"{host} did not answer in time: try again later")
    advice = "check that it runs and the image's address"
    return ImageUnavailable(f"{host} cannot be reached, or broke off: {advice}")
