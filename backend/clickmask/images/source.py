"""Images by reference. Each is fetched and decoded once, and kept while there is room."""

import hashlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from clickmask.caches import Lru, SingleFlight
from clickmask.errors import Gone, HostBusy, ImageUnavailable
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits, decode_image
from clickmask.images.fetch import Fetched, Fetcher, Validator, decode_base64
from clickmask.images.memory import DECODE_BYTES, MemoryBudget, Room
from clickmask.images.places import FetchPlaces
from clickmask.types import Image, ImageRef, Size

MAX_KNOWN_IMAGES = 20_000  # entries in each map from a key to an identity; about 300 bytes each
MAX_DECODES = 4  # at once
ENCODED_BYTES = 256 * 2**20  # of files that are being read or decoded, or more if one may be larger
ANNOTATING_BYTES = 6  # for each pixel: its class, whether it is of one class, and the number of its part
MAX_ENCODED = 256  # such files at once
Context = AbstractContextManager[None]
_GONE = "the image is not known here any more: send the image again"


@dataclass(frozen=True)
class ImageIdentity:
    """The digest of an image's upright pixels, and their size."""

    digest: str
    size: Size


@dataclass(frozen=True)
class _Answer:
    """The last image at an address, the time until which it is trusted, and how to ask whether it changed."""

    identity: ImageIdentity
    expires_at: float  # seconds of the source's clock
    validator: Validator | None


