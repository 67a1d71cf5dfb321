"""Headers of images: the canvas, the scans of a JPEG, and the memory that decoding will take."""

import re
from typing import Any, cast

import PIL.Image

# Each scan of a progressive JPEG is a pass over all pixels: 100 kB of scans took a minute. Encoders write
# about ten.
MAX_SCANS = 100
_SCAN = b"\xff\xda"  # the start-of-scan marker, ITU-T T.81 table B.1
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # any marker except restart markers

STRIP_PIXELS = 2**19  # converted at a time
WINDOW_PIXELS = 4_000_000  # of a deep grey image, at most, that say what becomes black and white
_STRIP_BYTES, _WINDOW_BYTES = 32, 16  # for each of these, with all copies
_DECODER_BYTES = 2**20  # rows and tables
_CHANNELS = 3  # of the result, a byte each
_PILLOW_BYTES = {"1": 1, "L": 1, "P": 1}  # for a pixel in Pillow; I;16 and its kind have 2, all others 4
# Compressions of TIFF (TIFF 6.0, and libtiff's) that libtiff unpacks without a buffer of its own.
_STREAMED = frozenset({"tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "packbits"})
# Tags of TIFF 6.0.
_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLES, _ROWS = 256, 257, 258, 274, 277, 278
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# Bytes for a pixel while a library unpacks the whole image, its copies included: measured with Pillow 13.0,
# libwebp 1.6, libavif 1.3 and libheif 1.20, and rounded up.
_WHOLE = {"WEBP": 17, "AVIF": 24, "HEIF": 20, "BMP": 6, "GIF": 3}


def canvas_of(raw: bytes) -> tuple[int, int]:
    """Width and height that Pillow takes memory for when it opens the file, for the formats in which it does
    so: WebP, and GIF for its first frame. (0, 0) for others, and for damaged ones."""
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        if raw[12:16] == b"VP8X":
            return int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1
        at, shift = (21, 14) if raw[12:16] == b"VP8L" else (26, 16)
        bits = int.from_bytes(raw[at : at + 4], "little")
        return (bits & 0x3FFF) + 1, (bits >> shift & 0x3FFF) + 1
    if raw[:4] != b"GIF8" or len(raw) < 13:
        return 0, 0
    place = 13 + (3 << (raw[10] & 7) + 1) * (raw[10] >> 7)  # behind the screen's palette
    while raw[place : place + 1] == b"!":  # extensions, each of blocks with their lengths, until an empty one
        place += 2
        while raw[place : place + 1] > b"\0":
            place += 1 + raw[place]
        place += 1
    width, height = (int.from_bytes(raw[place + at : place + at + 2], "little") for at in (5, 7))
    return width, height


def scans_of(raw: bytes) -> int:
    """The scans of a JPEG's first image; 0 if there cannot be too many. A film may follow the image."""
    if raw.count(_SCAN) <= MAX_SCANS:
        return 0
    place, scans = 2, 0
    while place + 4 <= len(raw) and raw[place] == 0xFF:
        if raw[place + 1] == 0xFF:  # a fill byte
            place += 1
            continue
        marker = raw[place : place + 2]
        if marker == b"\xff\xd9":  # the end
            break
        place += 2 + int.from_bytes(raw[place + 2 : place + 4])
        if marker == _SCAN:
            scans += 1
            end = _END_OF_SCAN.search(raw, place)
            place = end.start() if end else len(raw)
    return scans


def is_interleaved(raw: bytes, opened: PIL.Image.Image) -> bool:
    """Whether a JPEG's first scan has all channels: otherwise the decoder keeps all of the image's
    coefficients. True if there is no scan."""
    place = 2
    while place + 4 < len(raw) and raw[place] == 0xFF:
        if raw[place + 1] == 0xFF:  # a fill byte
            place += 1
        elif raw[place : place + 2] == _SCAN:
            return raw[place + 4] == len(opened.getbands())
        else:
            place += 2 + int.from_bytes(raw[place + 2 : place + 4])
    return True


def is_deep(opened: PIL.Image.Image) -> bool:
    """Whether it is grey of more than 8 bits."""
    return opened.mode.startswith("I") or opened.mode == "F"


def bytes_to_decode(opened: PIL.Image.Image, interleaved: bool = True) -> int:
    """The most bytes that decoding takes beyond the file itself, result included, by the header alone.
    `interleaved`: a JPEG's first scan has all its channels."""
    width, height = opened.size
    count = width * height
    held = count * _PILLOW_BYTES.get(opened.mode, 2 if opened.mode.startswith("I;") else 4)
    kind = str(opened.format)
    own = _DECODER_BYTES + min(count, STRIP_PIXELS) * _STRIP_BYTES
    if is_deep(opened):
        own += min(count, WINDOW_PIXELS) * _WINDOW_BYTES
    unpacking = held
    if kind in ("JPEG", "MPO"):
        if opened.info.get("progressive") or not interleaved:
            unpacking += _coefficient_bytes(opened)
        if opened.mode in ("RGB", "L"):  # straight into the result, which may then be turned
            return max(unpacking - held + _CHANNELS * count, 2 * _CHANNELS * count) + own
    elif kind == "TIFF":
        unpacking += max(_piece_bytes(opened), held if _tag(opened, _ORIENTATION, 1) != 1 else 0)
    elif kind in _WHOLE:
        unpacking = max(unpacking, _WHOLE[kind] * count)
    return max(unpacking, held + _CHANNELS * count) + own


def _coefficient_bytes(opened: Any) -> int:
    """Two bytes for each coefficient of all channels, which a JPEG of several scans keeps to its end."""
    layers: list[tuple[int, int, int, int]] = opened.layer  # id, horizontal and vertical sampling, table
    across, down = (max(layer[axis] for layer in layers) for axis in (1, 2))
    cells = (-(-opened.width // (8 * across)) * 8) * (-(-opened.height // (8 * down)) * 8)
    return 2 * cells * sum(layer[1] * layer[2] for layer in layers)


def _piece_bytes(opened: PIL.Image.Image) -> int:
    """The largest strip or tile of a TIFF, which libtiff unpacks as a whole."""
    compression = opened.info.get("compression")
    if compression == "raw":  # libtiff does not read it
        return 0
    width, rows = _tag(opened, _TILE_WIDTH, 0), _tag(opened, _TILE_LENGTH, 0)
    if not width:  # opened.size is that of the turned image
        width, height = _tag(opened, _WIDTH, 1), _tag(opened, _HEIGHT, 1)
        rows = min(_tag(opened, _ROWS, height), height)
    sample_bytes = -(-_tag(opened, _BITS, 1) // 8)
    pieces = 1 if compression in _STREAMED else 2
    return pieces * width * rows * max(4, _tag(opened, _SAMPLES, 1) * sample_bytes)


def _tag(opened: Any, number: int, default: int) -> int:
    """A whole number among a TIFF's tags, the largest if there are several."""
    value: Any = getattr(opened, "tag_v2", {}).get(number, default)
    values = cast("tuple[Any, ...]", value if isinstance(value, tuple) else (value,))
    return max((int(each or default) for each in values), default=default)
