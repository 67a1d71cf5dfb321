"""CVAT's mask formats, as CVAT 2.73.0 and `cvat_sdk.masks` 2.80.0 have them. Pure.

`points` of a shape of type "mask" is `[runs..., left, top, right, bottom]`: run lengths of a crop, row by
row, and its box. The first run counts zeros and may be 0; the box is inclusive, in whole pixels. COCO's RLE
runs column by column over the whole image instead. Older versions and detectors take the mask as JSON text, a
digit per pixel, which is written by hand: 12 Mpx are 24 MB.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from clickmask.masks.regions import mask_box
from clickmask.types import Mask, Size

InclusiveBox = tuple[int, int, int, int]  # left, top, right, bottom; the last column and row are inside
ZERO, COMMA, OPEN, CLOSE = b"0,[]"
HEAD, TAIL = b'{"mask":[', b"]}"
PIXELS_AT_ONCE = 2**16  # fits a processor's cache: only the text itself is new memory


def mask_to_dense_reply(mask: Mask) -> memoryview:
    """`{"mask":[[0,1,...],...]}`, a list per row. Raises ValueError for a mask without pixels."""
    _require_pixels(mask)
    height, width = mask.shape
    text = np.empty(len(HEAD) + height * (2 * width + 2) + len(TAIL) - 1, np.uint8)
    text[: len(HEAD)] = np.frombuffer(HEAD, np.uint8)
    # A row is "[0,1,1],": pairs of the character before a digit and the digit, and "]," at the end.
    rows = text[len(HEAD) : len(text) + 1 - len(TAIL)].reshape(height, 2 * width + 2)
    step = max(1, PIXELS_AT_ONCE // width)
    before = np.full((step, width), COMMA, np.uint8)
    before[:, 0] = OPEN
    for top in range(0, height, step):
        digits = np.bitwise_or(mask[top : top + step], ZERO, dtype=np.uint8)
        pairs = cv2.merge([before[: len(digits)], digits])
        rows[top : top + step, : 2 * width] = pairs.reshape(len(digits), 2 * width)
    rows[:, 2 * width :] = CLOSE, COMMA
    text[-len(TAIL) :] = np.frombuffer(TAIL, np.uint8)
    return text.data


def mask_to_flat(mask: Mask, after: tuple[int, ...] = ()) -> bytes:
    """A JSON list of 0 and 1 by rows, then `after`. Raises ValueError for a mask without pixels."""
    _require_pixels(mask)
    digits = np.bitwise_or(mask, ZERO, dtype=np.uint8)
    pairs = cv2.merge([np.full(mask.shape, COMMA, np.uint8), digits])
    return b"".join((b"[", pairs.reshape(-1).data[1:], *(b",%d" % number for number in after), b"]"))


def mask_to_points(mask: Mask) -> list[int]:
    """`mask` as CVAT stores it and `cvat_sdk.masks` gives it, cropped to its box. An empty mask becomes its
    first pixel, unset, which CVAT draws as nothing. Raises as `mask_to_crop` does."""
    crop, box = mask_to_crop(mask)
    flat = crop.reshape(-1).view(np.uint8)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs: list[int] = np.diff(ends, prepend=0).tolist()
    return [*([0] if flat[0] else []), *runs, *box]


def points_to_mask(points: Sequence[float], size: Size) -> Mask:
    """The mask, a new array of `size`. CVAT gives the numbers back as floats. Takes no more memory than the
    mask and a small multiple of `points`. Raises ValueError if they are not whole numbers, the box is outside
    the image, or the runs do not fill the box."""
    # NumPy would take texts too, and give each as much room as the longest one.
    if not isinstance(points, list) or not set(map(type, points)) <= {int, float}:
        raise ValueError("a mask is a list of numbers")
    try:
        given = np.array(points, np.float64)
    except OverflowError as error:
        raise ValueError("a mask has a number that no image has") from error
    # Beyond 2**53 floats have gaps; no image has so many pixels. NaN compares as false.
    if not (np.abs(given) < 2**53).all() or not (given == np.floor(given)).all():
        raise ValueError("a mask has a number that is not whole")
    numbers = given.astype(np.int64)
    if len(numbers) < 5:
        raise ValueError(f"{len(numbers)} numbers are too few for a mask: at least one run and a box")
    height, width = size
    runs = numbers[:-4]
    left, top, right, bottom = (int(side) for side in numbers[-4:])
    if not (0 <= left <= right < width and 0 <= top <= bottom < height):
        raise ValueError(f"the box {(left, top, right, bottom)} is not in the {width}x{height} image")
    area = (right - left + 1) * (bottom - top + 1)
    if runs.min() < 0 or runs.max() > area or runs.sum() != area:
        raise ValueError(f"the runs do not fill the {area} pixels of their box")
    mask = np.zeros(size, np.bool_)
    crop = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : bottom + 1, left : right + 1] = crop.reshape(bottom - top + 1, right - left + 1)
    return mask


def mask_to_crop(mask: Mask) -> tuple[Mask, InclusiveBox]:
    """Crop of `mask` to its box (its first pixel if empty), and the box. Raises ValueError without pixels."""
    _require_pixels(mask)
    left, top, right, bottom = (int(side) for side in mask_box(mask) or (0, 0, 1, 1))
    crop = np.ascontiguousarray(mask[top:bottom, left:right])
    return crop, (left, top, right - 1, bottom - 1)


def _require_pixels(mask: Mask) -> None:
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask of shape {mask.shape} has no pixels")
