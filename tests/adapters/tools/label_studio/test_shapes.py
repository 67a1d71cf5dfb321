"""Label Studio's brush RLE, against frozen bytes of its SDK, itself, and (slow) the SDK; its bit masks."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from clickmask.types import Mask, Point
from clickmask_adapters.tools.label_studio.shapes import (
    PREFIX,
    bit_mask_to_mask,
    brush_rle_to_mask,
    mask_to_bit_mask,
    mask_to_brush_rle,
    original_size,
)
from support import CONTRACTS, drawn, label_studio_sdk_oracle

RECORDED = CONTRACTS / "label_studio"
SIZE = (3, 5)

masks = st_numpy.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@st.composite
def coarse_masks(draw: st.DrawFn) -> Mask:
    """Masks with runs from single pixels to many times the longest run of the format."""
    lengths = draw(
        st.lists(st.sampled_from([1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 40000]), min_size=1)
    )
    values = np.arange(len(lengths)) % 2 == draw(st.integers(0, 1))
    return np.repeat(values, lengths).reshape(1, -1)


def wide() -> Mask:
    """Runs longer than the format's longest, and a single pixel."""
    mask = np.zeros((200, 500), bool)
    mask[100:] = True
    mask[0, 0] = True
    return mask


def just_too_long() -> Mask:
    """A run whose last piece is one pixel: it keeps the widest class."""
    mask = np.zeros((128, 257), bool)
    mask.flat[: 128 * 128 + 1] = True
    return mask


# label_studio_sdk.converter.brush.mask2rle of label-studio-sdk 2.1.2, the mask as 0 and 255
FROZEN = [
    (drawn.line, "00000960391bff044700ca7ffc130c00"),
    (drawn.diagonal, "00000078391bfe1f008fff0b8047ff8dc000"),
    (drawn.pixel, "000000fc391bfe53008fff518000"),
    (drawn.empty, "00000330391bff032f0000"),  # the last bit fills its byte, and a zero byte follows
    (drawn.full, "00000330391bff032fff00"),
    (wide, "00061a80391bfc7ffffffc03ffff807ffff00e1a7601ffffffffffffffffffffe1a7ffe0"),
    (just_too_long, "00020200391bffffffffe0007ffffffc0380fd8000"),
]
FROZEN_DIGESTS = [
    (drawn.disc, "202d5dae866de88cd654d2b2cf712c51cd253f44cccb37bfa4fa685b9a4f0019"),
    (drawn.ring, "c79a7c6e86ca7b613b2a64bdbd5f44cbfac54b67992155ddbad8db2ce321e12b"),
    (drawn.checkerboard, "cf07ec8a22c6f9d54dbf4ab4027f655201b59bcd6c7c5606d1027047a8e85074"),
]


def packed(values: int, blocks: Sequence[tuple[bool, int, Sequence[int]]], word_bits: int = 8) -> list[int]:
    """A brush written bit by bit; a block is (is a run, run class, its value or values and their count)."""
    run_bits = (3, 4, 8, 16)
    text = f"{values:032b}{word_bits - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in run_bits)
    for is_run, run_class, numbers in blocks:
        length, written = (numbers[0], numbers[1:]) if is_run else (len(numbers), numbers)
        text += f"{int(is_run)}{run_class:02b}{length - 1:0{run_bits[run_class]}b}"
        text += "".join(f"{value:08b}" for value in written)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


def recorded_regions() -> list[dict[str, Any]]:
    """What the real UI saved after a click and a box had been accepted."""
    saved = json.loads((RECORDED / "22_webhook_ANNOTATION_CREATED_from_ui.json").read_text())
    return saved["request"]["body"]["annotation"]["result"]


@pytest.mark.parametrize(("draw", "expected"), FROZEN, ids=lambda value: getattr(value, "__name__", ""))
def test_bytes_are_those_of_label_studios_sdk(draw: Any, expected: str) -> None:
    assert bytes(mask_to_brush_rle(draw())).hex() == expected


