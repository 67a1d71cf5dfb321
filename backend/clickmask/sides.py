"""On which side of the split an image belongs: decided once, when its first label is accepted.

An image that was trained on must never be measured on, today or in a year. So a side is never
reconsidered: not when labels change or go, not when other images come. What the rule cannot know
when it decides, that two images on different sides are neighbours, takes both out of training and
measuring: they are quarantined. Neighbours are known by pictures, which do not change, so an image
in quarantine stays there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clickmask.near_duplicates import Fingerprint, neighbouring_pairs, neighbours

Side = Literal["train", "validation", "test"]

SIDES: tuple[Side, ...] = ("train", "validation", "test")
ENOUGH = 16  # images; with fewer a split says too little, and models are cross-validated
HELD_OUT = 3  # images at least on each of validation and test, from ENOUGH on
_SHARES: tuple[float, ...] = (0.70, 0.15, 0.15)


@dataclass(frozen=True)
class Placed:
    """An image that has a side, whether or not labels are on it now: its neighbours follow it anyway."""

    digest: str
    side: Side
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Standing:
    """What is on a side now: images that an annotation is on, and categories that their labels have."""

    images: int = 0
    categories: frozenset[str] = frozenset()


def neighbouring_side(fingerprint: Fingerprint, placed: Sequence[Placed]) -> Side | None:
    """The side of its nearest neighbour in `placed`; None for a picture unlike all of them."""
    near = neighbours(fingerprint, [other.fingerprint for other in placed])
    return placed[near[0]].side if near else None


def choose_side(digest: str, categories: frozenset[str], standing: Mapping[Side, Standing]) -> Side:
    """The side of a picture without neighbours that has labels of `categories`, by the quotas.

    Quotas are 70, 15 and 15 in a hundred, and from 16 images on 3 at least for validation and for
    test. Of the sides below theirs it is the one that lacks most of the image's `categories` (for a
    category's sake a side may be one image ahead, and training comes first), then the one furthest
    below, then one by the digest.
    """
    images = {side: standing[side].images for side in SIDES}
    counting = sum(images.values())
    below = {side: quota - images[side] for side, quota in _quotas(counting + 1).items()}
    needed: dict[Side, int] = {side: HELD_OUT - images[side] for side in SIDES[1:] if images[side] < HELD_OUT}
    candidates: list[Side]
    lacking = {side: len(categories - standing[side].categories) for side in SIDES}
    # The last images before the 16th, and any after it, go where the least number is not reached.
    if needed and counting + sum(needed.values()) >= ENOUGH:
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


def quarantined(placed: Sequence[Placed]) -> frozenset[str]:
    """Digests of the images that have a neighbour on another side."""
    pairs = neighbouring_pairs([image.fingerprint for image in placed])
    apart = [(placed[a], placed[b]) for a, b in pairs if placed[a].side != placed[b].side]
    return frozenset(image.digest for pair in apart for image in pair)


def _quotas(images: int) -> Mapping[Side, float]:
    """Of so many images; they sum to that. HELD_OUT are reached, evenly, by the time of ENOUGH."""
    held_out = [max(share * images, min(HELD_OUT, HELD_OUT * images / ENOUGH)) for share in _SHARES[1:]]
    return dict(zip(SIDES, (images - sum(held_out), *held_out), strict=True))


def _drawn(digest: str, side: Side) -> bytes:
    return hashlib.sha256(f"{digest} {side}".encode()).digest()
