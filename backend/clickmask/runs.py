"""The runs of a mask, row by row or column by column, and how COCO writes them.

Runs end in few places, so most of a mask is only looked at, eight pixels at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clickmask.types import Mask

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]


def row_toggles(mask: Mask) -> Indices:
    """Where pixels, counted row by row, differ from the one before; sorted. The first has none before."""
    flat = np.ascontiguousarray(mask).view(np.uint8).reshape(-1)
    return _differing(flat[1:], flat[:-1]) + 1


def column_toggles(mask: Mask) -> Indices:
    """Where pixels, counted column by column, differ from the one before; sorted. Before the first is none
    of the mask."""
    height, width = mask.shape
    if not mask.size:
        return np.zeros(0, np.int64)
    flat = np.ascontiguousarray(mask).view(np.uint8).reshape(-1)
    edges = _differing(flat[width:], flat[:-width])
    top, bottom = np.flatnonzero(mask[0]) * height, (np.flatnonzero(mask[-1]) + 1) * height
    # From one column's end to the next one's beginning nothing changes where both are set.
    ends = np.setxor1d(top, bottom, assume_unique=True)
    toggles = np.concatenate((edges % width * height + edges // width + 1, ends[ends < mask.size]))
    toggles.sort()
    return toggles


def runs_to_counts(runs: Indices) -> str:
    """COCO's text of run lengths (maskApi.c, rleToString).

    Five bits a character, lowest first, the sixth saying that more follow, the last of all the
    sign; from the fourth run on, the difference to the run before the last.
    """
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    # A number takes as many characters as its two's complement has groups of five bits.
    bounds = 16 * 32 ** np.arange(6)
    lengths = 1 + np.searchsorted(bounds, np.where(numbers < 0, -1 - numbers, numbers), side="right")
    owner = np.repeat(np.arange(len(numbers)), lengths)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    code = numbers[owner] >> 5 * place & 0x1F
    code[place < lengths[owner] - 1] |= 0x20
    return (code + 48).astype(np.uint8).tobytes().decode("ascii")


def _differing(one: Bytes, other: Bytes) -> Indices:
    """Where two flat arrays of one length differ; sorted."""
    whole = len(one) // 8 * 8
    ones, others = one[:whole].view(np.uint64), other[:whole].view(np.uint64)
    words = np.flatnonzero(ones != others)
    places = np.flatnonzero((ones[words] ^ others[words]).view(np.uint8) != 0)  # faster than of numbers
    rest = np.flatnonzero(one[whole:] != other[whole:]) + whole
    return np.append(8 * words[places >> 3] + (places & 7), rest)
