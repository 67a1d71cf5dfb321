"""Images by their reference: each one fetched once, decoded once, and kept while there is room."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from clickmask.errors import ImageUnavailable, ImageUnknown
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits, decode_image
from clickmask.images.fetch import Fetched, Fetcher, Validator
from clickmask.types import Image, ImageRef, Size

K = TypeVar("K")
V = TypeVar("V")

_MAX_KNOWN = 20_000  # entries of each map from a key to an identity; about 300 bytes each
_MAX_DECODES = 4  # an image of the most pixels that are read takes 0.7 GB while it is decoded
_GONE = "the image is not known here any more: send the image again"


@dataclass(frozen=True)
class ImageIdentity:
    """The digest of an image's upright pixels, and their size."""

    digest: str
    size: Size


@dataclass(frozen=True)
class _Seen:
    """What an address last gave, until when (monotonic seconds) to believe it, and how to ask again."""

    identity: ImageIdentity
    until: float
    validator: Validator | None


class ImageSource:
    """Identities and pixels of images. One object an app; callable from any thread.

    `identify` neither downloads nor decodes what is known: by the hash of the bytes, or by address
    and credentials for as long as the fetcher vouches, after that by a conditional request.
    Pixels are kept up to `image_bytes`, the least recently used go first; the newest image
    stays even if it is larger than that alone.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        image_bytes: int = 256 * 2**20,
        limits: ImageLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._clock = clock
        self._images = _ImagesByBytes(image_bytes)
        self._by_address = _Recent[str, _Seen](_MAX_KNOWN)
        self._by_bytes = _Recent[str, ImageIdentity](_MAX_KNOWN)
        self._by_digest = _Recent[str, ImageIdentity](_MAX_KNOWN)
        self._identifying = _SingleFlight[ImageIdentity]()
        self._loading = _SingleFlight[Image]()
        self._decoding = _SingleFlight[Image]()
        self._decoders = threading.BoundedSemaphore(_MAX_DECODES)

    def identify(self, ref: ImageRef) -> ImageIdentity:
        """Digest and size of what `ref` shows now. Raises what fetching and decoding raise."""
        if ref.uri.startswith("digest:"):
            return self._by_digest.require(ref.uri.removeprefix("digest:"))
        if ref.uri[:5].lower() == "data:":
            return self.identify_bytes(self._fetch(ref).raw)
        key = _key(ref)
        return self._believed(key) or self._identifying.run(key, lambda: self._ask(ref, key))

    def load(self, ref: ImageRef) -> Image:
        """The image that `ref` shows now; fetched again if its pixels had to go.

        Its digest, not that of an earlier `identify`, names the pixels: the image behind an
        address may have been replaced in between.
        """
        if ref.uri.startswith("digest:"):
            return self.load_digest(ref.uri.removeprefix("digest:"))
        if ref.uri[:5].lower() == "data:":
            return self.load_bytes(self._fetch(ref).raw)
        image = self._images.get(self.identify(ref).digest)
        key = _key(ref)
        return image or self._loading.run(key, lambda: self._load_again(ref, key))

    def known(self, ref: ImageRef) -> ImageIdentity | None:
        """What `identify` gives where it need not ask; None where it has to."""
        return None if ref.uri[:5].lower() == "data:" else self._believed(_key(ref))

    def read(self, ref: ImageRef) -> tuple[ImageIdentity, bytes]:
        """The image that `ref` shows now and its original bytes, fetched. Raises as `identify` does."""
        asked_at = self._clock()
        answer = self._fetch(ref)
        identity = self.identify_bytes(answer.raw)
        if ref.uri[:5].lower() != "data:":
            seen = _Seen(identity, asked_at + answer.trusted_for, answer.validator)
            self._by_address.put(_key(ref), seen)
        return identity, answer.raw

    def identify_bytes(self, raw: bytes) -> ImageIdentity:
        """Digest and size of an encoded image; decoded only if these bytes were never seen."""
        known = self._by_bytes.get(hashlib.sha256(raw).hexdigest())
        return known or _identity(self.load_bytes(raw))

    def load_bytes(self, raw: bytes) -> Image:
        """The image in `raw`, decoded unless its pixels are kept."""
        key = hashlib.sha256(raw).hexdigest()
        return self._kept(key) or self._decoding.run(key, lambda: self._kept(key) or self._decode(raw, key))

    def load_digest(self, digest: str) -> Image:
        """The image of this digest; ImageUnknown if its pixels are not kept."""
        image = self._images.get(digest)
        if image is None:
            raise ImageUnknown(_GONE)
        return image

    def _believed(self, key: str) -> ImageIdentity | None:
        seen = self._by_address.get(key)
        return seen.identity if seen and self._clock() < seen.until else None

    def _ask(self, ref: ImageRef, key: str) -> ImageIdentity:
        believed = self._believed(key)  # by a flight that landed just before this one
        if believed:
            return believed
        seen = self._by_address.get(key)
        asked_at = self._clock()
        answer = self._fetcher.fetch(ref, seen.validator if seen else None)
        if isinstance(answer, Fetched):
            seen = _Seen(self.identify_bytes(answer.raw), asked_at + answer.trusted_for, answer.validator)
        elif seen:
            seen = _Seen(seen.identity, asked_at + answer.trusted_for, seen.validator)
        else:
            raise ImageUnavailable(_GONE)
        self._by_address.put(key, seen)
        return seen.identity

    def _load_again(self, ref: ImageRef, key: str) -> Image:
        seen = self._by_address.get(key)
        image = self._images.get(seen.identity.digest) if seen else None
        if image:  # a flight that landed just before this one
            return image
        asked_at = self._clock()
        answer = self._fetch(ref)
        image = self.load_bytes(answer.raw)
        self._by_address.put(key, _Seen(_identity(image), asked_at + answer.trusted_for, answer.validator))
        return image

    def _fetch(self, ref: ImageRef) -> Fetched:
        answer = self._fetcher.fetch(ref)
        if not isinstance(answer, Fetched):
            raise ImageUnavailable(_GONE)
        return answer

    def _kept(self, key: str) -> Image | None:
        identity = self._by_bytes.get(key)
        return self._images.get(identity.digest) if identity else None

    def _decode(self, raw: bytes, key: str) -> Image:
        with self._decoders:
            image = decode_image(raw, self._limits)
        identity = _identity(image)
        self._images.put(image)
        self._by_bytes.put(key, identity)
        self._by_digest.put(image.digest, identity)
        return image


def _identity(image: Image) -> ImageIdentity:
    return ImageIdentity(image.digest, image.size)


def _key(ref: ImageRef) -> str:
    """One key an address and credentials: what one user may see is not another's. A hash keeps no token."""
    parts = [ref.uri, *(f"{name.lower()}:{value}" for name, value in sorted(ref.headers.items()))]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class _Recent(Generic[K, V]):
    """A map of at most `most` entries; the least recently used go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def require(self, key: K) -> V:
        value = self.get(key)
        if value is None:
            raise ImageUnknown(_GONE)
        return value

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._most:
                self._entries.popitem(last=False)


class _ImagesByBytes:
    """Decoded images by digest, at most `most` bytes of pixels, and always the newest one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._lock = threading.Lock()
        self._images: OrderedDict[str, Image] = OrderedDict()

    def get(self, digest: str) -> Image | None:
        with self._lock:
            if digest in self._images:
                self._images.move_to_end(digest)
            return self._images.get(digest)

    def put(self, image: Image) -> None:
        with self._lock:
            if image.digest not in self._images:
                self._images[image.digest] = image
                self._held += image.pixels.nbytes
            self._images.move_to_end(image.digest)
            while self._held > self._most and len(self._images) > 1:
                _, gone = self._images.popitem(last=False)
                self._held -= gone.pixels.nbytes


class _SingleFlight(Generic[V]):
    """Concurrent calls for one key share one computation, its result or its error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Future[V]] = {}

    def run(self, key: str, compute: Callable[[], V]) -> V:
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not leads:
            return flight.result()
        try:
            flight.set_result(compute())
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[key]
        return flight.result()
