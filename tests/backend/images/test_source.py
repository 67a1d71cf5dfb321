from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import clickmask.images.source
from clickmask.errors import Gone, ImageUnavailable, InvalidInput, TooLarge
from clickmask.images.decode import ImageLimits, decode_image
from clickmask.images.fetch import Fetched, Fetcher, NotModified, Require, Validator, decode_base64
from clickmask.images.source import ImageIdentity, ImageSource
from clickmask.types import Image, ImageRef
from support.waiting import until


def png(seed: int = 0, height: int = 30, width: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class FakeFetcher(Fetcher):
    """Addresses of a table; counts whole and conditional answers. `etag` None: the host sends none."""

    def __init__(self, images: dict[str, bytes], etag: bool = True) -> None:
        super().__init__()
        self.images = images
        self.etag = etag
        self.downloads = 0
        self.confirmations = 0
        self.gate = threading.Event()
        self.gate.set()

    def fetch(
        self, ref: ImageRef, known: Validator | None = None, require: Require = lambda count: None
    ) -> Fetched | NotModified:
        if ref.uri.startswith("data:"):
            return super().fetch(ref)
        assert self.gate.wait(5)
        if ref.uri not in self.images:
            self.downloads += 1
            raise ImageUnavailable("host answered 404: gone")
        raw = self.images[ref.uri]
        validator = Validator(str(hash(raw)), ref.uri) if self.etag else None
        if known and known == validator:
            self.confirmations += 1
            return NotModified(60)
        self.downloads += 1
        return Fetched(raw, 60 if self.etag else 300, validator)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was really decoded, in order."""
    done: list[bytes] = []

    def decode(raw: bytes, limits: ImageLimits, require: Require) -> Image:
        done.append(raw)
        return decode_image(raw, limits, require)

    monkeypatch.setattr(clickmask.images.source, "decode_image", decode)
    return done


A, B = ImageRef("https://host/a.png"), ImageRef("https://host/b.png")


def test_identity_and_pixels_agree() -> None:
    source = ImageSource(FakeFetcher({A.uri: png(height=3, width=5)}))
    assert source.identify(A) == ImageIdentity(source.load(A).digest, (3, 5))
    assert source.load(A).size == (3, 5)


def test_a_known_address_is_neither_downloaded_nor_decoded_again(decoded: list[bytes]) -> None:
    fetcher = FakeFetcher({A.uri: png()})
    source = ImageSource(fetcher)
    identities = {source.identify(A).digest for _ in range(5)} | {source.load(A).digest for _ in range(5)}
    assert len(identities) == fetcher.downloads == len(decoded) == 1


def test_after_a_minute_an_etag_is_confirmed_without_a_download(decoded: list[bytes]) -> None:
    fetcher, clock = FakeFetcher({A.uri: png()}), Clock()
    source = ImageSource(fetcher, clock=clock)
    source.load(A)
    clock.now += 59
    source.load(A)
    assert fetcher.confirmations == 0
    for confirmations in (1, 2):
        clock.now += 61
        source.load(A)
        source.identify(A)
        assert (fetcher.downloads, fetcher.confirmations, len(decoded)) == (1, confirmations, 1)


def test_without_an_etag_an_address_is_trusted_for_five_minutes(decoded: list[bytes]) -> None:
    fetcher, clock = FakeFetcher({A.uri: png()}, etag=False), Clock()
    source = ImageSource(fetcher, clock=clock)
    source.identify(A)
    clock.now += 299
    source.identify(A)
    assert fetcher.downloads == 1
    clock.now += 2
    source.identify(A)
    # Downloaded again, but known by its bytes.
    assert (fetcher.downloads, len(decoded)) == (2, 1)


def test_a_replaced_image_is_noticed_when_its_trust_ends() -> None:
    fetcher, clock = FakeFetcher({A.uri: png(1)}), Clock()
    source = ImageSource(fetcher, clock=clock)
    old = source.load(A).digest
    fetcher.images[A.uri] = png(2)
    assert source.load(A).digest == old
    clock.now += 61
    assert source.load(A).digest == source.identify(A).digest == decode_image(png(2)).digest


def test_credentials_do_not_share_answers() -> None:
    fetcher = FakeFetcher({A.uri: png()})
    source = ImageSource(fetcher)
    mine, yours = (ImageRef(A.uri, {"Authorization": f"Token {name}"}) for name in ("mine", "yours"))
    source.load(mine)
    del fetcher.images[A.uri]
    assert source.load(mine)
    for other in (yours, A):
        with pytest.raises(ImageUnavailable):
            source.load(other)


def test_no_token_is_kept() -> None:
    source = ImageSource(FakeFetcher({A.uri + "?sig=5ecret": png()}))
    source.load(ImageRef(A.uri + "?sig=5ecret", {"Authorization": "Token 5ecret"}))
    keys = list(source._by_address._entries)  # pyright: ignore
    assert len(keys) == 1 and "5ecret" not in keys[0]


def test_the_same_bytes_under_two_addresses_are_decoded_once(decoded: list[bytes]) -> None:
    source = ImageSource(FakeFetcher({A.uri: png(), B.uri: png()}))
    assert source.load(A) is source.load(B)
    assert source.identify_bytes(png()).digest == source.load(A).digest
    assert source.load(ImageRef("data:image/png;base64," + base64.b64encode(png()).decode())) is source.load(
        A
    )
    assert len(decoded) == 1


@pytest.mark.parametrize("kind", ["address", "data"])
def test_eight_threads_share_one_download_and_one_decode(
    kind: str, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
) -> None:
    fetcher = FakeFetcher({A.uri: png()})
    fetcher.gate.clear()
    source = ImageSource(fetcher)
    ref = A if kind == "address" else ImageRef("data:;base64," + base64.b64encode(png()).decode())
    digests: list[str] = []
    lock = threading.Lock()

    def work(call: Callable[[ImageRef], Image | ImageIdentity]) -> None:
        digest = call(ref).digest
        with lock:
            digests.append(digest)

    threads = [threading.Thread(target=work, args=(call,)) for call in [source.load, source.identify] * 4]
    for thread in threads:
        thread.start()
    fetcher.gate.set()
    for thread in threads:
        thread.join()
    assert digests == [decode_image(png()).digest] * 8
    assert len(decoded) == 1
    assert fetcher.downloads == (1 if kind == "address" else 0)


def test_a_flight_that_starts_when_another_has_just_landed_asks_nothing(decoded: list[bytes]) -> None:
    fetcher = FakeFetcher({A.uri: png()})
    source = ImageSource(fetcher)
    image = source.load(A)
    (key,) = source._by_address._entries  # pyright: ignore
    # What a thread does that looked before the landing and leads a flight after it.
    assert source._ask(A, key, nullcontext()) == ImageIdentity(image.digest, image.size)  # pyright: ignore
    assert source._load_again(A, key, nullcontext()) is image  # pyright: ignore
    assert (fetcher.downloads, fetcher.confirmations, len(decoded)) == (1, 0, 1)


def test_threads_that_wait_for_a_failing_download_all_hear_of_it_and_it_is_not_kept() -> None:
    fetcher = FakeFetcher({})
    fetcher.gate.clear()
    source = ImageSource(fetcher)
    heard: list[str] = []

    def work() -> None:
        with pytest.raises(ImageUnavailable) as caught:
            source.load(A)
        heard.append(str(caught.value))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    fetcher.gate.set()
    for thread in threads:
        thread.join()
    assert heard == ["host answered 404: gone"] * 4
    fetcher.images[A.uri] = png()
    assert source.load(A).size == (30, 40)


def test_images_at_once_never_cross() -> None:
    uris = {f"https://host/{seed}": png(seed) for seed in range(4)}
    expected = {uri: decode_image(raw).digest for uri, raw in uris.items()}
    source = ImageSource(FakeFetcher(uris), image_bytes=2 * 30 * 40 * 3)  # room for two of the four
    wrong: list[str] = []

    def work(offset: int) -> None:
        for step in range(20):
            uri = f"https://host/{(step + offset) % 4}"
            if source.load(ImageRef(uri)).digest != expected[uri] or source.identify(ImageRef(uri)).size != (
                30,
                40,
            ):
                wrong.append(uri)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_only_a_few_images_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of the largest at once would take all memory."""
    lock, hold = threading.Lock(), threading.Event()
    running: list[bytes] = []

    def decode(raw: bytes, limits: ImageLimits, require: Require) -> Image:
        require(len(raw))
        with lock:
            running.append(raw)
        hold.wait(60)
        return decode_image(raw, limits)

    monkeypatch.setattr(clickmask.images.source, "decode_image", decode)
    source = ImageSource(Fetcher())
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(source.identify_bytes, png(seed)) for seed in range(12)]
        until(lambda: len(running) == 4)
        assert not any(each.done() for each in waiting) and len(running) == 4
        hold.set()
        assert len({each.result(60).digest for each in waiting}) == 12


