"""Label Studio's shapes: regions' values as geometry, and masks as brushes and bit masks. Pure.

Coordinates are percent of the image as displayed, upright; the UI's rotate tool does not turn them. Brushes
are thi.ng's rle-pack, as Label Studio 1.23.2 reads and writes it, most significant bit first: a 32-bit count
of values; 5 bits of word size - 1; four 4-bit run classes (size - 1); then blocks of 1 bit "is a run", 2 bits
of class, as many bits of length - 1 as the class says, and the run's value or all values.
"""

import base64
import io
import math
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import cast

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from clickmask.errors import InvalidInput, InvalidRequest, TooLarge
from clickmask.images.fetch import read_data_uri
from clickmask.labels.geometry import Brush, Ellipse, Geometry, Polygon, Rectangle
from clickmask.masks.polygons import toggles_to_mask
from clickmask.masks.rle import mask_to_rle, row_toggles
from clickmask.types import Mask, Point, Size
from clickmask_adapters.tools._json import Json, as_size, is_number, text_of

Bytes = NDArray[np.uint8]
CHANNELS = 4
WORD_BITS = 8
RUN_BITS = (3, 4, 8, 16)
MAX_RUN = 2**16
HEADER_BITS = 32 + 5 + 4 * 4
PIXELS_AT_ONCE = 2**22  # of a bit mask
OPAQUE = 128  # lowest alpha of a pixel in the mask: strokes drawn in the UI have soft edges
DECIMALS = 9  # of a pixel: converting to percent and back changes no more than this
MAX_PERCENT = 1e9
PREFIX = "data:image/png;base64,"
CURVE_LINES = 16  # lines that stand for a Bezier curve between two vertices


def mask_to_brush_rle(mask: Mask) -> Bytes:
    """`mask` as bytes: foreground 255, background 0 in all four channels.

    The bytes of `label_studio_sdk.converter.brush.mask2rle` (2.1.2), even a zero after a full last one.
    """
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask of shape {mask.shape} has no brush")
    pixels = np.ascontiguousarray(mask).reshape(-1).view(np.uint8)
    ends = np.append(row_toggles(mask), pixels.size)
    lengths = CHANNELS * np.diff(ends, prepend=0)
    values = pixels[ends - 1].astype(np.int64) * 255
    classes = np.searchsorted([2**bits for bits in RUN_BITS[:3]], lengths)
    # Overlong runs are cut; the rest keeps the widest class, however short it is.
    pieces = (lengths + MAX_RUN - 1) // MAX_RUN
    last = np.cumsum(pieces) - 1
    lengths, full = np.full(int(last[-1]) + 1, MAX_RUN), lengths - (pieces - 1) * MAX_RUN
    lengths[last] = full
    classes, values = np.repeat(classes, pieces), np.repeat(values, pieces)
    bits = np.array(RUN_BITS)[classes]
    blocks = (((4 | classes) << bits | (lengths - 1)) << WORD_BITS) | values
    block_bits = 3 + bits + WORD_BITS
    starts = np.cumsum(block_bits) - block_bits + HEADER_BITS
    length = int(starts[-1] + block_bits[-1]) // 8 + 1
    packed = np.zeros(length + 5, np.uint8)
    first_byte = starts >> 3
    # A block has at most 27 bits, so five bytes hold it from any bit of the first. It has at least 14,
    # so no two begin in one byte, and each pass writes every byte at most once.
    framed = blocks << (40 - block_bits - (starts & 7))
    for offset in range(5):
        packed[first_byte + offset] |= (framed >> (32 - 8 * offset) & 255).astype(np.uint8)
    header = CHANNELS * pixels.size << 21 | (WORD_BITS - 1) << 16
    for run_bits, shift in zip(RUN_BITS, (12, 8, 4, 0), strict=True):
        header |= (run_bits - 1) << shift
    packed[:7] |= np.frombuffer((header << (56 - HEADER_BITS)).to_bytes(7, "big"), np.uint8)
    return packed[:length]


