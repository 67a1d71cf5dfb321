"""Drawn scenes with noise, for segmenters: flat shapes whose truth is known."""

from __future__ import annotations

import cv2
import numpy as np

from clickmask.types import Image, Mask, Pixels, Size
from support.drawn import disc, ellipse, rectangle

SIZE = (240, 320)
NOISE = 8.0  # standard deviation, of 255


def drawn_scene(seed: int) -> tuple[Pixels, list[Mask]]:
    """A disc, a rectangle and an ellipse in distinct colours that do not touch, under noise."""
    random = np.random.default_rng(seed)
    masks = [
        disc(SIZE, (random.uniform(50, 60), random.uniform(60, 180)), random.uniform(25, 40)),
        rectangle(SIZE, (120, int(random.integers(20, 60)), 190, int(random.integers(120, 220)))),
        ellipse(SIZE, (255, random.uniform(90, 150)), (40, random.uniform(25, 60)), random.uniform(0, 90)),
    ]
    masks[2] &= ~rectangle(SIZE, (0, 0, 200, SIZE[0]))
    # corners of the colour cube, so that no two are close
    corners = random.permutation([(40, 40, 40), (210, 60, 50), (60, 190, 80), (60, 80, 210), (220, 210, 90)])
    canvas = np.broadcast_to(corners[0], (*SIZE, 3)).astype(np.float64)
    for mask, colour in zip(masks, corners[1:4], strict=True):
        canvas[mask] = colour
    canvas += random.normal(0, NOISE, canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8), masks


def scene_image(size: Size, seed: int) -> Image:
    """A drawn scene, brought to `size`."""
    pixels = np.asarray(cv2.resize(drawn_scene(seed)[0], size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    pixels.flags.writeable = False
    return Image(pixels, f"scene {seed} of {size}")