def test_pixels_that_had_to_go_are_fetched_again_and_the_identity_stays(decoded: list[bytes]) -> None:
    fetcher = FakeFetcher({A.uri: png(1), B.uri: png(2)})
    source = ImageSource(fetcher, image_bytes=30 * 40 * 3)
    first = source.load(A)
    source.load(B)
    assert fetcher.downloads == 2
    assert source.identify(A).digest == first.digest
    assert fetcher.downloads == 2
    again = source.load(A)
    assert (again.digest, fetcher.downloads, len(decoded)) == (first.digest, 3, 3)
    assert np.array_equal(again.pixels, first.pixels)


def test_the_least_recently_used_pixels_go_first() -> None:
    source = ImageSource(Fetcher(), image_bytes=2 * 30 * 40 * 3)
    first, second = source.load_bytes(png(1)), source.load_bytes(png(2))
    source.load_digest(first.digest)
    source.load_bytes(png(3))
    assert source.load_digest(first.digest) is first
    with pytest.raises(Gone):
        source.load_digest(second.digest)


def test_the_newest_image_stays_even_if_it_is_too_large_for_the_budget() -> None:
    fetcher = FakeFetcher({A.uri: png(1), B.uri: png(2)})
    source = ImageSource(fetcher, image_bytes=1)
    assert source.load(A) is source.load(A)
    assert fetcher.downloads == 1
    source.load(B)
    assert len(source._images) == 1  # pyright: ignore


