"""On which side of the split an image belongs: decided once, when its first label is accepted.

An image that was trained on must never be measured on, today or in a year. So a side is never
reconsidered: not when labels change or go, not when other images come. What the rule cannot know
when it decides, that two images on different sides are neighbours, takes both out of training and
measuring: they are quarantined. Neighbours are known by pictures, which do not change, so an image
in quarantine stays there.

Which pictures show nearly the same: frames of one video, one photo saved twice.

Two tests, both to be passed, for either alone is wrong too often: a perceptual hash (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, the DCT hash as the
package imagehash computes it, but with area averaging) and the correlation of small grey copies.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.types import Pixels

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")
MIN_SPLIT_IMAGES = 16  # images; with fewer a split says too little, and models are cross-validated
MIN_HELD_OUT = 3  # images at least on each of validation and test, from MIN_SPLIT_IMAGES on
_SHARES: tuple[float, ...] = (0.70, 0.15, 0.15)


@dataclass(frozen=True)
class Assigned:
    """An image that has a side, whether or not labels are on it now: its neighbours follow it anyway."""

    digest: str
    side: Side
    fingerprint: Fingerprint


@dataclass(frozen=True)
class SideCounts:
    """What is on a side now: images that an annotation is on, and categories that their labels have."""

    images: int = 0
    categories: frozenset[str] = frozenset()


def neighbouring_side(fingerprint: Fingerprint, placed: Sequence[Assigned]) -> Side | None:
    """The side of its nearest neighbour in `placed`; None for a picture unlike all of them."""
    near = neighbours(fingerprint, [other.fingerprint for other in placed])
    return placed[near[0]].side if near else None


def choose_side(digest: str, categories: frozenset[str], standing: Mapping[Side, SideCounts]) -> Side:
    """The side of a picture without neighbours that has labels of `categories`, by the quotas.

    Quotas are 70, 15 and 15 in a hundred, and from 16 images on 3 at least for validation and for
    test. Of the sides below theirs it is the one that lacks most of the image's `categories` (for a
    category's sake a side may be one image ahead, and training comes first), then the one furthest
    below, then one by the digest.
    """
    images = {side: standing[side].images for side in SIDES}
    counting = sum(images.values())
    below = {side: quota - images[side] for side, quota in _quotas(counting + 1).items()}
    needed: dict[Side, int] = {
        side: MIN_HELD_OUT - images[side] for side in SIDES[1:] if images[side] < MIN_HELD_OUT
    }
    candidates: list[Side]
    lacking = {side: len(categories - standing[side].categories) for side in SIDES}
    # The last images before the 16th, and any after it, go where the least number is not reached.
    if needed and counting + sum(needed.values()) >= MIN_SPLIT_IMAGES:
        candidates = list(needed)
    else:
        candidates = [side for side in SIDES if below[side] > (-1 if lacking[side] else 0)]
    return max(
        candidates,
        key=lambda side: (
            lacking[side],
            lacking[side] > 0 and side == "train",
            round(below[side], 9),
            _drawn(digest, side),
        ),
    )


def quarantined(placed: Sequence[Assigned]) -> frozenset[str]:
    """Digests of the images that have a neighbour on another side."""
    pairs = neighbouring_pairs([image.fingerprint for image in placed])
    apart = [(placed[a], placed[b]) for a, b in pairs if placed[a].side != placed[b].side]
    return frozenset(image.digest for pair in apart for image in pair)


def _quotas(images: int) -> Mapping[Side, float]:
    """Images due on each side of a split of `images`, which they sum to.

    The held-out sides reach MIN_HELD_OUT evenly, by the time there are MIN_SPLIT_IMAGES.
    """
    held_out = [
        max(share * images, min(MIN_HELD_OUT, MIN_HELD_OUT * images / MIN_SPLIT_IMAGES))
        for share in _SHARES[1:]
    ]
    return dict(zip(SIDES, (images - sum(held_out), *held_out), strict=True))


def _drawn(digest: str, side: Side) -> bytes:
    return hashlib.sha256(f"{digest} {side}".encode()).digest()


MAX_HAMMING_BITS = 4  # of 64 in which the hashes of neighbours differ
MIN_CORRELATION = 0.95
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
    return [int(index) for index in np.flatnonzero(distance <= MAX_HAMMING_BITS)]


def neighbours(one: Fingerprint, others: Sequence[Fingerprint]) -> list[int]:
    """Indices of those of `others` that show nearly what `one` shows, most alike first."""
    near = close(one.hash, [other.hash for other in others])
    alike = sorted((-_correlation(one, others[index]), index) for index in near)
    return [index for negated, index in alike if -negated >= MIN_CORRELATION]


def neighbouring_pairs(prints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """All pairs of indices, the smaller first, of pictures that are neighbours; sorted."""
    hashes = [int.from_bytes(each.hash, "big") for each in prints]
    candidates: set[tuple[int, int]] = set()
    # Of MAX_HAMMING_BITS + 1 stretches of the hash at least one has no bit that differs.
    length = -(-BITS * BITS // (MAX_HAMMING_BITS + 1))
    for shift in range(0, BITS * BITS, length):
        alike: dict[int, list[int]] = {}
        for index, code in enumerate(hashes):
            alike.setdefault(code >> shift & (1 << length) - 1, []).append(index)
        for group in alike.values():
            candidates.update(
                pair
                for pair in itertools.combinations(group, 2)
                if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= MAX_HAMMING_BITS
            )
    return sorted(pair for pair in candidates if _alike(prints[pair[0]], prints[pair[1]]))


def _alike(a: Fingerprint, b: Fingerprint) -> bool:
    return _correlation(a, b) >= MIN_CORRELATION


def _correlation(a: Fingerprint, b: Fingerprint) -> float:
    """Pearson's, of the grey copies; of two flat ones, whether they are equally bright: 1 or 0."""
    x, y = (np.frombuffer(each.thumbnail, np.uint8).astype(np.float64) for each in (a, b))
    if x.std() < FLAT or y.std() < FLAT:
        return float(x.std() < FLAT and y.std() < FLAT and abs(x.mean() - y.mean()) < FLAT)
    return float(np.corrcoef(x, y)[0, 1])
