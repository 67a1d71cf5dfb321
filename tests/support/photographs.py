"""scikit-image's photographs and outlines of things in them, drawn by hand: tests/photographs/*.json.

Only pictures that lie in the installed package, so that nothing is downloaded. Outlines are in
pixels of the picture, (x, y), in the frame of clickmask.types; they were drawn on enlarged views
before any segmenter's answer was seen, at an accuracy of about one pixel; the whole cat's and the whole
astronaut's, of about three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage
from PIL import Image as Picture

from clickmask.masks.regions import mask_box
from clickmask.types import Box, Mask, Pixels

OUTLINES = Path(__file__).parent / "photographs"
PICTURES = Path(skimage.__file__).parent / "data"


@dataclass(frozen=True, eq=False)
class Outlined:
    name: str
    photograph: str
    pixels: Pixels
    mask: Mask


def outlined_objects() -> Iterator[Outlined]:
    """Every outlined object, with its whole photograph."""
    for path in sorted(OUTLINES.glob("*.json")):
        outlines = json.loads(path.read_text())
        pixels = np.asarray(Picture.open(PICTURES / outlines["photograph"]).convert("RGB"))
        for name, ring in outlines["objects"].items():
            yield Outlined(
                f"{path.stem}: {name}", path.stem, pixels, _filled(np.array(ring), pixels.shape[:2])
            )


def _filled(ring: np.ndarray, size: tuple[int, ...]) -> Mask:
    # cv2 has pixel centres at whole numbers, clickmask at halves; 8 subpixel bits
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.round((ring - 0.5) * 256).astype(np.int32)], 1, shift=8)
    return mask > 0


def tight_box(mask: Mask) -> Box:
    box = mask_box(mask)
    assert box is not None
    return box
