"""Whether a newly trained model takes the place of the one in service. No torch.

Both are measured anew on today's validation images, so neither is judged by other images than the
other. What is hard for both cancels out: the images are resampled for both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from clickmask.metrics import Confusion, iou, miou, miou_with_background, paired_difference

EPSILON = 0.02  # of mIoU: how far below no difference the lower bound may be
DELTA = 0.05  # of IoU: how far no class may fall
FEW = 20  # images; with fewer an interval says little, and the difference itself decides


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reason: str  # a sentence


def decide(
    candidate: Confusion,
    served: Confusion | None,
    categories: Sequence[str],
    shared: Sequence[str] = (),
) -> Decision:
    """Compare (images, K, K) matrices over the background and `categories`, of the same images in one order.

    `shared` are the categories that both models know; by them they are compared. `served` None is
    the first version: it must be better than to find nothing. So must one that shares no category
    with its predecessor, as nothing else can be said of it. Raises ValueError without images.
    """
    if not len(candidate):
        raise ValueError("there is no validation image to judge a model by")
    compared = [number for number, category in enumerate(categories, 1) if category in shared]
    if served is None or not compared:
        return _against_background(candidate)
    if candidate.shape != served.shape:
        raise ValueError(f"matrices of {candidate.shape} and {served.shape} are not of the same images")
    ours, theirs = (iou(matrices.sum(axis=0))[compared] for matrices in (candidate, served))
    falls = {categories[number - 1]: theirs[at] - ours[at] for at, number in enumerate(compared)}
    fallen = {category: fall for category, fall in falls.items() if fall > DELTA}  # NaN is not above
    difference = paired_difference(candidate, served, partial(miou, classes=compared))
    said = (
        f"mIoU {float(miou(candidate.sum(axis=0), compared)):.3f} against "
        f"{float(miou(served.sum(axis=0), compared)):.3f} on {len(candidate)} validation images"
    )
    if np.isnan(difference.estimate):
        return Decision(False, f"not promoted: none of {', '.join(shared)} is in the validation images")
    if fallen:
        worst = max(fallen, key=lambda category: fallen[category])
        return Decision(
            False, f"not promoted: {worst} falls by {fallen[worst]:.3f}, more than {DELTA}; {said}"
        )
    if len(candidate) < FEW:
        promoted = bool(difference.estimate >= 0)
        said += f", too few for an interval: the difference is {difference.estimate:+.3f}"
    else:
        promoted = bool(difference.low >= -EPSILON)
        said += f", the difference is {difference.low:+.3f} to {difference.high:+.3f}"
    return Decision(promoted, f"{'' if promoted else 'not '}promoted: {said}")


def _against_background(candidate: Confusion) -> Decision:
    """With the background counted: noise finds a little of every class, and spoils the rest."""
    whole = candidate.sum(axis=0)
    nothing = np.zeros_like(whole)
    nothing[:, 0] = whole.sum(axis=1)
    ours, theirs = float(miou_with_background(whole)), float(miou_with_background(nothing))
    said = (
        f"the first of its kind has a mIoU, with the background, of {ours:.3f}; "
        f"to find nothing has {theirs:.3f}, on {len(candidate)} validation images"
    )
    promoted = ours > theirs
    return Decision(promoted, f"{'' if promoted else 'not '}promoted: {said}")
