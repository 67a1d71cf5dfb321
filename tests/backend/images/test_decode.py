from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from itertools import product

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import features

from clickmask.errors import InvalidInput, TooLarge
from clickmask.images.decode import (
    DECODER,
    FORMATS,
    ImageLimits,
    decode_image,
    has_picture_ending,
    opened_image,
    picture_ending,
    pixels_digest,
    readable_formats,
    upright_file,
)

ORIENTATION = 0x0112
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}
# What EXIF 2.32 says of the stored rows and columns, written as the turn of an (H, W, 3) array.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int = 7, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def exif(orientation: int) -> PIL.Image.Exif:
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def drawn(height: int = 48, width: int = 64) -> np.ndarray:
    """Four flat corners of different colours: survives JPEG, and every turn of it is another picture."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 20, 20)
    pixels[: height // 2, width // 2 :] = (20, 250, 20)
    pixels[height // 2 :, : width // 2] = (20, 20, 250)
    return pixels


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_pillow_here_reads_every_promised_format() -> None:
    assert features.check("webp") and features.check("jpg") and features.check("libtiff")


@pytest.mark.parametrize("kind", LOSSLESS)
@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_lossless_formats_give_back_the_very_pixels(kind: str, height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed=seed)
    image = decode_image(encoded(PIL.Image.fromarray(pixels), kind, **LOSSLESS[kind]))
    assert image.size == (height, width)
    assert image.pixels.dtype == np.uint8
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_each_exif_orientation_is_made_upright(
    kind: str, options: dict[str, object], orientation: int
) -> None:
    pixels = noise()
    raw = encoded(PIL.Image.fromarray(pixels), kind, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decode_image(raw).pixels, UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_each_exif_orientation_of_a_jpeg_is_made_upright(orientation: int) -> None:
    raw = encoded(PIL.Image.fromarray(drawn()), "JPEG", quality=95, exif=exif(orientation))
    upright = UPRIGHT[orientation](drawn()).astype(int)
    image = decode_image(raw)
    assert image.size == upright.shape[:2]
    assert np.abs(image.pixels - upright).mean() < 3


def test_compressed_tiff_is_turned_once() -> None:
    pixels = noise()
    raw = encoded(PIL.Image.fromarray(pixels), "TIFF", compression="tiff_lzw", tiffinfo={ORIENTATION: 6})
    np.testing.assert_array_equal(decode_image(raw).pixels, UPRIGHT[6](pixels))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # a note of Pillow on the metadata
@pytest.mark.parametrize("block", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_hide_the_image(block: bytes) -> None:
    raw = encoded(PIL.Image.fromarray(drawn()), "JPEG", exif=block)
    assert decode_image(raw).size == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_alone_is_ignored_as_browsers_do(kind: str) -> None:
    raw = encoded(PIL.Image.fromarray(drawn()), kind, xmp=b'<x:xmpmeta><a tiff:Orientation="6"/></x:xmpmeta>')
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        assert opened.getexif()[ORIENTATION] == 6  # Pillow would believe it
    assert decode_image(raw).size == (48, 64)


def test_orientations_that_exif_does_not_know_are_ignored() -> None:
    for orientation in (0, 9, 200):
        raw = encoded(PIL.Image.fromarray(noise()), "PNG", exif=exif(orientation))
        np.testing.assert_array_equal(decode_image(raw).pixels, noise())


def test_grey_and_bilevel_become_equal_channels() -> None:
    grey = noise(channels=1)
    np.testing.assert_array_equal(
        decode_image(encoded(PIL.Image.fromarray(grey), "PNG")).pixels, np.dstack([grey] * 3)
    )
    bits = grey > 128
    image = decode_image(encoded(PIL.Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(image.pixels, np.dstack([bits * np.uint8(255)] * 3))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_transparency_is_shown_over_white(seed: int) -> None:
    rgba = noise(channels=4, seed=seed)
    alpha = rgba[..., 3:] / 255
    seen = rgba[..., :3] * alpha + 255 * (1 - alpha)
    image = decode_image(encoded(PIL.Image.fromarray(rgba), "PNG"))
    assert np.abs(image.pixels - seen).max() <= 1
    la = rgba[..., [0, 3]]
    image = decode_image(encoded(PIL.Image.fromarray(la), "PNG"))
    assert np.abs(image.pixels - (la[..., :1] * alpha + 255 * (1 - alpha))).max() <= 1


def test_opaque_alpha_changes_nothing() -> None:
    rgba = noise(channels=4)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(
        decode_image(encoded(PIL.Image.fromarray(rgba), "PNG")).pixels, rgba[..., :3]
    )


@pytest.mark.parametrize(("kind", "transparency"), [("PNG", 1), ("GIF", 1), ("PNG", bytes([255, 0, 128]))])
def test_palettes_with_transparency_are_shown_over_white(kind: str, transparency: int | bytes) -> None:
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    seen = decode_image(encoded(image, kind, transparency=transparency)).pixels[0].tolist()
    third = [127, 127, 255] if isinstance(transparency, bytes) else [0, 0, 255]
    assert seen == [[255, 0, 0], [255, 255, 255], third]


def test_a_transparent_colour_of_rgb_and_grey_png_is_shown_over_white() -> None:
    rgb = PIL.Image.new("RGB", (2, 1), (10, 20, 30))
    rgb.putpixel((1, 0), (9, 9, 9))
    assert decode_image(encoded(rgb, "PNG", transparency=(9, 9, 9))).pixels[0].tolist() == [
        [10, 20, 30],
        [255] * 3,
    ]
    grey = PIL.Image.new("L", (2, 1), 10)
    grey.putpixel((1, 0), 9)
    assert decode_image(encoded(grey, "PNG", transparency=9)).pixels[0].tolist() == [[10] * 3, [255] * 3]


def test_palette_without_transparency_gives_its_colours() -> None:
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putdata([1, 0])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert decode_image(encoded(image, kind)).pixels[0].tolist() == [[200, 100, 50], [1, 2, 3]]


def test_cmyk_means_the_same_in_inverted_jpeg_and_in_tiff() -> None:
    cmyk = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    jpeg = encoded(cmyk, "JPEG", quality=100)
    assert b"Adobe" in jpeg[:200]
    for raw in (jpeg, encoded(cmyk, "TIFF")):
        assert np.abs(decode_image(raw).pixels.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(
    ("dtype", "bigger"), [(np.uint16, ""), (np.uint16, ">"), (np.int32, ""), (np.float32, "")]
)
def test_deep_grey_is_stretched_between_percentiles(dtype: type, bigger: str) -> None:
    ramp = np.linspace(1000, 3000, 2000).reshape(40, 50)
    ramp[0, 0] = 60000  # one hot pixel must not make the rest black
    mode = {"": None, ">": "I;16B"}[bigger]
    image = PIL.Image.fromarray(ramp.astype(dtype))
    raw = encoded(
        image if mode is None else PIL.Image.frombytes(mode, (50, 40), ramp.astype(">u2").tobytes()), "TIFF"
    )
    grey = decode_image(raw).pixels
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    values = grey[..., 0].ravel()[1:].astype(int)
    assert values.min() == 0 and values.max() == 255
    assert (np.diff(values) >= 0).all()
    assert abs(values[len(values) // 2] - 128) <= 2


def test_sixteen_bit_png_is_stretched_and_turned() -> None:
    ramp = np.arange(300, 500, dtype=np.uint16).reshape(10, 20)
    image = decode_image(encoded(PIL.Image.fromarray(ramp), "PNG", exif=exif(6)))
    assert image.size == (20, 10)
    assert image.pixels[0, -1, 0] == 0 and image.pixels[-1, 0, 0] == 255


def test_a_deep_image_of_one_value_or_without_numbers_is_black() -> None:
    for values in (np.full((4, 5), 700, np.uint16), np.full((4, 5), np.nan, np.float32)):
        assert not decode_image(encoded(PIL.Image.fromarray(values), "TIFF")).pixels.any()


def test_infinite_and_missing_values_do_not_set_the_window() -> None:
    values = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
    values[0, :3] = (np.nan, np.inf, -np.inf)
    grey = decode_image(encoded(PIL.Image.fromarray(values), "TIFF")).pixels[..., 0]
    assert grey[0, 0] == 0
    assert abs(int(grey[50, 0]) - 128) <= 3


def test_a_few_bright_pixels_on_a_flat_deep_background_stay_visible() -> None:
    values = np.full((100, 100), 100, np.uint16)
    values[3, 4] = 900
    grey = decode_image(encoded(PIL.Image.fromarray(values), "PNG")).pixels[..., 0]
    assert grey[3, 4] == 255 and grey.sum() == 255


def test_animations_give_their_first_frame() -> None:
    frames = [PIL.Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_image(raw).pixels[0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "EPS", "PDF", "JPEG2000", "DDS", "PCX", "SGI"])
def test_formats_beyond_the_list_are_never_opened(kind: str) -> None:
    raw = encoded(PIL.Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(InvalidInput, match="JPEG, PNG, WEBP"):
        decode_image(raw)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.03, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    raw = encoded(PIL.Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(InvalidInput), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libtiff's notes on the tags
        decode_image(raw[: int(len(raw) * part)])


@pytest.mark.parametrize(
    "raw", [b"", b"GIF89a", b"\xff\xd8\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_image_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_image(raw)


@given(
    kind=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_an_image_or_are_refused(kind: str, edits: list[tuple[int, int]]) -> None:
    raw = bytearray(encoded(PIL.Image.fromarray(noise(12, 12)), kind, exif=exif(6)))
    for position, value in edits:
        raw[position % len(raw)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode_image(bytes(raw), ImageLimits(max_pixels=10_000))
        except (InvalidInput, TooLarge):
            return
    assert image.pixels.shape == (*image.size, 3)


def test_byte_cap_is_checked_before_the_bytes_are_looked_at() -> None:
    with pytest.raises(TooLarge, match="more bytes than 10"):
        decode_image(b"not an image at all", ImageLimits(max_bytes=10))


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (1, 100_000_001), (2**31 - 1, 2**31 - 1)])
def test_pixel_cap_is_read_from_the_header(width: int, height: int) -> None:
    # A few dozen bytes: decoding them would have failed with another error.
    with pytest.raises(TooLarge, match=f"{width}x{height}"):
        decode_image(png_header(width, height))


def test_headers_up_to_the_cap_raise_no_warning_of_a_bomb() -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_image(png_header(10_000, 10_000))  # Pillow alone warns above 89 Mpx; warnings are errors here
    assert not isinstance(caught.value, TooLarge)


def test_pixel_cap_counts_exactly() -> None:
    raw = encoded(PIL.Image.fromarray(noise(4, 5)), "PNG")
    assert decode_image(raw, ImageLimits(max_pixels=20)).size == (4, 5)
    with pytest.raises(TooLarge):
        decode_image(raw, ImageLimits(max_pixels=19))


def test_pixels_can_never_be_written() -> None:
    pixels = decode_image(encoded(PIL.Image.fromarray(noise()), "PNG")).pixels
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        pixels.setflags(write=True)


def test_digest_is_of_the_pixels_not_of_the_file() -> None:
    pixels = noise()
    png, bmp = (decode_image(encoded(PIL.Image.fromarray(pixels), kind)) for kind in ("PNG", "BMP"))
    turned = decode_image(
        encoded(PIL.Image.fromarray(np.ascontiguousarray(np.rot90(pixels))), "PNG", exif=exif(6))
    )
    assert png.digest == bmp.digest == turned.digest == pixels_digest(pixels)
    assert len(png.digest) == 64


def test_digest_tells_shapes_decoders_and_pixels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.zeros((2, 6, 3), np.uint8)
    other = flat.copy()
    other[1, 5, 2] = 1
    digests = {pixels_digest(flat), pixels_digest(flat.reshape(3, 4, 3)), pixels_digest(other)}
    monkeypatch.setattr("clickmask.images.decode.DECODER", DECODER + b"+")
    assert len(digests | {pixels_digest(flat)}) == 4


def test_threads_decode_as_one_thread_does() -> None:
    raws = [encoded(PIL.Image.fromarray(noise(60, 80, seed=seed)), "JPEG") for seed in range(4)]
    serial = [decode_image(raw).digest for raw in raws]
    found: list[list[str]] = []

    def work() -> None:
        found.append([decode_image(raw).digest for raw in raws])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [serial] * 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_a_file_is_turned_upright_for_readers_that_know_no_exif(kind: str, orientation: int) -> None:
    pixels = np.kron(
        np.random.default_rng(1).integers(0, 256, (3, 5, 3), np.uint8), np.ones((16, 16, 1), np.uint8)
    )
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, kind, exif=exif, quality=95)
    upright = upright_file(raw.getvalue())
    if orientation == 1:
        assert upright is None
        return
    assert upright is not None
    with PIL.Image.open(io.BytesIO(upright)) as shown:
        assert shown.format == kind
        assert 0x0112 not in shown.getexif()
        stored = np.asarray(shown.convert("RGB")).astype(int)
    displayed = decode_image(raw.getvalue()).pixels
    assert np.abs(stored - displayed).mean() < (3 if kind == "JPEG" else 0.01)
    assert upright_file(upright) is None


def test_a_phones_jpeg_of_several_pictures_keeps_its_quality_when_it_is_turned() -> None:
    first, preview = (PIL.Image.fromarray(drawn(height)) for height in (48, 24))
    raw = encoded(first, "MPO", save_all=True, append_images=[preview], exif=exif(6), quality=97)
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        assert opened.format == "MPO"
    upright = upright_file(raw)
    assert upright is not None
    with PIL.Image.open(io.BytesIO(upright)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (48, 64))
        assert max(map(max, shown.quantization.values())) <= 12  # of quality 95
    assert upright_file(upright) is None


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *product(("RGB", "L", "CMYK", "RGBA"), ("raw", "jpeg", "tiff_lzw", "tiff_adobe_deflate")),
        *(("I;16", compression) for compression in ("raw", "tiff_lzw")),
    ],
)
@pytest.mark.parametrize("orientation", [2, 6])
def test_a_tiff_is_turned_without_a_loss(mode: str, compression: str, orientation: int) -> None:
    if mode == "I;16":
        image = PIL.Image.fromarray(noise(channels=1).astype(np.uint16) * 257)
    else:
        image = PIL.Image.fromarray(drawn()).convert(mode)
    raw = encoded(image, "TIFF", compression=compression, tiffinfo={ORIENTATION: orientation})
    upright = upright_file(raw)
    assert upright is not None
    with PIL.Image.open(io.BytesIO(upright)) as shown:
        assert ORIENTATION not in shown.tag_v2
        assert shown.mode == mode
    assert decode_image(upright).digest == decode_image(raw).digest
    assert upright_file(upright) is None


def test_a_tiff_of_deep_colours_stays_as_it_is_rather_than_lose_them() -> None:
    """16 bits a colour, which Pillow reads as 8: uncompressed, little-endian, one strip, orientation 6."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (2, 3, 3), np.uint16)
    bits, strip = 8 + 2 + 10 * 12 + 4, 8 + 2 + 10 * 12 + 4 + 6
    fields = [
        (256, 3, 1, 3), (257, 3, 1, 2), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, strip), (ORIENTATION, 3, 1, 6), (277, 3, 1, 3), (278, 3, 1, 2),
        (279, 4, 1, pixels.nbytes),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    raw = b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4)
    raw += struct.pack("<3H", 16, 16, 16) + pixels.tobytes()
    assert decode_image(raw).size == (3, 2)
    assert upright_file(raw) is None


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_a_file_is_named_as_its_format_is(kind: str) -> None:
    ending = picture_ending(encoded(PIL.Image.fromarray(noise()), kind))
    assert PIL.Image.registered_extensions()[ending] == ("JPEG" if kind == "MPO" else kind)
    assert has_picture_ending(f"set/photo{ending.upper()}")


