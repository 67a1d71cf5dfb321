"""Agreement of outlines, which IoU hardly shows for large objects.

Boundary F1: Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation?, BMVC
2013. Boundary IoU: Cheng et al., CVPR 2021. Label maps are those of `clickmask.metrics.confusion`. Pixels
whose truth is `ignore` do not count and have no boundary along them.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.metrics.confusion import LabelMap, Values, counted_pixels
from clickmask.types import Mask

TOLERANCE = 0.008  # of the image's diagonal, rounded up to pixels, as in DAVIS: 7 px of 640 x 480
BAND = 0.02  # of the image's diagonal, rounded, at least 1 px, as in the paper on boundary IoU


def boundary_f1(truth: LabelMap, prediction: LabelMap, classes: int, ignore: int | None = None) -> Values:
    """(classes,) F1 of each class's boundary in one image; NaN for a class that is in neither map.

    Precision is the share of the predicted boundary's pixels at most TOLERANCE from the true boundary, recall
    the reverse. Boundary pixels have a pixel outside the mask above, below or beside them; the image's edge
    is no boundary. Two masks without one (the whole image) agree.
    """
    reach = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    counted = counted_pixels(truth, ignore)
    found = np.full(classes, np.nan)
    for number in _present(truth, prediction, counted):
        true, predicted = (_outline(labels == number, counted) for labels in (truth, prediction))
        precision, recall = _share_near(predicted, true, reach), _share_near(true, predicted, reach)
        found[number] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return found


def boundary_overlap(
    truth: LabelMap, prediction: LabelMap, classes: int, ignore: int | None = None
) -> NDArray[np.int64]:
    """(classes, 2) pixels of intersection and union of each class's boundary bands in one image.

    A band is the part of the mask at most BAND from its boundary, which here includes the image's edge.
    Boundary IoU is intersection by union, each summed over the images of a split.
    """
    width = max(1, round(BAND * math.hypot(*truth.shape)))
    counted = counted_pixels(truth, ignore)
    found = np.zeros((classes, 2), np.int64)
    for number in _present(truth, prediction, counted):
        true, predicted = (_band(labels == number, counted, width) for labels in (truth, prediction))
        found[number] = np.count_nonzero(true & predicted), np.count_nonzero(true | predicted)
    return found


def _present(truth: LabelMap, prediction: LabelMap, counted: Mask) -> list[int]:
    return [int(number) for number in np.union1d(truth[counted], prediction[counted])]


def _outline(mask: Mask, counted: Mask) -> Mask:
    """The counted pixels of `mask` with a counted pixel outside it above, below or beside them."""
    around = np.pad(mask | ~counted, 1, mode="edge")
    surrounded = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask & counted & ~surrounded


def _band(mask: Mask, counted: Mask, width: int) -> Mask:
    """The pixels that `width` erosions by a 3 x 3 square remove, as in the paper's own code."""
    padded = np.pad(mask | ~counted, 1).view(np.uint8)
    kept = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1] > 0
    return mask & counted & ~kept


def _share_near(of: Mask, to: Mask, reach: int) -> float:
    """The share of the pixels `of` with a pixel of `to` within `reach` px; 1 if `of` is empty."""
    if not of.any():
        return 1.0
    if not to.any():
        return 0.0
    distance = cv2.distanceTransform((~to).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[of] <= reach).mean())
