"""Which pictures show nearly the same: frames of one video, one photo saved twice.

Two tests, both to be passed, for either alone is wrong too often: a perceptual hash (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, the DCT hash as the
package imagehash computes it, but with area averaging) and the correlation of small grey copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Pixels

MOST_BITS = 4  # of 64 in which the hashes of neighbours differ
LEAST_CORRELATION = 0.95
SIDE = 32  # of the grey copy, pixels
BITS = 8  # the hash is of BITS x BITS frequencies
FLAT = 1.0  # grey levels of standard deviation; below, a correlation is that of noise


@dataclass(frozen=True)
class Fingerprint:
    """What of a picture is compared: 8 bytes of hash, and SIDE x SIDE bytes of grey."""

    hash: bytes
    thumbnail: bytes

    def __post_init__(self) -> None:
        if len(self.hash) != BITS * BITS // 8 or len(self.thumbnail) != SIDE * SIDE:
            raise ValueError(f"{len(self.hash)} and {len(self.thumbnail)} bytes are no fingerprint")


def fingerprint(pixels: Pixels) -> Fingerprint:
    """The fingerprint of an image of any size; the same pixels give the same one."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cast("NDArray[np.float32]", cv2.dct(small.astype(np.float32))[:BITS, :BITS])
    # Rounded, so that a flat picture, whose frequencies are all but nothing, has no bits by chance.
    bits = np.rint(low) > np.rint(np.median(low))
    return Fingerprint(np.packbits(bits).tobytes(), small.tobytes())


def close(one: bytes, others: Sequence[bytes]) -> list[int]:
    """Indices of those hashes of `others` that a neighbour of `one` may have."""
    if not others:
        return []
    hashes = np.frombuffer(b"".join(others), np.uint8).reshape(len(others), -1)
    differing = hashes ^ np.frombuffer(one, np.uint8)
    distance = cast("NDArray[np.int64]", np.unpackbits(differing, axis=1).sum(axis=1))
    return [int(index) for index in np.flatnonzero(distance <= MOST_BITS)]


def neighbours(one: Fingerprint, others: Sequence[Fingerprint]) -> list[int]:
    """Indices of those of `others` that show nearly what `one` shows, most alike first."""
    near = close(one.hash, [other.hash for other in others])
    alike = sorted((-_correlation(one, others[index]), index) for index in near)
    return [index for negated, index in alike if -negated >= LEAST_CORRELATION]


def neighbouring_pairs(prints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """All pairs of indices, the smaller first, of pictures that are neighbours; sorted."""
    hashes = [int.from_bytes(each.hash, "big") for each in prints]
    candidates: set[tuple[int, int]] = set()
    # Of MOST_BITS + 1 stretches of the hash at least one has no bit that differs.
    length = -(-BITS * BITS // (MOST_BITS + 1))
    for shift in range(0, BITS * BITS, length):
        alike: dict[int, list[int]] = {}
        for index, code in enumerate(hashes):
            alike.setdefault(code >> shift & (1 << length) - 1, []).append(index)
        for group in alike.values():
            candidates.update(
                pair
                for pair in itertools.combinations(group, 2)
                if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= MOST_BITS
            )
    return sorted(pair for pair in candidates if _alike(prints[pair[0]], prints[pair[1]]))


def _alike(a: Fingerprint, b: Fingerprint) -> bool:
    return _correlation(a, b) >= LEAST_CORRELATION


def _correlation(a: Fingerprint, b: Fingerprint) -> float:
    """Pearson's, of the grey copies; of two flat ones, whether they are equally bright: 1 or 0."""
    x, y = (np.frombuffer(each.thumbnail, np.uint8).astype(np.float64) for each in (a, b))
    if x.std() < FLAT or y.std() < FLAT:
        return float(x.std() < FLAT and y.std() < FLAT and abs(x.mean() - y.mean()) < FLAT)
    return float(np.corrcoef(x, y)[0, 1])