@pytest.mark.parametrize("name", ["photo", "photo.", ".png", "a.png/photo", "photo.php", "scan.2024", ""])
def test_other_names_are_no_pictures(name: str) -> None:
    assert not has_picture_ending(name)
    assert picture_ending(name.encode()) == ""


def test_a_file_that_was_damaged_is_refused_when_it_is_turned() -> None:
    with pytest.raises(InvalidInput, match="damaged"):
        upright_file(b"no image")


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_what_pillow_has_opened_is_the_image_of_its_file(orientation: int) -> None:
    raw = encoded(PIL.Image.fromarray(noise(channels=4)), "PNG", exif=exif(orientation))
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        image = opened_image(opened)
    assert image.digest == decode_image(raw).digest
    np.testing.assert_array_equal(image.pixels, decode_image(raw).pixels)


def test_what_pillow_has_opened_may_be_damaged() -> None:
    raw = encoded(PIL.Image.fromarray(noise(60, 60)), "PNG")
    with PIL.Image.open(io.BytesIO(raw[:-500])) as opened, pytest.raises(InvalidInput, match="cut short"):
        opened_image(opened)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([1, 30, 75, 95, 100]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(1, 8),
)
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(
    height: int,
    width: int,
    quality: int,
    subsampling: int,
    progressive: bool,
    channels: int,
    orientation: int,
) -> None:
    """To the bit, though another library decodes it."""
    picture = PIL.Image.fromarray(noise(height, width, channels, seed=height))
    options: dict[str, object] = {"quality": quality, "progressive": progressive, "exif": exif(orientation)}
    raw = encoded(picture, "JPEG", **options, **({"subsampling": subsampling} if channels == 3 else {}))
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        by_pillow = opened_image(opened)
    assert decode_image(raw).digest == by_pillow.digest


