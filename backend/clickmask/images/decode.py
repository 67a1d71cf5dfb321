"""Decoding of bytes into upright RGB pixels, and the digest that names them."""

import ctypes
import hashlib
import importlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, cast

import cv2
import numpy as np
import PIL.features
import PIL.Image
import simplejpeg
from numpy.typing import NDArray

from clickmask.errors import (
    NEEDS_MEMORY,
    ClickmaskError,
    InvalidInput,
    OutOfMemory,
    TooLarge,
    is_out_of_memory,
)
from clickmask.images.headers import (
    MAX_SCANS,
    STRIP_PIXELS,
    WINDOW_PIXELS,
    bytes_to_decode,
    canvas_of,
    is_deep,
    is_interleaved,
    scans_of,
)
from clickmask.types import Image, Pixels, Size

# Pillow's own cap only warns up to twice its value, through filters that all threads share. `decode_image`
# has a stricter one.
PIL.Image.MAX_IMAGE_PIXELS = None
# Damaged tags are warned of each with its number, which would fill the log; pixels are judged below.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# libtiff, inside of Pillow, would write a line for each to the standard error.
with suppress(AttributeError, OSError):  # a Pillow that was linked in another way
    _libraries = ctypes.CDLL(PIL.Image.core.__file__)
    for _set in (_libraries.TIFFSetErrorHandler, _libraries.TIFFSetWarningHandler):
        _set(None)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # everywhere; `readable_formats` are those here

# Endings of file names by format, the usual one first. Readers of datasets pass over files with other ones.
ENDINGS = {
    **{"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".mpo"), "PNG": (".png",), "WEBP": (".webp",)},
    **{"BMP": (".bmp",), "TIFF": (".tif", ".tiff"), "GIF": (".gif",)},
    **{"AVIF": (".avif",), "HEIF": (".heic", ".heif")},
}

# Brands that name the coding of a file of ISO 23008-12, and what reads it.
_BRANDS = {
    "AVIF": (frozenset({b"avif", b"avis"}), "a Pillow that was built with AVIF"),
    "HEIF": (
        frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}),
        "pillow-heif: pip install 'clickmask[heic]'",
    ),
}

# Name and version of the recipe below, part of each digest. Raise the number when the same file must give
# other pixels. Pillow's version is left out because the pixels are hashed.
DECODER = b"clickmask.images 1"

# EXIF 2.32, tag 0x0112: the transpositions that make stored pixels upright, for the orientations 2 to 8.
_ORIENTATION = 0x0112
_BITS = 0x0102  # BitsPerSample of TIFF 6.0
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {number: PIL.Image.Transpose[turn] for number, turn in enumerate(_TURNS.split(), 2)}

# Pillow's plugins raise these for bytes that are cut short or not what they claim to be.
_CORRUPT = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, struct.error, zlib.error),
)
_SAVE_OPTIONS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_adobe_deflate"},  # else a TIFF of JPEG is one again, of quality 75
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_DAMAGED = "the image is damaged, cut short, or of a kind that clickmask does not read"

_WINDOW = (0.5, 99.5)  # percentiles of the pixels


@dataclass(frozen=True)
class ImageLimits:
    """Caps that are checked before decoding: bytes of the file, pixels by its header."""

    max_bytes: int = 200 * 2**20
    max_pixels: int = 100_000_000

    def require_bytes(self, count: int) -> None:
        """Raise TooLarge for a file of more than `max_bytes`."""
        if count > self.max_bytes:
            raise TooLarge(f"the image has more bytes than {self.max_bytes}, the most that is read")

    def require_pixels(self, width: int, height: int) -> None:
        """Raise TooLarge for an image of more than `max_pixels`."""
        if width * height > self.max_pixels:
            most = self.max_pixels
            raise TooLarge(f"the image has {width}x{height} pixels; the most that is read is {most}")


DEFAULT_LIMITS = ImageLimits()


@cache
def readable_formats() -> tuple[str, ...]:
    """`FORMATS`, AVIF if Pillow was built with it, and HEIF (HEIC is its kind) with pillow-heif."""
    avif = ["AVIF"] if PIL.features.check("avif") else []
    with suppress(ImportError):  # it is optional
        importlib.import_module("pillow_heif").register_heif_opener()
        return (*FORMATS, *avif, "HEIF")
    return (*FORMATS, *avif)


