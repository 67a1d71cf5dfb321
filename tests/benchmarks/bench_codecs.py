"""Codecs beside their references: Label Studio's brush RLE, COCO RLE, polygons, bit masks.

Both sides are timed in turn in one run; only the ratios mean anything on another machine.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from clickmask.masks.polygons import mask_to_polygons, polygons_to_mask
from clickmask.masks.rle import mask_to_rle, rle_to_mask
from clickmask.types import Mask, Size
from clickmask_adapters.tools.label_studio.shapes import (
    brush_rle_to_mask,
    mask_to_bit_mask,
    mask_to_brush_rle,
)
from support.label_studio_sdk_oracle import brush_module

brush = brush_module()
SIZES = ((1024, 1024), (3000, 4000))
ROUNDS = 7
Row = tuple[str, str, Callable[[], object], Callable[[], object]]


def wavy_blob(size: Size) -> Mask:
    """A blob with a wavy edge, a third of the image, and a hole in it."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((y - height / 2) / height, (x - width / 2) / width)
    angle = np.arctan2(y - height / 2, x - width / 2)
    return (distance < 0.35 + 0.03 * np.sin(40 * angle)) & (distance > 0.1)


def rows(size: Size) -> list[Row]:
    mask = wavy_blob(size)
    grey = mask.view(np.uint8) * np.uint8(255)
    columns = np.asfortranarray(mask.view(np.uint8))
    packed, rle, rings = mask_to_brush_rle(mask), mask_to_rle(mask), mask_to_polygons(mask)
    listed = packed.tolist()
    assert listed == brush.mask2rle(grey)
    assert np.array_equal(brush_rle_to_mask(packed, size), mask)
    counts = {"size": rle["size"], "counts": rle["counts"].encode()}
    chains = [np.rint(ring).astype(np.int32) for ring in rings]
    rgba = np.dstack([np.zeros((*size, 3), np.uint8), grey])
    return [
        (
            "brush RLE, write",
            "label-studio-sdk",
            lambda: mask_to_brush_rle(mask),
            lambda: brush.mask2rle(grey),
        ),
        (
            "brush RLE, read",
            "label-studio-sdk",
            lambda: brush_rle_to_mask(listed, size),
            lambda: brush.decode_rle(listed).reshape(*size, 4)[:, :, 3] > 0,
        ),
        (
            "COCO RLE, write",
            "numpy to Fortran order, pycocotools",
            lambda: mask_to_rle(mask),
            lambda: coco.encode(np.asfortranarray(mask.view(np.uint8))),
        ),
        (
            "COCO RLE, write",
            "pycocotools, columns at hand",
            lambda: mask_to_rle(mask),
            lambda: coco.encode(columns),
        ),
        ("COCO RLE, read", "pycocotools, columns", lambda: rle_to_mask(rle), lambda: coco.decode(counts)),
        (
            "mask to polygons (exact)",
            "cv2.findContours (not exact)",
            lambda: mask_to_polygons(mask),
            lambda: cv2.findContours(grey, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE),
        ),
        (
            "polygons to mask (exact)",
            "cv2.fillPoly (not exact)",
            lambda: polygons_to_mask(rings, size),
            lambda: cv2.fillPoly(np.zeros(size, np.uint8), chains, 1),
        ),
        ("bit mask, write", "Pillow PNG", lambda: mask_to_bit_mask(mask), lambda: pillow_png(rgba)),
    ]


def pillow_png(rgba: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG", compress_level=1)
    return file.getvalue()


def best_in_turn(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """The shortest times in milliseconds; the reference stops early where it takes seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for each, kept in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            each()
            kept.append(1000 * (time.perf_counter() - started))
        if sum(times[1]) > 2000:
            break
    return min(times[0]), min(times[1])


def main() -> str:
    cv2.setNumThreads(1)
    lines = [
        "| codec | image | ours, ms | beside | its, ms | times faster |",
        "|---|---|---:|---|---:|---:|",
    ]
    for size in SIZES:
        for name, beside, ours, theirs in rows(size):
            mine, its = best_in_turn(ours, theirs)
            height, width = size
            lines.append(
                f"| {name} | {width}x{height} | {mine:.1f} | {beside} | {its:.1f} | {its / mine:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