def test_a_jpeg_with_bytes_behind_its_end_is_the_image_before_them() -> None:
    raw = encoded(PIL.Image.fromarray(drawn()), "JPEG")
    assert decode_image(raw + b"what a phone appends").digest == decode_image(raw).digest


def progressive_with(scans: int) -> bytes:
    """A JPEG whose last scan is there so many times more."""
    made = io.BytesIO()
    PIL.Image.new("L", (64, 48), 90).save(made, "jpeg", progressive=True)
    raw = made.getvalue()
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * scans + raw[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_they_are_decoded() -> None:
    assert decode_image(progressive_with(50)).size == (48, 64)
    with pytest.raises(InvalidInput, match="100 scans"):
        decode_image(progressive_with(2000))


def test_what_follows_a_jpeg_is_not_taken_for_its_scans() -> None:
    film = b"\xff\xda" * 500
    assert decode_image(progressive_with(0) + film).size == (48, 64)


def test_avif_is_read_and_turned_as_other_formats_are() -> None:
    if "AVIF" not in readable_formats():
        pytest.skip("this Pillow was built without AVIF")
    raw = encoded(PIL.Image.fromarray(drawn()), "AVIF", quality=95, exif=exif(6).tobytes())
    image = decode_image(raw)
    assert np.abs(image.pixels - UPRIGHT[6](drawn()).astype(int)).mean() < 3
    upright = upright_file(raw)
    assert upright is not None
    with PIL.Image.open(io.BytesIO(upright)) as shown:
        assert np.abs(np.asarray(shown).astype(int) - image.pixels).mean() < 3
    assert upright_file(upright) is None
    _refuses_what_is_too_large_or_cut_short(raw)


def test_heic_is_read_as_it_is_displayed() -> None:
    """Its own properties turn it; EXIF only repeats what they say."""
    heif = pytest.importorskip("pillow_heif")
    assert "HEIF" in readable_formats()
    heif.register_heif_opener()
    raw = encoded(PIL.Image.fromarray(drawn()), "HEIF", quality=95, exif=exif(6).tobytes())
    image = decode_image(raw)
    assert np.abs(image.pixels - UPRIGHT[6](drawn()).astype(int)).mean() < 3
    assert upright_file(raw) is None
    _refuses_what_is_too_large_or_cut_short(raw)


def _refuses_what_is_too_large_or_cut_short(raw: bytes) -> None:
    with pytest.raises(TooLarge, match=r"48x64 pixels|64x48 pixels"):
        decode_image(raw, ImageLimits(max_pixels=48 * 64 - 1))
    with pytest.raises(TooLarge, match="more bytes"):
        decode_image(raw, ImageLimits(max_bytes=len(raw) - 1))
    for part in (0.03, 0.5, 0.9):
        with pytest.raises(InvalidInput):
            decode_image(raw[: int(len(raw) * part)])


@pytest.mark.parametrize(
    ("brand", "needs"), [(b"heic", r"HEIF, which needs pillow-heif: pip install"), (b"avif", "AVIF, which")]
)
def test_a_format_that_is_not_read_here_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, brand: bytes, needs: str
) -> None:
    monkeypatch.setattr("clickmask.images.decode.readable_formats", lambda: FORMATS)
    with pytest.raises(InvalidInput, match=needs):
        decode_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand)


@pytest.mark.filterwarnings("error")
def test_a_film_is_no_image() -> None:
    with pytest.raises(InvalidInput, match="not an image that clickmask reads"):
        decode_image(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(64))