def decode_image(
    raw: bytes, limits: ImageLimits = DEFAULT_LIMITS, require: Callable[[int], None] = lambda count: None
) -> Image:
    """The upright RGB pixels of a file of `readable_formats` (the first frame or page).

    EXIF orientation is applied. Transparent pixels are blended over white, as in viewers. CMYK is converted
    without its profile. Grey of more than 8 bits (integer or float) is stretched so that its 0.5th to 99.5th
    percentile becomes 0 to 255. The pixels can never be made writeable. `require` is told how many bytes of
    memory this will take, the file included, before any pixel is decoded, and may raise. Raises TooLarge over
    `limits`, InvalidInput for anything that is not a whole image, and OutOfMemory.
    """
    limits.require_bytes(len(raw))
    try:
        limits.require_pixels(*canvas_of(raw))
        with PIL.Image.open(io.BytesIO(raw), formats=_formats(raw)) as opened:
            limits.require_pixels(*opened.size)
            is_jpeg = opened.format in ("JPEG", "MPO")
            if is_jpeg and scans_of(raw) > MAX_SCANS:
                raise InvalidInput(f"the image is a JPEG of more than {MAX_SCANS} scans")
            require(len(raw) + bytes_to_decode(opened, not is_jpeg or is_interleaved(raw, opened)))
            pixels = _jpeg_pixels(raw, opened)
            return opened_image(opened) if pixels is None else Image(pixels, pixels_digest(pixels))
    except PIL.UnidentifiedImageError:
        known = ", ".join(readable_formats())
        raise InvalidInput(f"this is not an image that clickmask reads; it reads {known}") from None
    except (*_CORRUPT, MemoryError) as error:
        raise _failure(error) from error


def opened_image(opened: PIL.Image.Image) -> Image:
    """Decode an image that Pillow has opened, like `decode_image` but without caps. Raises InvalidInput."""
    try:
        opened.load()
        orientation = _orientation(opened)
        deep = is_deep(opened)
        low, high = _window(opened) if deep else (0.0, 0.0)

        def rgb(top: int, bottom: int) -> NDArray[np.uint8]:
            rows = opened.crop((0, top, opened.width, bottom))
            if deep:
                grey = _stretched(np.asarray(rows), low, high)
                return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
            if rows.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in rows.info:
                rgba = rows.convert("RGBA")
                rows = PIL.Image.new("RGB", rgba.size, "white")
                rows.paste(rgba, mask=rgba)
            return np.asarray(rows.convert("RGB"))

        pixels = _upright((opened.height, opened.width), orientation, rgb)
    except (*_CORRUPT, MemoryError) as error:
        raise _failure(error) from error
    return Image(pixels, pixels_digest(pixels))


def _failure(error: Exception) -> ClickmaskError:
    if is_out_of_memory(error):
        return OutOfMemory(f"decoding the image {NEEDS_MEMORY}")
    return InvalidInput(_DAMAGED)


def has_picture_ending(name: str) -> bool:
    """Whether a file of this name is taken for a picture, spaces and dots at its end aside."""
    return PurePath(name.rstrip(" .")).suffix.lower() in {
        ending for endings in ENDINGS.values() for ending in endings
    }


def picture_ending(raw: bytes) -> str:
    """The usual ending of the file's name by its format, with the dot; empty if it is not read here."""
    try:
        with PIL.Image.open(io.BytesIO(raw), formats=_formats(raw)) as opened:
            return ENDINGS[str(opened.format)][0]
    except (InvalidInput, *_CORRUPT):
        return ""


def upright_file(raw: bytes) -> bytes | None:
    """The same image with upright pixels and no EXIF, for readers that ignore EXIF. None if already upright.
    JPEG, of several pictures too, and AVIF are compressed again at quality 95; other formats lose nothing. A
    TIFF of more than 8 bits a colour would, and stays as it is. `raw` has passed `decode_image` before.
    Raises InvalidInput if it was damaged since."""
    try:
        if "HEIF" in (formats := _formats(raw)):  # all its readers turn it, as the format has them do
            return None
        with PIL.Image.open(io.BytesIO(raw), formats=formats) as opened:
            # Pillow calls a phone's JPEG MPO if a second picture, such as a preview, lies behind the first.
            kind = "JPEG" if opened.format == "MPO" else str(opened.format)
            tags: Any = getattr(opened, "tag_v2", {})  # of a TIFF, which Pillow turns while it loads it
            orientation = tags.get(_ORIENTATION)
            if kind != "JPEG":  # a JPEG's EXIF comes before its pixels
                opened.load()
            if kind != "TIFF":
                orientation = _orientation(opened)
            too_deep = opened.mode in ("RGB", "RGBA", "CMYK") and max(tags.get(_BITS, (8,))) > 8
            if orientation not in _UPRIGHT or too_deep:
                return None
            profile = opened.info.get("icc_profile")
            options: dict[str, Any] = {"icc_profile": profile} if profile else {}
            options |= _SAVE_OPTIONS.get(kind, {})
            turned = opened.copy() if kind == "TIFF" else opened.transpose(_UPRIGHT[orientation])
            turned.info.pop("exif", None)
            written = io.BytesIO()
            turned.save(written, kind, **options)
            return written.getvalue()
    except _CORRUPT as error:
        raise InvalidInput("the image was damaged since it was kept") from error


def stored_size(raw: bytes) -> tuple[Size, PIL.Image.Transpose | None]:
    """The size of the stored pixels, by the header, and what makes them upright; None if they are. Raises
    InvalidInput."""
    try:
        with PIL.Image.open(io.BytesIO(raw), formats=_formats(raw)) as opened:
            tags: Any = getattr(opened, "tag_v2", {})
            turn = _UPRIGHT.get(tags.get(_ORIENTATION) or _orientation(opened))
            return (opened.height, opened.width), turn
    except _CORRUPT as error:
        raise InvalidInput(_DAMAGED) from error


