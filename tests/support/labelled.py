"""Accepted labels and images for tests that start behind the tools."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from clickmask.errors import Gone
from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import Brush, Geometry, Polygon, rasterise
from clickmask.labels.submissions import AcceptedLabel, LabelKey, LabelledImage, Region, Submission
from clickmask.masks.rle import mask_to_rle
from clickmask.store import Store
from clickmask.types import Mask, Pixels, Size

TOOL, PROJECT = "label_studio", "7"
SIZE = (48, 64)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def noise(seed: int, size: Size = SIZE) -> Pixels:
    """A picture of coarse noise: unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.kron(coarse, np.ones((size[0] // 8, size[1] // 8, 1), np.uint8))


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


class FilesInMemory:
    """Files by the digest of a name, as `digest_of` makes it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = {digest_of(name): raw for name, raw in files.items()}
        self.missing: set[str] = set()

    def holds(self, digest: str) -> bool:
        return digest in self.files and digest not in self.missing

    def size_of(self, digest: str) -> int:
        return len(self.files[digest]) if self.holds(digest) else 0

    def read(self, digest: str) -> bytes:
        if not self.holds(digest):
            raise Gone("it is not kept")
        return self.files[digest]


def polygon(*points: tuple[float, float]) -> Polygon:
    return Polygon((points,))


def brush(mask: Mask) -> Brush:
    return Brush(mask_to_rle(mask))


def labelled(
    image: str, task: str = "1", name: str | None = None, size: Size = SIZE, at: float = 1000.0, **more: Any
) -> LabelledImage:
    item = more.pop("item", 0)
    return LabelledImage(digest_of(image), name or f"{image}.png", size, task, item, accepted_at=at, **more)


def accepted(
    image: str,
    geometry: Geometry | Mask,
    category: str = "cell",
    *,
    region: str = "r",
    task: str = "1",
    annotation: str = "1",
    at: float = 1000.0,
    proposal: str | None = None,
    size: Size = SIZE,
    item: int = 0,
    layer: int = 0,
) -> AcceptedLabel:
    drawn = brush(geometry) if isinstance(geometry, np.ndarray) else geometry
    key = LabelKey(TOOL, PROJECT, task, annotation, region)
    rle = mask_to_rle(rasterise(drawn, size))
    return AcceptedLabel(key, digest_of(image), size, category, drawn, rle, at, proposal, item, layer)


def submit(
    store: Store,
    image: str,
    drawn: Mapping[str, tuple[str, Geometry]],
    *,
    task: str,
    annotation: str = "",
    at: float = 1000.0,
    skipped: bool = False,
    size: Size = SIZE,
    proposals: Sequence[str] = (),
) -> None:
    """Accept regions, by id: (category, geometry); those whose ids are in `proposals` came from there."""
    regions = tuple(
        Region(name, category, geometry, name if name in proposals else None)
        for name, (category, geometry) in drawn.items()
    )
    submission = Submission(
        TOOL, PROJECT, task, annotation or task, f"https://x/{image}", f"{image}.png", size, regions, at,
        skipped=skipped,
    )  # fmt: skip
    masks = [(region, mask_to_rle(rasterise(region.geometry, size))) for region in regions]
    store.accept(submission, None if skipped else ImageIdentity(digest_of(image), size), masks)
