"""The budgets of memory for pictures, and what their headers say that decoding takes."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import PIL.Image
import pytest

from clickmask.errors import Busy, OutOfMemory, TooLarge
from clickmask.images.decode import DEFAULT_LIMITS, decode_image
from clickmask.images.fetch import Fetcher
from clickmask.images.headers import bytes_to_decode
from clickmask.images.memory import MemoryBudget
from clickmask.images.source import ANNOTATING_BYTES, ImageSource
from clickmask.types import ImageRef
from support.elsewhere import counted
from support.waiting import until

SIDE = 1024
COUNT = SIDE * SIDE
GREY = PIL.Image.new("L", (SIDE, SIDE), 100)


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def needed(raw: bytes) -> int:
    """What decoding says that it takes, without the file itself."""
    told: list[int] = []
    decode_image(raw, DEFAULT_LIMITS, told.append)
    (count,) = told
    return count - len(raw)


def deep(dtype: type) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.zeros((SIDE, SIDE), dtype))


ONE_STRIP = {278: SIDE}
KINDS = {  # bytes for a pixel that are known to be there at one time
    "rgb png": (encoded(GREY.convert("RGB"), "PNG"), 4 + 3),
    "16 bit png": (encoded(deep(np.uint16), "PNG"), 2 + 3),
    "palette gif": (encoded(GREY.convert("P"), "GIF"), 1 + 3),
    "grey and alpha": (encoded(GREY.convert("LA"), "PNG"), 4 + 3),
    "float tiff": (encoded(deep(np.float32), "TIFF", compression="tiff_lzw"), 4 + 3),
    "float tiff of one strip": (
        encoded(deep(np.float32), "TIFF", compression="tiff_lzw", tiffinfo=ONE_STRIP),
        4 + 4,
    ),
    "turned tiff": (encoded(GREY.convert("RGB"), "TIFF", tiffinfo={274: 6}), 4 + 4),
    "jpeg": (encoded(GREY.convert("RGB"), "JPEG"), 3 + 3),
    "progressive jpeg": (encoded(GREY.convert("RGB"), "JPEG", progressive=True, subsampling=0), 6 + 3),
    "progressive cmyk jpeg": (encoded(GREY.convert("CMYK"), "JPEG", progressive=True), 8 + 4),
    "webp": (encoded(GREY.convert("RGB"), "WEBP"), 16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_says_what_decoding_takes(kind: str) -> None:
    raw, known = KINDS[kind]
    own = 48 * 2**20  # strips, and the values that say what is black and white: less for small images
    assert known * COUNT <= needed(raw) <= 1.1 * known * COUNT + own


def test_a_small_image_takes_little() -> None:
    assert needed(encoded(PIL.Image.new("RGB", (64, 48)), "PNG")) < 2 * 2**20


def test_a_jpeg_of_one_channel_a_scan_takes_its_coefficients_too() -> None:
    """It is not called progressive, but its decoder keeps all of the image just the same."""
    raw = bytearray(encoded(GREY.convert("RGB"), "JPEG", subsampling=0))
    plain = needed(bytes(raw))
    raw[raw.index(b"\xff\xda") + 4] = 1  # as if the first scan had one channel; the rest is damaged then
    told: list[int] = []
    with pytest.raises(Exception, match="damaged"):
        decode_image(bytes(raw), DEFAULT_LIMITS, told.append)
    assert told[0] - len(raw) - plain >= 2 * COUNT


def test_a_tile_that_is_larger_than_its_image_counts() -> None:
    """libtiff unpacks whole tiles: one of 60,000 x 60,000 pixels in an image of 16 x 16 would be 3.6 GB."""
    raw = encoded(PIL.Image.new("L", (16, 16)), "TIFF", compression="tiff_lzw")
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        opened.tag_v2[322], opened.tag_v2[323] = 60_000, 60_000
        assert bytes_to_decode(opened) > 3_600_000_000


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_what_pillow_would_take_memory_for_when_it_opens_a_file_is_checked_before(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "GIF":  # a first frame of 65535 x 65535, to be disposed of, on a small screen
        control, frame = b"!\xf9\x04\x08\0\0\0\0", b",\0\0\0\0" + b"\xff\xff\xff\xff" + b"\0\x02\x00"
        raw = b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x80\0\0" + bytes(6) + control + frame
    else:
        body = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14)
        raw = (
            b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body
        )
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("Pillow opened it"))
    with pytest.raises(TooLarge, match=r"6553\dx6553\d|16384x16384"):
        decode_image(raw)


def test_requests_share_the_budget_and_wait_for_each_other() -> None:
    budget = MemoryBudget(1000, places=4)
    with ThreadPoolExecutor(1) as pool, budget.room() as first:
        first.require(600)
        second = budget.room()
        waiting = pool.submit(second.require, 600)
        first.require(500)  # a request may change: the second does not fit yet
        assert not waiting.done() and budget.held == 500
        first.require(300)
        waiting.result(10)
        assert budget.held == 900


def test_a_large_request_that_waits_keeps_no_small_one_waiting() -> None:
    budget = MemoryBudget(1600, places=5)
    with ThreadPoolExecutor(2) as pool, budget.room() as held, budget.room() as other:
        held.require(1400)
        large = [pool.submit(budget.room().require, 700) for _ in range(2)]
        until(lambda: len(budget._queue) == 2)  # pyright: ignore[reportPrivateUsage]
        other.require(100)
        assert budget.held == 1500 and not any(each.done() for each in large)
        held.require(0)
        until(lambda: any(each.done() for each in large))
        held.__exit__()
        other.__exit__()
        for each in large:
            each.result(10)


def test_what_never_fits_is_too_large_and_what_does_not_fit_now_is_busy() -> None:
    budget = MemoryBudget(1000, places=4, patience=0.0)
    with budget.room() as room:
        with pytest.raises(TooLarge, match="takes 1 MB to decode"):
            room.require(1000)  # the last sixteenth is for small ones
        room.require(900)
        with pytest.raises(Busy) as refused, budget.room() as other:
            other.require(101)
        assert refused.value.retry_after > 0
    assert budget.held == 0


def test_pixels_are_counted_until_nobody_has_them() -> None:
    budget = MemoryBudget(1000, places=1, patience=0.0)
    with budget.room() as room:
        room.require(50)
        pixels = np.zeros((4, 2, 3), np.uint8)
        room.keep(pixels)
    assert budget.held == 24
    with budget.room() as another:  # the place is free all the same
        another.require(10)
    del pixels
    assert budget.held == 0


def test_images_that_are_only_kept_make_room() -> None:
    raw = [encoded(PIL.Image.new("RGB", (400, 400), (shade, 0, 0)), "BMP") for shade in range(4)]
    room_for_two = 2 * (len(raw[0]) + needed(raw[0]))
    source = ImageSource(Fetcher(), image_bytes=10**9, decode_bytes=room_for_two)
    digests = [source.load_bytes(each).digest for each in raw]
    assert len(set(digests)) == 4
    held = source._decoded.held  # pyright: ignore[reportPrivateUsage]
    assert 0 < held <= room_for_two


def test_an_image_that_somebody_works_on_does_not_make_room() -> None:
    raw = [encoded(PIL.Image.new("RGB", (400, 400), (shade, 0, 0)), "BMP") for shade in range(2)]
    source = ImageSource(Fetcher(), decode_bytes=(len(raw[0]) + needed(raw[0])) * 16 // 15 + 1)
    source._decoded._patience = 0.0  # pyright: ignore[reportPrivateUsage]
    image = source.load_bytes(raw[0])
    with pytest.raises(Busy):
        source.load_bytes(raw[1])
    del image
    assert source.load_bytes(raw[1]).size == (400, 400)


def test_what_is_lent_for_work_is_counted_and_takes_no_place() -> None:
    budget = MemoryBudget(1600, 1, patience=0.0)
    with budget.lend(900):
        assert budget.held == 900
        with budget.room() as room:
            room.require(50)  # the only place is free
        with pytest.raises(Busy), budget.lend(700):
            pass
    assert budget.held == 0


def test_an_image_that_can_never_be_worked_on_is_too_large_instead_of_asked_for_again() -> None:
    raw = encoded(PIL.Image.new("RGB", (400, 400)), "BMP")
    source, taken = ImageSource(Fetcher()), 400 * 400 * (3 + ANNOTATING_BYTES)
    kept = ImageRef(f"digest:{source.load_bytes(raw).digest}")
    for room, fits in ((taken * 16 // 15 + 1, True), (taken * 16 // 15 - 16, False)):
        source._decoded._most = room  # pyright: ignore[reportPrivateUsage]
        with nullcontext() if fits else pytest.raises(TooLarge), source.annotating(kept) as image:
            assert image.size == (400, 400)


def test_only_a_few_are_decoded_at_once_and_one_place_is_for_small_images() -> None:
    budget = MemoryBudget(1600, places=2, patience=0.0)
    large, small, none = budget.room(), budget.room(), budget.room()
    large.require(200)
    with pytest.raises(Busy):
        none.require(200)
    small.require(100)
    with pytest.raises(Busy):
        none.require(100)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), OSError(12, "no memory")])
def test_a_lack_of_memory_is_not_called_a_damaged_image(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("clickmask.images.decode._upright", fail)
    with pytest.raises(OutOfMemory, match="needs more memory"):
        decode_image(encoded(GREY, "PNG"))


def test_whoever_waits_for_memory_waits_elsewhere() -> None:
    budget = MemoryBudget(100, places=4, patience=0.2)
    with counted() as waiting, budget.room() as held:
        held.require(90)
        with budget.room() as room, pytest.raises(Busy):
            room.require(90)
        assert (waiting.now, waiting.most) == (0, 1)