def brush_rle_to_mask(rle: Sequence[int] | Bytes, size: Size) -> Mask:
    """Pixels with alpha of at least half, as a new mask of `size`.

    Takes no more memory than the mask and a small multiple of `rle`. Raises ValueError if `rle` is cut off,
    was made for another size, or is not a list of bytes.
    """
    height, width = size
    try:  # NumPy would give each text of a list as much room as the longest one
        packed = np.frombuffer(bytes(rle) if isinstance(rle, list | np.ndarray) else b"", np.uint8)
    except (ValueError, TypeError) as error:
        raise ValueError("a brush is a list of bytes, whole numbers from 0 to 255") from error
    if 8 * len(packed) < HEADER_BITS:
        raise ValueError(f"{len(packed)} bytes are too short for a brush")
    header = int.from_bytes(packed[:7].tobytes(), "big") >> (56 - HEADER_BITS)
    values, word_bits = header >> 21, (header >> 16 & 31) + 1
    if values != CHANNELS * height * width:
        raise ValueError(f"the brush has {values} values, not those of a {width}x{height} image in RGBA")
    if word_bits != WORD_BITS:
        raise ValueError(f"the brush has words of {word_bits} bits, not {WORD_BITS}")
    run_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    # The length of each run, how many values follow and the bit at which they begin. Single values are runs
    # of 1. One by one: a block says where the next one begins.
    source, bits = packed.tobytes() + bytes(4), 8 * len(packed)
    run_lengths, repeats, values_at = array("q"), array("q"), array("q")
    bit, found = HEADER_BITS, 0
    while found < values:
        if bit >= bits:
            raise ValueError(f"the brush is cut off: it has {found} of {values} values")
        word = int.from_bytes(source[bit >> 3 : (bit >> 3) + 4], "big") >> (13 - (bit & 7))  # 19 bits or more
        length_bits = run_bits[word >> 16 & 3]
        length = (word >> (16 - length_bits) & (1 << length_bits) - 1) + 1
        is_run = word >> 18 & 1
        bit += 3 + length_bits
        run_lengths.append(length if is_run else 1)
        repeats.append(1 if is_run else length)
        values_at.append(bit)
        bit += WORD_BITS * repeats[-1]
        found += length
    if bit > bits or found > values:
        raise ValueError(f"the brush is damaged: its last run leads beyond its end, {values} values")
    repeated = np.array(repeats)
    index = np.arange(int(repeated.sum())) - np.repeat(np.cumsum(repeated) - repeated, repeated)
    value_at = np.repeat(np.array(values_at), repeated) + WORD_BITS * index
    lengths = np.repeat(np.array(run_lengths), repeated)
    after = np.append(packed, np.uint8(0))
    first, shift = value_at >> 3, (value_at & 7).astype(np.uint16)
    alpha = (after[first].astype(np.uint16) << shift | after[first + 1] >> (8 - shift)).astype(np.uint8)
    # Of the values before position n, n // 4 are alphas.
    ends = np.cumsum(lengths) // CHANNELS
    inside = alpha >= OPAQUE
    starts, whole = np.flatnonzero(np.diff(inside, prepend=False)), np.append(0, ends)
    return toggles_to_mask(np.append(whole[starts], ends[-1:])[: (len(starts) + 1) // 2 * 2], size)


def mask_to_bit_mask(mask: Mask) -> str:
    """An RGBA PNG of the mask's size, black inside the mask and transparent outside, as the UI saves it."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[..., 3] = mask.view(np.uint8) * np.uint8(255)
    # OpenCV's defaults: other compression levels took 3.5 times as long.
    _, png = cv2.imencode(".png", pixels)
    return PREFIX + base64.b64encode(png.tobytes()).decode("ascii")


def bit_mask_to_mask(written: str, size: Size) -> Mask:
    """Pixels with alpha of at least half. Raises ValueError unless `written` is an RGBA PNG of `size`."""
    if not written[: len(PREFIX)].lower().startswith("data:image/png"):
        raise ValueError("a bit mask is a PNG in a data: address")
    try:
        png = read_data_uri(written)
    except (InvalidInput, TooLarge) as error:
        raise ValueError("the bit mask's base64 is damaged") from error
    try:  # by Pillow, as OpenCV would write a line to the log for each damaged one
        with PIL.Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            width, height = opened.size  # by the header, before anything is unpacked
            if (height, width) != size:
                raise ValueError(f"the bit mask has {width}x{height} pixels, its image {size[1]}x{size[0]}")
            if opened.mode != "RGBA":
                raise ValueError("the bit mask is no PNG with alpha")
            # Pillow stops all threads for each block that it unpacks, up to a thousandfold.
            opened.decodermaxblock = 2**12
            mask, rows = np.empty(size, np.bool_), max(1, PIXELS_AT_ONCE // width)
            for top in range(0, height, rows):
                strip = opened.crop((0, top, width, min(top + rows, height)))
                mask[top : top + rows] = np.asarray(strip.getchannel("A")) >= OPAQUE
            return mask
    except (OSError, SyntaxError, EOFError, LookupError, struct.error, zlib.error) as error:
        raise ValueError("the bit mask's PNG is damaged") from error


def labels_in(value: object, kind: str) -> list[str]:
    """The labels that a result of type `kind` writes into its `value`, none if it is a choice."""
    found = cast("Json", value).get(kind) if isinstance(value, Mapping) and kind.endswith("labels") else None
    labels = cast("list[object]", found) if isinstance(found, list) else []
    return [label for label in labels if isinstance(label, str) and label.strip()]


def original_size(result: Json) -> Size | None:
    """The size in pixels of the image that a result marks; None if it says none that is read."""
    sides = [result.get(name) for name in ("original_height", "original_width")]
    try:
        return as_size(
            *(int(side) if isinstance(side, float) and side.is_integer() else side for side in sides)
        )
    except InvalidRequest:
        return None


def value_to_geometry(kind: str, value: Json, size: Size) -> Geometry | None:
    """The geometry of a region; None for an open vector. Raises ValueError, TypeError, LookupError or
    AttributeError."""
    if kind == "vector" and not value.get("closed"):
        return None
    if kind == "brush":
        return Brush(mask_to_rle(brush_rle_to_mask(value["rle"], size)))
    if kind == "bitmask":
        return Brush(mask_to_rle(bit_mask_to_mask(value["imageDataURL"], size)))
    if kind in ("polygon", "vector"):
        points = value["points"] if kind == "polygon" else _outline(value["vertices"])
        ring = tuple(_point(x, y, size) for x, y in points)
        if len(ring) < 3:
            raise ValueError(f"a polygon of {len(ring)} points")
        return Polygon((ring,))
    x, y = _point(value["x"], value["y"], size)
    degrees = _number(value.get("rotation") or 0)
    if kind == "ellipse":
        return Ellipse((x, y), _point(value["radiusX"], value["radiusY"], size), degrees)
    across, down = _point(value["width"], value["height"], size)
    sides = (x, y, x + across, y + down)
    if degrees:  # Label Studio turns it clockwise about its first corner; we turn it about its centre.
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        centre_x, centre_y = x + (across * cos - down * sin) / 2, y + (across * sin + down * cos) / 2
        sides = (centre_x - across / 2, centre_y - down / 2, centre_x + across / 2, centre_y + down / 2)
    x0, y0, x1, y1 = (round(side, DECIMALS) for side in sides)
    return Rectangle((x0, y0, x1, y1), degrees)


def _outline(vertices: Sequence[Json]) -> list[tuple[float, float]]:
    """The closed outline of vertices that name their predecessors, with its Bezier curves as short lines.

    Like Label Studio 1.23.2: a curve's missing control point lies at .3 of the way to the other end.
    """
    after = {vertex.get("prevPointId"): vertex for vertex in vertices}
    distinct = {vertex["id"] for vertex in vertices}
    if not vertices or len(after) < len(vertices) or len(distinct) < len(vertices):
        raise ValueError("an outline that branches")
    ordered = [after.get(None) or vertices[0]]  # the UI gives a closed outline's first vertex a predecessor
    while (following := after.get(ordered[-1]["id"])) and following is not ordered[0]:
        ordered.append(following)
    if len(ordered) < len(vertices):
        raise ValueError("an outline in pieces")
    points: list[tuple[float, float]] = []
    for start, end in zip(ordered, [*ordered[1:], ordered[0]], strict=True):
        a, b = (np.array([_number(each["x"]), _number(each["y"])]) for each in (start, end))
        points.append((float(a[0]), float(a[1])))
        controls = [
            each.get(name) if each.get("isBezier") else None
            for each, name in ((start, "controlPoint2"), (end, "controlPoint1"))
        ]
        if controls == [None, None]:
            continue
        c, d = (
            np.array([_number(control["x"]), _number(control["y"])]) if control else default
            for control, default in zip(controls, (a + 0.3 * (b - a), b - 0.3 * (b - a)), strict=True)
        )
        for t in np.arange(1, CURVE_LINES) / CURVE_LINES:
            x, y = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * c + 3 * (1 - t) * t**2 * d + t**3 * b
            points.append((float(x), float(y)))
    return points


def _point(x: object, y: object, size: Size) -> Point:
    return round(_number(x) * size[1] / 100, DECIMALS), round(_number(y) * size[0] / 100, DECIMALS)


def _number(value: object) -> float:
    if not is_number(value, MAX_PERCENT):
        raise ValueError(f"{text_of(value)[:40]!r} is no finite number")
    return float(value)