def upright_size(raw: bytes) -> Size:
    """The size that `decode_image` would give, by the header. Raises InvalidInput."""
    (height, width), turn = stored_size(raw)
    upright = turn in (None, PIL.Image.Transpose.FLIP_LEFT_RIGHT, PIL.Image.Transpose.ROTATE_180)
    upright = upright or turn is PIL.Image.Transpose.FLIP_TOP_BOTTOM
    return (height, width) if upright else (width, height)


def pixels_digest(pixels: Pixels) -> str:
    """SHA-256 (hex) of the decoder's name, the shape and the pixels."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(b"%s %dx%d\n" % (DECODER, height, width))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _formats(raw: bytes) -> tuple[str, ...]:
    """The formats that `raw` may have. Raises InvalidInput for one that is only read elsewhere."""
    if raw[4:8] != b"ftyp":
        return FORMATS
    brands = {raw[place : place + 4] for place in range(8, min(int.from_bytes(raw[:4]), 256), 4)}
    for name, (coded_so, reader) in _BRANDS.items():
        if brands & coded_so:
            if name not in readable_formats():
                raise InvalidInput(f"this is an image of the format {name}, which needs {reader}")
            return (name,)
    return FORMATS


def _jpeg_pixels(raw: bytes, opened: PIL.Image.Image) -> Pixels | None:
    """Pixels of an ordinary JPEG, bit-identical to Pillow's in a third of the time: libjpeg-turbo too, but
    written into the array. None for other files, and for files it rejects, which Pillow then judges."""
    if opened.format not in ("JPEG", "MPO") or opened.mode not in ("RGB", "L"):
        return None
    try:
        decoded: Any = cast("Any", simplejpeg).decode_jpeg(raw, "RGB")
    except ValueError:
        return None
    if decoded.shape != (opened.height, opened.width, 3):
        return None
    if (orientation := _orientation(opened)) in _UPRIGHT:
        return _upright(decoded.shape[:2], orientation, lambda top, bottom: decoded[top:bottom])
    return _read_only(decoded)


def _upright(size: Size, orientation: int, rows: Callable[[int, int], NDArray[np.uint8]]) -> Pixels:
    """The read-only pixels of an image of `size`, made upright strip by strip: `rows` gives (n, W, 3), from
    one of the stored rows to another."""
    height, width = size
    sideways = orientation in (5, 6, 7, 8)
    pixels = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
    # From here on the stored rows are columns if the image lies sideways.
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        strip = rows(top, min(top + step, height))
        if sideways:
            strip = cv2.transpose(strip)
        if mirrored:  # slices with a negative step are copied pixel by pixel
            strip = cv2.flip(strip, 1)
        if upside_down:
            strip = strip[::-1]
        backwards = mirrored if sideways else upside_down
        start = max(0, height - top - step) if backwards else top
        part = slice(start, start + strip.shape[1 if sideways else 0])
        pixels[(slice(None), part) if sideways else part] = strip
    return _read_only(pixels)


def _read_only(pixels: Pixels) -> Pixels:
    """A view of `pixels`, which nobody else has, that nobody can make writeable again."""
    return np.frombuffer(memoryview(pixels.data).toreadonly().cast("B"), np.uint8).reshape(pixels.shape)


def _orientation(loaded: PIL.Image.Image) -> int:
    """Orientation 1 to 8 from a loaded image's EXIF block; 1 if it is missing or damaged, as in browsers.
    Pillow turns a TIFF while loading it, and a PNG's EXIF may follow the pixels. Pillow's own `getexif` would
    also trust XMP, which Chromium 156 does not."""
    exif = PIL.Image.Exif()
    try:
        exif.load(loaded.info.get("exif", b""))
        return int(exif.get(_ORIENTATION, 1))
    except _CORRUPT:
        return 1


def _window(deep: PIL.Image.Image) -> tuple[float, float]:
    """The values of a deep grey image that become black and white; equal if it is to be all black. Values
    that are not finite do not count."""
    step = max(1, int(np.ceil((deep.width * deep.height / WINDOW_PIXELS) ** 0.5)))
    tops = range(0, deep.height, step)
    sample = np.stack(
        [np.asarray(deep.crop((0, top, deep.width, top + 1)))[0, ::step].copy() for top in tops]
    )
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 0.0
    low, high = (float(value) for value in np.percentile(sample, _WINDOW))
    if low == high:  # nearly everything is background: keep the rest visible
        low, high = float(sample.min()), float(sample.max())
    return low, high


def _stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """(n, W) grey values of any type as uint8, `low` as 0 and `high` as 255. Values that are not finite are
    black, and so is everything if there is nothing between the two."""
    if low == high:
        return np.zeros(values.shape, np.uint8)
    with np.errstate(invalid="ignore"):  # of NaNs that signal
        stretched = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(np.nan_to_num(stretched, nan=0.0), 0.0, 1.0) * 255).astype(np.uint8)
