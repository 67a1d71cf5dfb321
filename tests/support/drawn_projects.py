"""A project of drawn pictures with accepted labels, small enough to be learnt in seconds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clickmask.images.archive import ImageArchive
from clickmask.images.decode import decode_image
from clickmask.images.source import ImageIdentity
from clickmask.labels.submissions import ProjectDescribed, Region, Submission
from clickmask.masks.rle import mask_to_rle
from clickmask.store import Store
from clickmask.types import Mask, Pixels, Size
from support.drawn import disc, rectangle
from support.labelled import PROJECT, TOOL, brush, png

SIZE = (48, 64)
COLOURS = {"disc": (200, 60, 60), "square": (60, 60, 200)}


def drawn_picture(seed: int, size: Size = SIZE) -> tuple[Pixels, dict[str, Mask]]:
    """A red disc and a blue square somewhere on ground whose noise and shade are the picture's own."""
    random = np.random.default_rng(seed)
    height, width = size
    unit = height / 48
    centre = (random.uniform(12, 20) * unit, random.uniform(12, 36) * unit)
    masks = {"disc": disc(size, centre, random.uniform(7, 11) * unit)}
    x, y = (int(value * unit) for value in random.uniform((34, 4), (44, 26)))
    masks["square"] = rectangle(size, (x, y, x + int(15 * unit), y + int(15 * unit)))
    # Shaded by coarse noise, or all would be near-duplicates of each other.
    shade = np.kron(random.uniform(-35, 35, (8, 8, 1)), np.ones((height // 8, width // 8, 1)))
    pixels = np.full((height, width, 3), 120.0) + shade
    for name, mask in masks.items():
        pixels[mask] = COLOURS[name]
    pixels += random.normal(0, 8, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8), masks


def accept_drawings(
    store: Store,
    kept: ImageArchive,
    count: int,
    first: int = 0,
    draw: Callable[[int], tuple[Pixels, dict[str, Mask]]] = drawn_picture,
) -> None:
    """Accept pictures with the seeds from `first` on, one task each, as intake does."""
    store.describe_project(ProjectDescribed(TOOL, PROJECT, "Drawn", tuple(COLOURS)))
    for seed in range(first, first + count):
        pixels, masks = draw(seed)
        raw = png(pixels)
        digest, size = decode_image(raw).digest, (pixels.shape[0], pixels.shape[1])
        kept.keep(digest, raw)
        regions = tuple(Region(name, name, brush(mask)) for name, mask in masks.items())
        task = str(seed + 1)
        submission = Submission(
            TOOL, PROJECT, task, task, f"https://x/{seed}", f"{seed}.png", size, regions, 1000.0 + seed
        )
        drawn = [(region, mask_to_rle(masks[region.id])) for region in regions]
        store.accept(submission, ImageIdentity(digest, size), drawn)