@pytest.mark.parametrize(
    ("draw", "expected"), FROZEN_DIGESTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_longer_bytes_are_those_of_label_studios_sdk(draw: Any, expected: str) -> None:
    assert hashlib.sha256(bytes(mask_to_brush_rle(draw()))).hexdigest() == expected


@given(masks | coarse_masks())
def test_a_mask_comes_back_from_its_brush(mask: Mask) -> None:
    rle = mask_to_brush_rle(mask)
    assert rle.dtype == np.uint8
    assert np.array_equal(brush_rle_to_mask(rle, mask.shape), mask)
    assert np.array_equal(brush_rle_to_mask(rle.tolist(), mask.shape), mask)


def test_a_mask_whose_pixels_are_not_contiguous_is_encoded_as_it_looks() -> None:
    mask = drawn.ring()
    turned = np.asfortranarray(mask)[:, ::2]
    assert np.array_equal(mask_to_brush_rle(turned), mask_to_brush_rle(turned.copy()))


@pytest.mark.parametrize(("region", "centre"), [(0, (352.0, 96.0)), (1, (480.0, 302.9))])
def test_regions_that_the_real_ui_saved_are_the_discs_that_were_proposed(region: int, centre: Point) -> None:
    mask = brush_rle_to_mask(recorded_regions()[region]["value"]["rle"], (480, 640))
    disc = drawn.disc((480, 640), centre, 72.0)
    assert (mask & disc).sum() / (mask | disc).sum() > 0.97


def test_values_outside_of_runs_are_read_one_by_one() -> None:
    background, stroke = [0, 0, 0, 0], [200, 200, 200, 200]
    rle = packed(
        4 * 15,
        [
            (True, 1, [16, 0]),  # 4 pixels
            (False, 0, stroke + stroke),
            (False, 2, [9, 9, 9, 255, 255, 255, 255, 0, *background]),  # colours decide nothing
            (True, 2, [23, 255]),
            (False, 0, [0]),
        ],
    )
    expected = np.zeros(15, bool)
    expected[[4, 5, 6]] = expected[9:14] = True
    assert np.array_equal(brush_rle_to_mask(rle, SIZE).reshape(-1), expected)


def test_a_pixel_counts_from_half_opacity_on() -> None:
    rle = packed(8, [(True, 0, [4, 127]), (True, 0, [4, 128])])
    assert brush_rle_to_mask(rle, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [1, 2, 3],
        [256] * 20,
        [-1] * 20,
        [0.5] * 20,
        ["0"] * 20,
        [[1]] * 20,
        [[1], 2],
        [None] * 9,
        [2**70] * 9,
        ["x" * 10**6, *["a"] * 10**5],  # NumPy would take 400 GB for it
        10**12,
        "text",
        {"0": 1},
    ],
)
def test_what_is_no_list_of_bytes_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="brush"):
        brush_rle_to_mask(bad, SIZE)


def test_a_size_of_which_no_mask_fits_into_memory_is_none() -> None:
    assert original_size({"original_height": 20_000.0, "original_width": 20_000}) == (20_000, 20_000)
    assert original_size({"original_height": 20_001, "original_width": 20_000}) is None


def test_a_brush_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="60 values, not those of a 5x4 image"):
        brush_rle_to_mask(mask_to_brush_rle(np.ones(SIZE, bool)), (4, 5))


def test_words_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="words of 16 bits"):
        brush_rle_to_mask(packed(60, [(True, 2, [60, 0])], word_bits=16), SIZE)


@pytest.mark.parametrize("kept", [7, 9, 20, 60])
def test_a_brush_that_is_cut_off_is_refused(kept: int) -> None:
    rle = mask_to_brush_rle(drawn.disc())
    with pytest.raises(ValueError, match=r"cut off|beyond its end"):
        brush_rle_to_mask(rle[:kept], (48, 64))


def test_more_values_than_announced_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond its end"):
        brush_rle_to_mask(packed(60, [(True, 2, [61, 0])]), SIZE)


@given(st.binary(min_size=7, max_size=60), st.booleans())
def test_any_bytes_give_a_mask_of_the_size_or_a_refusal(noise: bytes, with_header: bool) -> None:
    header = bytes(packed(60, [])) if with_header else b""
    try:
        mask = brush_rle_to_mask(list(header + noise), SIZE)
    except ValueError as error:
        assert "brush" in str(error)
    else:
        assert mask.shape == SIZE and mask.dtype == np.bool_


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(masks | coarse_masks())
def test_the_sdk_writes_the_same_bytes_and_reads_them_the_same(mask: Mask) -> None:
    rle = mask_to_brush_rle(mask).tolist()
    assert rle == label_studio_sdk_oracle.mask2rle(mask.astype(np.uint8) * 255)
    if mask.size < 2000:
        decoded = label_studio_sdk_oracle.decode_rle(rle).reshape(*mask.shape, 4)[:, :, 3] > 0
        assert np.array_equal(decoded, mask)


def with_alpha(mask: Mask, alpha: int) -> str:
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask, 3] = alpha
    return PREFIX + base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def test_half_transparent_pixels_of_a_bit_mask_decide_by_their_half() -> None:
    assert np.array_equal(bit_mask_to_mask(with_alpha(drawn.disc(), 128), (48, 64)), drawn.disc())
    assert not bit_mask_to_mask(with_alpha(drawn.disc(), 127), (48, 64)).any()


def test_a_bit_mask_is_read_with_line_breaks_and_in_the_url_alphabet() -> None:
    text = mask_to_bit_mask(drawn.disc()).removeprefix(PREFIX)
    lines = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    for written in (lines, text.replace("+", "-").replace("/", "_")):
        assert np.array_equal(bit_mask_to_mask(PREFIX + written, (48, 64)), drawn.disc())


@pytest.mark.parametrize(
    "written",
    [
        "http://host/mask.png",
        PREFIX + "!",
        PREFIX + base64.b64encode(b"no image at all, but long enough for a header").decode(),
        PREFIX + base64.b64encode(cv2.imencode(".png", np.zeros((48, 64), np.uint8))[1].tobytes()).decode(),
        mask_to_bit_mask(drawn.disc())[:-80],
    ],
)
def test_what_is_no_bit_mask_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="bit mask"):
        bit_mask_to_mask(written, (48, 64))
