"""Label Studio's brush masks: run lengths of the mask's RGBA values, packed bit by bit.

The format is thi.ng's rle-pack, as Label Studio 1.23.2 reads and writes it, most significant bit first: a
32-bit count of values; 5 bits of word size - 1; four 4-bit run classes (size - 1); then blocks of 1 bit "is a
run", 2 bits of class, as many bits of length - 1 as the class says, and the run's value or all values.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clickmask.masks.rle import row_toggles
from clickmask.types import Mask, Size

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

CHANNELS = 4
WORD_BITS = 8
RUN_BITS = (3, 4, 8, 16)
MAX_RUN = 2**16
HEADER_BITS = 32 + 5 + 4 * 4
OPAQUE = 128  # lowest alpha of a pixel in the mask: strokes drawn in the UI have soft edges


def mask_to_brush_rle(mask: Mask) -> Bytes:
    """`mask` as bytes: foreground 255, background 0 in all four channels.

    The same bytes as `label_studio_sdk.converter.brush.mask2rle` (2.1.2), even a zero byte after a full last
    one.
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
    return _pack(blocks, 3 + bits + WORD_BITS, CHANNELS * pixels.size)


def brush_rle_to_mask(rle: Sequence[int] | Bytes, size: Size) -> Mask:
    """Pixels with alpha of at least half, as a new mask of `size`.

    Takes no more memory than the mask and a small multiple of `rle`. Raises ValueError if `rle` is cut off,
    was made for another size, or is not a list of bytes.
    """
    height, width = size
    try:
        numbers = np.asarray(rle)
    except (ValueError, OverflowError) as error:
        raise ValueError("a brush is a list of bytes") from error
    whole = numbers.ndim == 1 and numbers.dtype.kind in "iu"
    if not whole or (numbers.size and not (0 <= numbers.min() and numbers.max() <= 255)):
        raise ValueError("a brush is a list of bytes, whole numbers from 0 to 255")
    packed = numbers.astype(np.uint8)
    if 8 * len(packed) < HEADER_BITS:
        raise ValueError(f"{len(packed)} bytes are too short for a brush")
    header = int.from_bytes(packed[:7].tobytes(), "big") >> (56 - HEADER_BITS)
    values, word_bits = header >> 21, (header >> 16 & 31) + 1
    if values != CHANNELS * height * width:
        raise ValueError(f"the brush has {values} values, not those of a {width}x{height} image in RGBA")
    if word_bits != WORD_BITS:
        raise ValueError(f"the brush has words of {word_bits} bits, not {WORD_BITS}")
    run_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    lengths, value_at = _blocks(packed, run_bits, values)
    alpha = _read_words(packed, value_at)
    # Of the values before position n, n // 4 are alphas.
    ends = np.cumsum(lengths) // CHANNELS
    return np.repeat(alpha >= OPAQUE, np.diff(ends, prepend=0)).reshape(size)


def _pack(blocks: Integers, bits: Integers, values: int) -> Bytes:
    """The header for this number of `values`, then the lowest `bits` of each block."""
    starts = np.cumsum(bits) - bits + HEADER_BITS
    length = int(starts[-1] + bits[-1]) // 8 + 1
    packed = np.zeros(length + 5, np.uint8)
    first_byte = starts >> 3
    # A block has at most 27 bits, so five bytes hold it from any bit of the first. It has at least 14,
    # so no two begin in one byte, and each pass writes every byte at most once.
    framed = blocks << (40 - bits - (starts & 7))
    for offset in range(5):
        packed[first_byte + offset] |= (framed >> (32 - 8 * offset) & 255).astype(np.uint8)
    header = values << 21 | (WORD_BITS - 1) << 16
    for run_bits, shift in zip(RUN_BITS, (12, 8, 4, 0), strict=True):
        header |= (run_bits - 1) << shift
    packed[:7] |= np.frombuffer((header << (56 - HEADER_BITS)).to_bytes(7, "big"), np.uint8)
    return packed[:length]


def _blocks(packed: Bytes, run_bits: Sequence[int], values: int) -> tuple[Integers, Integers]:
    """The length of each run, and the bit at which its value begins; a single value is a run of 1."""
    source, bits = packed.tobytes() + bytes(4), 8 * len(packed)
    run_lengths, repeats, value_at = array("q"), array("q"), array("q")
    bit, found = HEADER_BITS, 0
    while found < values:  # one by one: a block says where the next one begins
        if bit >= bits:
            raise ValueError(f"the brush is cut off: it has {found} of {values} values")
        word = int.from_bytes(source[bit >> 3 : (bit >> 3) + 4], "big") >> (13 - (bit & 7))  # 19 bits or more
        size = run_bits[word >> 16 & 3]
        length = (word >> (16 - size) & (1 << size) - 1) + 1
        is_run = word >> 18 & 1
        bit += 3 + size
        run_lengths.append(length if is_run else 1)
        repeats.append(1 if is_run else length)
        value_at.append(bit)
        bit += WORD_BITS * repeats[-1]
        found += length
    if bit > bits or found > values:
        raise ValueError(f"the brush is damaged: its last run leads beyond its end, {values} values")
    repeated = np.array(repeats)
    index = np.arange(int(repeated.sum())) - np.repeat(np.cumsum(repeated) - repeated, repeated)
    each_value_at = np.repeat(np.array(value_at), repeated) + WORD_BITS * index
    return np.repeat(np.array(run_lengths), repeated), each_value_at


def _read_words(packed: Bytes, start: Integers) -> Bytes:
    """The 8-bit words that begin at the bits `start`; none may end beyond `packed`."""
    after = np.append(packed, np.uint8(0))
    first, shift = start >> 3, (start & 7).astype(np.uint16)
    return (after[first].astype(np.uint16) << shift | after[first + 1] >> (8 - shift)).astype(np.uint8)
