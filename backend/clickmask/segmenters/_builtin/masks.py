"""The mask of the whole image from the built-in network's logits in a crop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from clickmask.masks.regions import mask_iou
from clickmask.segmenters._builtin.prompts import Crop, Floats
from clickmask.types import Box, Mask, Point, Prompt, Size

MAX_KEPT_PX = 1024  # longest side of the pixels kept for second passes
CROP_MARGIN = 1.7  # side of a crop, in sides of the object in it
MIN_CROP_PX = 64.0  # of the kept pixels
MAX_CROP_SHARE = 0.75  # of the image's long side; a larger crop is not worth a second pass
MIN_CONFIDENCE_LOGIT = 8.0  # logit of a pixel that a rule decides
MAX_BOX_OVERSHOOT = 0.05  # of a box's sides; how far a mask may leave it
CLICK_RADIUS = 0.15  # of the square root of the mask's area: the disc that a click overrules
MERGE_IOU = 0.9  # candidates with a larger IoU are one
EMPTY_MASK_RADIUS = 0.02  # of the image's long side: the disc round a click if nothing was found


@dataclass(frozen=True, eq=False)
class Pass:
    """The network's answer in a crop: logits (H / 2, W / 2) of one mask, and its predicted IoU."""

    crop: Crop
    logits: Floats
    predicted_iou: float


def probabilities(logits: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)