def test_a_digest_stands_for_an_image_that_is_known() -> None:
    source = ImageSource(Fetcher(), image_bytes=1)
    image = source.load_bytes(png(1))
    ref = ImageRef(f"digest:{image.digest}")
    assert source.identify(ref) == ImageIdentity(image.digest, (30, 40))
    assert source.load(ref) is image
    source.load_bytes(png(2))
    assert source.identify(ref).size == (30, 40)
    with pytest.raises(Gone, match="send the image again"):
        source.load(ref)
    with pytest.raises(Gone, match="send the image again"):
        source.identify(ImageRef("digest:" + "0" * 64))


def test_bookkeeping_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clickmask.images.source, "MAX_KNOWN_IMAGES", 3)
    uris = {f"https://host/{seed}": png(seed, 2, 2) for seed in range(10)}
    source = ImageSource(FakeFetcher(uris))
    for uri in uris:
        source.load(ImageRef(uri))
    for kept in (source._by_address, source._by_bytes, source._by_digest):  # pyright: ignore
        assert len(kept) == 3
    for flights in (source._identifying, source._loading, source._decoding):  # pyright: ignore
        assert flights._flights == {}  # pyright: ignore


def test_files_are_asked_each_time_but_decoded_once(tmp_path: Path, decoded: list[bytes]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1))
    source = ImageSource(Fetcher(roots=(tmp_path,)))
    ref = ImageRef(path.as_uri())
    first = source.load(ref)
    assert source.load(ref) is first
    path.write_bytes(png(2, 31, 40))
    assert source.load(ref).size == source.identify(ref).size == (31, 40)
    assert len(decoded) == 2


def test_a_base64_text_that_was_seen_is_recognised_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
) -> None:
    def decode(text: memoryview, limits: ImageLimits) -> bytes:
        texts.append(bytes(text))
        return decode_base64(text, limits)

    texts = list[bytes]()
    monkeypatch.setattr(clickmask.images.source, "decode_base64", decode)
    source = ImageSource(Fetcher())
    text = memoryview(base64.b64encode(png(1)))
    identity = source.identify_base64(text)
    assert identity == source.identify_bytes(png(1))
    assert source.identify_base64(bytes(text)) == identity
    assert source.load(ImageRef(f"digest:{identity.digest}")).size == identity.size
    assert (texts, decoded) == ([bytes(text)], [png(1)])


def test_texts_that_are_remembered_are_bounded_and_the_oldest_use_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clickmask.images.source, "MAX_KNOWN_IMAGES", 2)
    source, texts = ImageSource(Fetcher()), [base64.b64encode(png(seed)) for seed in range(4)]
    for seed in (1, 2, 1, 3, 1, 2):
        source.identify_base64(texts[seed])
    kept = [seed for seed, text in enumerate(texts) if hashlib.sha256(text).hexdigest() in source._by_text]  # pyright: ignore
    assert kept == [1, 2]


@pytest.mark.parametrize("text", ["Bä", "AAA", "no base64!", "QUJD"])
def test_a_text_that_is_no_image_is_refused_each_time(text: str) -> None:
    source = ImageSource(Fetcher())
    for _ in range(2):
        with pytest.raises(InvalidInput):
            source.identify_base64(memoryview(text.encode()))


def test_a_text_over_the_cap_is_refused_before_it_is_decoded() -> None:
    source = ImageSource(Fetcher(), limits=ImageLimits(max_bytes=100))
    with pytest.raises(TooLarge):
        source.identify_base64(b"!" * 1000)


def test_limits_reach_the_decoder() -> None:
    source = ImageSource(Fetcher(), limits=ImageLimits(max_pixels=100))
    with pytest.raises(TooLarge, match="40x30"):
        source.identify_bytes(png())


def test_damaged_bytes_are_refused_again_each_time(decoded: list[bytes]) -> None:
    source = ImageSource(Fetcher())
    for _ in range(2):
        with pytest.raises(InvalidInput):
            source.load(ImageRef("data:;base64," + base64.b64encode(png()[:200]).decode()))
    assert len(decoded) == 2


def test_the_original_bytes_are_read_and_known_from_then_on() -> None:
    fetcher = FakeFetcher({A.uri: png(1)})
    source = ImageSource(fetcher)
    assert source.known(A) is None
    identity, raw = source.read(A)
    assert raw == png(1)
    assert source.known(A) == identity == source.identify(A)
    assert fetcher.downloads == 1
    data = ImageRef("data:image/png;base64," + base64.b64encode(png(2)).decode())
    identity, raw = source.read(data)
    assert raw == png(2)
    assert identity == source.identify(data)
    assert source.known(data) is None
