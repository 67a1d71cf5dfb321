"""Small COCO dataset folders with drawn pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clickmask.masks.rle import mask_to_rle
from clickmask.types import Mask, Pixels


def write_picture(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1])


def write_annotations(
    path: Path,
    images: Sequence[tuple[str, tuple[int, int]]],  # file name, (height, width); ids from 1
    annotations: Sequence[dict[str, Any]],  # ids are given from 1 where they have none
    categories: Sequence[str] = ("thing",),
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, (name, (height, width)) in enumerate(images, 1)
        ],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, **annotation}
            for number, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
    }
    path.write_text(json.dumps(content))
    return path


def write_dataset(folder: Path, scenes: Sequence[tuple[Pixels, Sequence[Mask]]]) -> Path:
    """A folder with `annotations.json` and `images`; the masks of a scene are of categories in turn."""
    annotations = [
        {"image_id": number, "category_id": kind, "segmentation": mask_to_rle(mask)}
        for number, (_, masks) in enumerate(scenes, 1)
        for kind, mask in enumerate(masks, 1)
    ]
    names = [f"{number}.png" for number in range(1, len(scenes) + 1)]
    for name, (pixels, _) in zip(names, scenes, strict=True):
        write_picture(folder / "images" / name, pixels)
    sizes = [(name, pixels.shape[:2]) for name, (pixels, _) in zip(names, scenes, strict=True)]
    kinds = [f"kind {kind}" for kind in range(1, 1 + max(len(masks) for _, masks in scenes))]
    write_annotations(folder / "annotations.json", sizes, annotations, kinds)
    return folder


def flat(size: tuple[int, int] = (20, 30)) -> Pixels:
    return np.full((*size, 3), 90, np.uint8)
