"""A project whose accepted labels are those of a COCO folder: real pictures for trainings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from clickmask.images.archive import ImageArchive
from clickmask.images.decode import decode_image
from clickmask.images.source import ImageIdentity
from clickmask.labels.submissions import ProjectDescribed, Region, Submission
from clickmask.masks.rle import Rle, mask_to_rle, rle_to_mask
from clickmask.store import Store
from clickmask.types import Mask, Pixels, Size
from support.labelled import PROJECT, TOOL, brush


@dataclass(frozen=True)
class CocoPicture:
    name: str
    raw: bytes
    size: Size
    objects: tuple[tuple[str, Rle], ...]  # category and mask of each

    @property
    def pixels(self) -> Pixels:
        return decode_image(self.raw).pixels

    def masks(self) -> list[tuple[str, Mask]]:
        return [(category, rle_to_mask(rle)) for category, rle in self.objects]


def to_train_and_new(folder: Path) -> tuple[list[CocoPicture], list[CocoPicture]]:
    """Those of the annotation file with `train` in its name, and of the one with `val`."""
    train, val = (
        next(each.name for each in sorted(folder.glob(f"*{kind}*.json"))) for kind in ("train", "val")
    )
    return read_pictures(folder, train), read_pictures(folder, val)


def read_pictures(folder: Path, file: str) -> list[CocoPicture]:
    """The pictures of one annotation file, by their names, and what pycocotools makes of its outlines."""
    content = json.loads((folder / file).read_bytes())
    names = {row["id"]: row["name"] for row in content["categories"]}
    sizes = {row["id"]: (row["height"], row["width"]) for row in content["images"]}
    drawn: dict[int, list[tuple[str, Rle]]] = {row["id"]: [] for row in content["images"]}
    for row in content["annotations"]:
        size = sizes[row["image_id"]]
        drawn[row["image_id"]].append((names[row["category_id"]], _rle(row["segmentation"], size)))
    found = [
        CocoPicture(
            row["file_name"],
            (folder / "images" / row["file_name"]).read_bytes(),
            (row["height"], row["width"]),
            tuple(drawn[row["id"]]),
        )
        for row in content["images"]
    ]
    return sorted(found, key=lambda each: each.name)


def accept_pictures(store: Store, kept: ImageArchive, pictures: list[CocoPicture], first: int = 0) -> None:
    """Accept each as a task of its own, as intake does; tasks are numbered from `first` + 1 on."""
    categories = sorted({category for picture in pictures for category, _ in picture.objects})
    store.describe_project(ProjectDescribed(TOOL, PROJECT, "COCO", tuple(categories)))
    for number, picture in enumerate(pictures, first + 1):
        digest = decode_image(picture.raw).digest
        kept.keep(digest, picture.raw)
        drawn = picture.masks()
        regions = tuple(Region(str(at), category, brush(mask)) for at, (category, mask) in enumerate(drawn))
        submission = Submission(
            TOOL, PROJECT, str(number), str(number), f"https://x/{picture.name}", picture.name, picture.size,
            regions, 1000.0 + number,
        )  # fmt: skip
        masks = [(region, mask_to_rle(mask)) for region, (_, mask) in zip(regions, drawn, strict=True)]
        store.accept(submission, ImageIdentity(digest, picture.size), masks)


def _rle(segmentation: Any, size: Size) -> Rle:
    parts = coco.frPyObjects(segmentation, *size)
    whole = coco.merge(parts) if isinstance(parts, list) else parts
    return Rle(size=list(size), counts=whole["counts"].decode("ascii"))