class ImageSource:
    """Identities and pixels of images. One per process; callable from any thread. `identify` neither
    downloads nor decodes an image it knows by the hash of its bytes or base64 text. At a known address and
    credentials, it trusts its last answer for as long as the fetcher allows, then asks conditionally.
    `image_bytes` of pixels are kept; the least recently used go first, the newest stays. All pixels that
    anybody has, and the decodings under way, take at most `decode_bytes`: for more an image is TooLarge, or
    waits, or is Busy. A thread that waits for a host has one of few places: see `FetchPlaces`."""

    def __init__(
        self,
        fetcher: Fetcher,
        image_bytes: int = 256 * 2**20,
        limits: ImageLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
        decode_bytes: int = DECODE_BYTES,
    ) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._clock = clock
        self._images = Lru[str, Image](
            max_bytes=image_bytes, size=lambda image: image.pixels.nbytes, keep_newest=True
        )
        self._by_address = Lru[str, _Answer](max_count=MAX_KNOWN_IMAGES)
        self._by_text = Lru[str, ImageIdentity](max_count=MAX_KNOWN_IMAGES)
        self._by_bytes = Lru[str, ImageIdentity](max_count=MAX_KNOWN_IMAGES)
        self._by_digest = Lru[str, ImageIdentity](max_count=MAX_KNOWN_IMAGES)
        self._places = FetchPlaces()
        self._identifying = SingleFlight[ImageIdentity]()
        self._loading = SingleFlight[Image]()
        self._decoding = SingleFlight[Image]()
        self._decoded = MemoryBudget(decode_bytes, MAX_DECODES, self._images.drop_oldest)
        self._gathering = threading.Lock()
        self._encoded = MemoryBudget(max(ENCODED_BYTES, limits.max_bytes * 5 // 4), MAX_ENCODED)

    def identify(self, ref: ImageRef) -> ImageIdentity:
        """Digest and size of what `ref` shows now. Raises what fetching and decoding raise."""
        if ref.uri.startswith("digest:"):
            identity = self._by_digest.get(ref.uri.removeprefix("digest:"))
            if identity is None:
                raise Gone(_GONE)
            return identity
        if _is_data(ref):
            with self._encoded.room() as room:
                return self.identify_bytes(self._fetch(ref, room).raw)
        key = _key(ref)
        if known := self._unexpired(key):
            return known
        try:
            with self._at(ref) as fetching:
                return self._identifying.run(key, lambda: self._ask(ref, key, fetching))
        except HostBusy:
            if last := self._by_address.get(key):  # an answer of a minute ago, rather than none
                return last.identity
            raise

    def identify_bytes(self, raw: bytes) -> ImageIdentity:
        """Digest and size of an encoded image, which is decoded only if its bytes are new."""
        known = self._by_bytes.get(hashlib.sha256(raw).hexdigest())
        return known or _identity(self.load_bytes(raw))

    def identify_base64(self, text: bytes | memoryview) -> ImageIdentity:
        """Digest and size of an image in base64, decoded only if new: hashing 8 MiB of text takes 6 ms,
        decoding at least 42 ms. Its pixels may be gone: ask with `digest:` first, and on Gone as `data:`."""
        key = hashlib.sha256(text).hexdigest()
        identity = self._by_text.get(key)
        if identity is None:
            with self._encoded.room() as room:
                room.require(min(len(text), self._limits.max_bytes))
                identity = self.identify_bytes(decode_base64(text, self._limits))
            self._by_text.put(key, identity)
        return identity

    def known(self, ref: ImageRef) -> ImageIdentity | None:
        """The answer of `identify`, or None if it would take a request or decoding."""
        return None if _is_data(ref) else self._unexpired(_key(ref))

    def load(self, ref: ImageRef) -> Image:
        """The image that `ref` shows now, fetched again if its pixels are no longer kept. Its digest may
        differ from that of an earlier `identify`, since the image at an address may change."""
        if ref.uri.startswith("digest:"):
            return self.load_digest(ref.uri.removeprefix("digest:"))
        if _is_data(ref):
            with self._encoded.room() as room:
                return self.load_bytes(self._fetch(ref, room).raw)
        if image := self._images.get(self.identify(ref).digest):
            return image
        key = _key(ref)
        with self._at(ref) as fetching:
            return self._loading.run(key, lambda: self._load_again(ref, key, fetching))

    @contextmanager
    def annotating(self, ref: ImageRef) -> Generator[Image]:
        """The image that `ref` shows now, with the memory that work on all of its pixels takes. Raises what
        `load` raises, Busy, and TooLarge if there can never be as much."""
        with ExitStack() as held:
            with self._gathering:  # two that each had half of what they need would wait for each other
                image = self.load(ref)
                count = ANNOTATING_BYTES * image.size[0] * image.size[1]
                held.enter_context(self._decoded.lend(count, image.pixels.nbytes))
            yield image

    def load_bytes(self, raw: bytes) -> Image:
        """The image in `raw`, decoded unless its pixels are kept."""
        key = hashlib.sha256(raw).hexdigest()

        def decode() -> Image:
            if image := self._kept(key):  # another call has just finished
                return image
            with self._decoded.room() as room:
                image = decode_image(raw, self._limits, room.require)
                room.keep(image.pixels)
            self._images.put(image.digest, image)
            self._by_bytes.put(key, _identity(image))
            self._by_digest.put(image.digest, _identity(image))
            return image

        return self._kept(key) or self._decoding.run(key, decode)

    def load_digest(self, digest: str) -> Image:
        """The image with this digest. Raises Gone if its pixels are not kept."""
        image = self._images.get(digest)
        if image is None:
            raise Gone(_GONE)
        return image

    def read(self, ref: ImageRef) -> tuple[ImageIdentity, bytes]:
        """Fetch the image that `ref` shows now and its original bytes. Raises what `identify` raises."""
        with self._at(ref) as fetching:
            return self._read(ref, fetching)

    def _read(self, ref: ImageRef, fetching: Context) -> tuple[ImageIdentity, bytes]:
        asked_at = self._clock()
        with self._encoded.room() as room:
            with fetching:
                answer = self._fetch(ref, room)
            identity = self.identify_bytes(answer.raw)
        if not _is_data(ref):
            expires_at = asked_at + answer.trusted_for
            self._by_address.put(_key(ref), _Answer(identity, expires_at, answer.validator))
        return identity, answer.raw

    def _ask(self, ref: ImageRef, key: str, fetching: Context) -> ImageIdentity:
        """The identity behind an address, by a conditional request if it was asked before."""
        if identity := self._unexpired(key):  # another call has just finished
            return identity
        last = self._by_address.get(key)
        asked_at = self._clock()
        with self._encoded.room() as room:
            with fetching:
                answer = self._fetcher.fetch(ref, last.validator if last else None, room.require)
            identity = self.identify_bytes(answer.raw) if isinstance(answer, Fetched) else None
        if isinstance(answer, Fetched) and identity:
            validator = answer.validator
        elif last:
            identity, validator = last.identity, last.validator
        else:
            raise ImageUnavailable(_GONE)
        self._by_address.put(key, _Answer(identity, asked_at + answer.trusted_for, validator))
        return identity

    def _load_again(self, ref: ImageRef, key: str, fetching: Context) -> Image:
        last = self._by_address.get(key)
        if last and (image := self._images.get(last.identity.digest)):  # another call has just finished
            return image
        return self.load_bytes(self._read(ref, fetching)[1])

    def _at(self, ref: ImageRef) -> AbstractContextManager[Context]:
        """A place to wait for the host of `ref`; no wait if there is none."""
        host, trusted = self._fetcher.host_of(ref)
        return self._places.at(host, trusted) if host else nullcontext(nullcontext())

    def _fetch(self, ref: ImageRef, room: Room) -> Fetched:
        answer = self._fetcher.fetch(ref, require=room.require)
        if not isinstance(answer, Fetched):
            raise ImageUnavailable(_GONE)
        return answer

    def _unexpired(self, key: str) -> ImageIdentity | None:
        last = self._by_address.get(key)
        return last.identity if last and self._clock() < last.expires_at else None

    def _kept(self, key: str) -> Image | None:
        identity = self._by_bytes.get(key)
        return self._images.get(identity.digest) if identity else None


def _identity(image: Image) -> ImageIdentity:
    return ImageIdentity(image.digest, image.size)


def _is_data(ref: ImageRef) -> bool:
    return ref.uri[:5].lower() == "data:"


def _key(ref: ImageRef) -> str:
    """One key per address and credentials: users may see different images. A hash keeps no token."""
    parts = [ref.uri, *(f"{name.lower()}:{value}" for name, value in sorted(ref.headers.items()))]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