def coverage(mask: Mask, crop: Crop) -> Floats:
    """(H / 2, W / 2) share of each of the crop's cells that `mask` covers."""
    height, width = (side // 2 for side in crop.size)
    padded = np.zeros([side // 2 for side in crop.padded], np.float32)
    padded[:height, :width] = cv2.resize(
        mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    )
    return padded


def constrain(logits: Floats, crop: Crop, prompt: Prompt) -> Floats:
    """`logits` without what cannot be meant: padding, pixels far from the box, parts without a click."""
    height, width = (side // 2 for side in crop.size)
    inside = np.full_like(logits, -MIN_CONFIDENCE_LOGIT)
    top, left, bottom, right = 0, 0, height, width
    if prompt.box is not None:
        (x0, y0), (x1, y1) = crop.to_crop([prompt.box[:2], prompt.box[2:]])
        across, down = MAX_BOX_OVERSHOOT * (x1 - x0) + 2, MAX_BOX_OVERSHOOT * (y1 - y0) + 2
        left, top = max(left, int((x0 - across) / 2)), max(top, int((y0 - down) / 2))
        right, bottom = min(right, int((x1 + across) / 2) + 1), min(bottom, int((y1 + down) / 2) + 1)
    inside[top:bottom, left:right] = logits[top:bottom, left:right]
    foreground, background = (
        [(x / 2, y / 2) for x, y in crop.to_crop([point for point in points if crop.contains(point)])]
        for points in (prompt.foreground, prompt.background)
    )
    _decide(inside, foreground, background, MIN_CONFIDENCE_LOGIT)
    _decide(inside, background, foreground, -MIN_CONFIDENCE_LOGIT)
    return _clicked(inside, foreground)


def _decide(logits: Floats, points: list[Point], others: list[Point], logit: float) -> None:
    """Draw a disc of `logit`, in place, at each of `points` (x, y) where the network disagrees. In uniform
    areas it may overrule a click, but a person has decided."""
    radius = max(1.5, CLICK_RADIUS * float(np.count_nonzero(logits > 0)) ** 0.5)
    y, x = np.ogrid[: logits.shape[0], : logits.shape[1]]
    for column, row in points:
        if (logits[_cell((column, row), logits)] > 0) == (logit > 0):
            continue
        reach = min([radius, *(math.dist((column, row), other) / 2 for other in others)])
        logits[(x + 0.5 - column) ** 2 + (y + 0.5 - row) ** 2 <= reach**2] = logit
        if reach > 0:
            logits[_cell((column, row), logits)] = logit


def _clicked(logits: Floats, points: list[Point]) -> Floats:
    """`logits`, negative in each part without one of `points`; unchanged if no part has one."""
    _, labels = cv2.connectedComponents((logits > 0).view(np.uint8), connectivity=8)
    clicked = {int(labels[_cell(point, logits)]) for point in points} - {0}
    if not clicked:
        return logits
    return np.where((labels == 0) | np.isin(labels, list(clicked)), logits, np.float32(-MIN_CONFIDENCE_LOGIT))


def _cell(point: Point, logits: Floats) -> tuple[int, int]:
    return min(int(point[1]), logits.shape[0] - 1), min(int(point[0]), logits.shape[1] - 1)


def different(passes: list[Pass]) -> list[Pass]:
    """`passes`, best first, without empty ones and near repeats of a better one; at least one."""
    kept: list[Pass] = []
    for seen in sorted(passes, key=lambda seen: -seen.predicted_iou):
        mask = seen.logits > 0
        if mask.any() and all(mask_iou(mask, other.logits > 0) < MERGE_IOU for other in kept):
            kept.append(seen)
    return kept or passes[:1]


def crop_around(seen: Pass, prompt: Prompt, size: Size) -> Box | None:
    """The square around the mask and the prompt, moved into the image; None if it is most of the image."""
    rows, columns = np.nonzero(seen.logits > 0)
    x0, y0, x1, y1 = seen.crop.extent
    sx, sy = 2 * (x1 - x0) / seen.crop.size[1], 2 * (y1 - y0) / seen.crop.size[0]
    corners = list(prompt.foreground)
    if rows.size:
        corners += [(float(columns.min()) * sx, float(rows.min()) * sy)]
        corners += [(float(columns.max() + 1) * sx, float(rows.max() + 1) * sy)]
    if prompt.box is not None:
        corners += [prompt.box[:2], prompt.box[2:]]
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    smallest = MIN_CROP_PX * max(1.0, max(size) / MAX_KEPT_PX)
    side = max(CROP_MARGIN * max(max(xs) - min(xs), max(ys) - min(ys)), smallest)
    if side > MAX_CROP_SHARE * max(size):
        return None
    edges: list[tuple[float, float]] = []
    for values, length in ((xs, size[1]), (ys, size[0])):
        low = (min(values) + max(values) - side) / 2
        low = min(max(low, 0.0), max(0.0, length - side))
        edges.append((low, min(low + side, float(length))))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def resample(seen: Pass, crop: Crop) -> Floats:
    """(H / 2, W / 2) logits of `seen` in another crop, bilinear; -MIN_CONFIDENCE_LOGIT in the padding."""
    height, width = (side // 2 for side in crop.size)
    (x0, y0), (x1, y1) = seen.crop.to_crop([crop.extent[:2], crop.extent[2:]])
    across = (x0 + (np.arange(width, dtype=np.float32) + 0.5) * ((x1 - x0) / width)) / 2 - 0.5
    down = (y0 + (np.arange(height, dtype=np.float32) + 0.5) * ((y1 - y0) / height)) / 2 - 0.5
    x, y = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
    padded = np.full([side // 2 for side in crop.padded], -MIN_CONFIDENCE_LOGIT, np.float32)
    padded[:height, :width] = cv2.remap(seen.logits, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return padded


def paste(seen: Pass, crop: Crop, before: Floats) -> Floats:
    """`before`, the logits of the whole image's `crop`, replaced by those of a closer pass."""
    if seen.crop == crop:
        return before
    (x0, y0), (x1, y1) = (
        (x / 2, y / 2) for x, y in crop.to_crop([seen.crop.extent[:2], seen.crop.extent[2:]])
    )
    top, left, bottom, right = round(y0), round(x0), round(y1), round(x1)
    whole = np.full_like(before, -MIN_CONFIDENCE_LOGIT)
    height, width = (side // 2 for side in seen.crop.size)
    if bottom > top and right > left:
        part = cv2.resize(
            seen.logits[:height, :width], (right - left, bottom - top), interpolation=cv2.INTER_AREA
        )
        whole[top:bottom, left:right] = part[: whole.shape[0] - top, : whole.shape[1] - left]
    return whole


def whole_mask(seen: Pass, prompt: Prompt, size: Size) -> Mask:
    """The mask of `seen` in the whole image, never empty."""
    height, width = (side // 2 for side in seen.crop.size)
    x0, y0, x1, y1 = (round(edge) for edge in seen.crop.extent)
    mask = np.zeros(size, np.bool_)
    part = cv2.resize(seen.logits[:height, :width], (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    mask[y0:y1, x0:x1] = part > 0
    if mask.any():
        return mask
    # Nothing was found: the prompt itself is the mask, as its mask, the box's ellipse, or discs.
    if prompt.mask is not None and prompt.mask.any():
        return prompt.mask.copy()
    y, x = np.ogrid[0.5 : size[0], 0.5 : size[1]]
    radius = EMPTY_MASK_RADIUS * max(size)
    discs = [(point, radius, radius) for point in prompt.foreground]
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        discs = [(((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0) / 2, (y1 - y0) / 2)]
    for (column, row), across, down in discs or [((size[1] / 2, size[0] / 2), size[1] / 2, size[0] / 2)]:
        mask |= ((x - column) / max(across, 0.5)) ** 2 + ((y - row) / max(down, 0.5)) ** 2 <= 1
        mask[min(int(row), size[0] - 1), min(int(column), size[1] - 1)] = True
    return mask
