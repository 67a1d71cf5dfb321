"""The side of the split that an image belongs to, decided once, when its first label is accepted.

An image that was trained on must never be measured on, today or in a year. So a side is never
reconsidered: not when labels change or go, not when other images come. If it turns out later that two
images on different sides are near duplicates, both are quarantined: taken out of training and measuring.
Images do not change, so one in quarantine stays there.

Near duplicates are images that show nearly the same: frames of one video, one photo saved twice. They pass
two tests, since either alone is wrong too often: a perceptual hash (C. Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010, the DCT hash as the package imagehash computes it,
but with area averaging) and the correlation of small grey copies.
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
MIN_SPLIT_IMAGES = 16  # with fewer a split says too little, and models are cross-validated
MIN_HELD_OUT = 3  # images on each of validation and test, from MIN_SPLIT_IMAGES on
_SHARES: tuple[float, ...] = (0.70, 0.15, 0.15)

MAX_HAMMING_BITS = 4  # of 64 in which the hashes of near duplicates differ
MIN_CORRELATION = 0.95
SIDE = 32  # pixels, of the grey copy
BITS = 8  # the hash covers BITS x BITS frequencies
FLAT = 1.0  # grey levels of standard deviation; a flatter copy correlates by its noise alone


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of an image: 8 bytes of hash, and SIDE x SIDE bytes of grey."""

    hash: bytes
    thumbnail: bytes

    def __post_init__(self) -> None:
        if len(self.hash) != BITS * BITS // 8 or len(self.thumbnail) != SIDE * SIDE:
            raise ValueError(f"{len(self.hash)} and {len(self.thumbnail)} bytes are no fingerprint")


@dataclass(frozen=True)
class Assigned:
    """An image that has a side. Near duplicates follow it even when it has lost its labels."""

    digest: str
    side: Side
    fingerprint: Fingerprint


@dataclass(frozen=True)
class SideCounts:
    """What is on a side now: annotated images, and categories of their labels."""

    images: int = 0
    categories: frozenset[str] = frozenset()


def neighbouring_side(fingerprint: Fingerprint, assigned: Sequence[Assigned]) -> Side | None:
    """The side of the nearest of its near duplicates among `assigned`; None if it has none."""
    near = neighbours(fingerprint, [other.fingerprint for other in assigned])
    return assigned[near[0]].side if near else None


def choose_side(digest: str, categories: frozenset[str], counts: Mapping[Side, SideCounts]) -> Side:
    """Choose a side by quotas for an image without near duplicates that has labels of `categories`.

    Quotas are 70, 15 and 15 in a hundred, with at least 3 images each for validation and test from 16
    images on. Among the sides below their quota, the one that lacks most of the image's `categories` comes
    first (for a category's sake a side may be one image ahead, and training comes first), then the one
    furthest below its quota, then one by the digest.
    """
    images = {side: counts[side].images for side in SIDES}
    counting = sum(images.values())
    below = {side: quota - images[side] for side, quota in _quotas(counting + 1).items()}
    needed: dict[Side, int] = {
        side: MIN_HELD_OUT - images[side] for side in SIDES[1:] if images[side] < MIN_HELD_OUT
    }
    candidates: list[Side]
    lacking = {side: len(categories - counts[side].categories) for side in SIDES}
    # The last images before the 16th, and any after it, go where the minimum is not reached.
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
            hashlib.sha256(f"{digest} {side}".encode()).digest(),
        ),
    )


def quarantined(assigned: Sequence[Assigned]) -> frozenset[str]:
    """Digests of the images that have a near duplicate on another side."""
    pairs = neighbouring_pairs([image.fingerprint for image in assigned])
    apart = [(assigned[a], assigned[b]) for a, b in pairs if assigned[a].side != assigned[b].side]
    return frozenset(image.digest for pair in apart for image in pair)


def fingerprint(pixels: Pixels) -> Fingerprint:
    """The fingerprint of an image of any size; equal pixels have equal fingerprints."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cast("NDArray[np.float32]", cv2.dct(small.astype(np.float32))[:BITS, :BITS])
    # Rounded, so that a flat image, whose frequencies are nearly zero, has no bits by chance.
    bits = np.rint(low) > np.rint(np.median(low))
    return Fingerprint(np.packbits(bits).tobytes(), small.tobytes())


def close(one: bytes, others: Sequence[bytes]) -> list[int]:
    """Indices of those hashes in `others` that a near duplicate of `one` may have."""
    if not others:
        return []
    hashes = np.frombuffer(b"".join(others), np.uint8).reshape(len(others), -1)
    differing = hashes ^ np.frombuffer(one, np.uint8)
    distance = cast("NDArray[np.int64]", np.unpackbits(differing, axis=1).sum(axis=1))
    return [int(index) for index in np.flatnonzero(distance <= MAX_HAMMING_BITS)]


def neighbours(one: Fingerprint, others: Sequence[Fingerprint]) -> list[int]:
    """Indices of the near duplicates of `one` in `others`, most alike first."""
    near = close(one.hash, [other.hash for other in others])
    alike = sorted((-_correlation(one, others[index]), index) for index in near)
    return [index for negated, index in alike if -negated >= MIN_CORRELATION]


def neighbouring_pairs(prints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Sorted pairs of indices, the smaller first, of all near duplicates."""
    hashes = [int.from_bytes(each.hash, "big") for each in prints]
    candidates: set[tuple[int, int]] = set()
    # If the hash is cut into MAX_HAMMING_BITS + 1 stretches, at least one has no bit that differs.
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
    return sorted((a, b) for a, b in candidates if _correlation(prints[a], prints[b]) >= MIN_CORRELATION)


def _correlation(a: Fingerprint, b: Fingerprint) -> float:
    """Pearson's correlation of the grey copies; for two flat ones 1 if they are equally bright, else 0."""
    x, y = (np.frombuffer(each.thumbnail, np.uint8).astype(np.float64) for each in (a, b))
    if x.std() < FLAT or y.std() < FLAT:
        return float(x.std() < FLAT and y.std() < FLAT and abs(x.mean() - y.mean()) < FLAT)
    return float(np.corrcoef(x, y)[0, 1])


def _quotas(images: int) -> Mapping[Side, float]:
    """Images due on each side of a split of `images`, which they sum to.

    The held-out sides reach MIN_HELD_OUT evenly, by the time there are MIN_SPLIT_IMAGES.
    """
    held_out = [
        max(share * images, min(MIN_HELD_OUT, MIN_HELD_OUT * images / MIN_SPLIT_IMAGES))
        for share in _SHARES[1:]
    ]
    return dict(zip(SIDES, (images - sum(held_out), *held_out), strict=True))
