"""The split side of an image, chosen once, when its first label is accepted.

A model must never be measured on an image it was trained on. So a side never changes, even if labels change
or go, or other images come. If two images on different sides turn out to be near duplicates, both are
quarantined for good: neither trained on nor measured.

Near duplicates, such as frames of one video, must pass two tests, since either alone is wrong too often: a
perceptual hash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, the
DCT hash as in the package imagehash, but with area averaging) and the correlation of small grey copies.
"""

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
MIN_SPLIT_IMAGES = 16  # with fewer images a split says too little, and models are cross-validated
MIN_HELD_OUT = 3  # images each for validation and test, from MIN_SPLIT_IMAGES on
HELD_OUT_SHARE = 0.15  # of all images, each for validation and test

MAX_HAMMING_BITS = 4  # of 64, that may differ between the hashes of near duplicates
MIN_CORRELATION = 0.95
SIDE = 32  # pixels, side of the grey copy
BITS = 8  # the hash covers BITS x BITS frequencies
FLAT = 1.0  # standard deviation in grey levels; a flatter copy would correlate by noise alone


@dataclass(frozen=True)
class Fingerprint:
    """The part of an image that is compared: 8 bytes of hash, and SIDE x SIDE bytes of grey."""

    hash: bytes
    thumbnail: bytes

    def __post_init__(self) -> None:
        if len(self.hash) != BITS * BITS // 8 or len(self.thumbnail) != SIDE * SIDE:
            raise ValueError(f"{len(self.hash)} and {len(self.thumbnail)} bytes are no fingerprint")


@dataclass(frozen=True)
class Assigned:
    """An image with a side. Near duplicates get the same side even after it has lost its labels."""

    digest: str
    side: Side
    fingerprint: Fingerprint


@dataclass(frozen=True)
class SideCounts:
    """The annotated images on a side, and the categories of their labels."""

    images: int = 0
    categories: frozenset[str] = frozenset()


def neighbouring_side(fingerprint: Fingerprint, assigned: Sequence[Assigned]) -> Side | None:
    """The side of the image's closest near duplicate in `assigned`; None if it has none."""
    near = neighbours(fingerprint, [other.fingerprint for other in assigned])
    return assigned[near[0]].side if near else None


def choose_side(digest: str, categories: frozenset[str], counts: Mapping[Side, SideCounts]) -> Side:
    """Choose a side by quotas for an image without near duplicates that has labels of `categories`.

    Quotas are 70, 15 and 15 %, with at least 3 images each for validation and test from 16 images on. Of the
    sides below quota, choose the one that lacks most of the `categories` (for a category's sake a side may be
    one image ahead, and training comes first), then the one furthest below quota, then by the digest.
    """
    images = {side: counts[side].images for side in SIDES}
    total = sum(images.values()) + 1
    # The held-out sides reach MIN_HELD_OUT by MIN_SPLIT_IMAGES.
    held_out = max(HELD_OUT_SHARE * total, min(MIN_HELD_OUT, MIN_HELD_OUT * total / MIN_SPLIT_IMAGES))
    quotas = (total - 2 * held_out, held_out, held_out)
    below = {side: quota - images[side] for side, quota in zip(SIDES, quotas, strict=True)}
    needed: list[Side] = [side for side in SIDES[1:] if images[side] < MIN_HELD_OUT]
    lacking = {side: len(categories - counts[side].categories) for side in SIDES}
    candidates: list[Side] = [side for side in SIDES if below[side] > (-1 if lacking[side] else 0)]
    # The last images before the 16th, and any later ones, go where the minimum is not reached.
    if needed and total - 1 + sum(MIN_HELD_OUT - images[side] for side in needed) >= MIN_SPLIT_IMAGES:
        candidates = needed

    def order(side: Side) -> tuple[int, bool, float, bytes]:
        lot = hashlib.sha256(f"{digest} {side}".encode()).digest()
        return lacking[side], lacking[side] > 0 and side == "train", round(below[side], 9), lot

    return max(candidates, key=order)


def quarantined(assigned: Sequence[Assigned]) -> frozenset[str]:
    """Digests of all images with a near duplicate on another side."""
    pairs = neighbouring_pairs([image.fingerprint for image in assigned])
    apart = [(assigned[a], assigned[b]) for a, b in pairs if assigned[a].side != assigned[b].side]
    return frozenset(image.digest for pair in apart for image in pair)


def fingerprint(pixels: Pixels) -> Fingerprint:
    """The fingerprint of an image of any size. Equal pixels have equal fingerprints."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cast("NDArray[np.float32]", cv2.dct(small.astype(np.float32))[:BITS, :BITS])
    # Rounded, so that a flat image, whose frequencies are nearly zero, gets no random bits.
    bits = np.rint(low) > np.rint(np.median(low))
    return Fingerprint(np.packbits(bits).tobytes(), small.tobytes())


def close(one: bytes, others: Sequence[bytes]) -> list[int]:
    """Indices of the hashes in `others` that may belong to a near duplicate of `one`."""
    if not others:
        return []
    hashes = np.frombuffer(b"".join(others), np.uint8).reshape(len(others), -1)
    differing = hashes ^ np.frombuffer(one, np.uint8)
    distance = cast("NDArray[np.int64]", np.unpackbits(differing, axis=1).sum(axis=1))
    return [int(index) for index in np.flatnonzero(distance <= MAX_HAMMING_BITS)]


def neighbours(one: Fingerprint, others: Sequence[Fingerprint]) -> list[int]:
    """Indices of the near duplicates of `one` in `others`, most similar first."""
    near = close(one.hash, [other.hash for other in others])
    alike = sorted((-_correlation(one, others[index]), index) for index in near)
    return [index for negated, index in alike if -negated >= MIN_CORRELATION]


def neighbouring_pairs(prints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Sorted index pairs of all near duplicates, the smaller index first."""
    hashes = [int.from_bytes(each.hash, "big") for each in prints]
    candidates: set[tuple[int, int]] = set()
    # Cut the hash into MAX_HAMMING_BITS + 1 stretches: at least one has no differing bit.
    length = -(-BITS * BITS // (MAX_HAMMING_BITS + 1))
    for shift in range(0, BITS * BITS, length):
        alike: dict[int, list[int]] = {}
        for index, code in enumerate(hashes):
            alike.setdefault(code >> shift & (1 << length) - 1, []).append(index)
        for a, b in itertools.chain.from_iterable(itertools.combinations(each, 2) for each in alike.values()):
            if (hashes[a] ^ hashes[b]).bit_count() <= MAX_HAMMING_BITS:
                candidates.add((a, b))
    return sorted((a, b) for a, b in candidates if _correlation(prints[a], prints[b]) >= MIN_CORRELATION)


def _correlation(a: Fingerprint, b: Fingerprint) -> float:
    """Pearson correlation of the grey copies; two flat ones give 1 if equally bright, else 0."""
    x, y = (np.frombuffer(each.thumbnail, np.uint8).astype(np.float64) for each in (a, b))
    if x.std() < FLAT or y.std() < FLAT:
        return float(x.std() < FLAT and y.std() < FLAT and abs(x.mean() - y.mean()) < FLAT)
    return float(np.corrcoef(x, y)[0, 1])
