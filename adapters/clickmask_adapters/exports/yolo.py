"""YOLO segmentation, as Ultralytics reads it: `data.yaml`, `images/SIDE/`, `labels/SIDE/`.

Each object is a line: its category's number from 0, then the points of one ring, divided by the picture's
width and height (docs.ultralytics.com/datasets/segment, read 2026-11). Bridges of no width join parts and
holes to that ring. Images without a side are in `images/unused`, which `data.yaml` does not name.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from typer import Option

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.errors import Failed
from clickmask.labels.geometry import Polygon
from clickmask.labels.split import SIDES
from clickmask.masks.polygons import group_rings, polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import rle_to_mask
from clickmask.masks.simplify import simplify_mask
from clickmask.masks.single_rings import join_holes, join_parts
from clickmask_adapters.exports import _folder

NAMES = {"train": "train", "validation": "val", "test": "test"}  # sides in data.yaml
MinIou = Annotated[float, Option(min=0.5, max=1, help="IoU with the mask that outlines must reach.")]


def write(dataset: Dataset, folder: Path, *, min_iou: MinIou = 0.98) -> Path:
    """Write the dataset and return the path of `data.yaml`. A `min_iou` of 1 gives exact outlines."""
    names = _folder.file_names(dataset.samples, unique_stems=True)
    placed: dict[str, str] = {}
    with _folder.replacing(folder) as new:
        for side in (*SIDES, "unused"):
            (new / "images" / side).mkdir(parents=True)
            (new / "labels" / side).mkdir(parents=True)
        for sample in dataset.samples:
            side = sample.side if sample.side and sample.usable else "unused"
            placed[sample.image] = f"{side}/{names[sample.image]}"
            path = new / "labels" / side / f"{_folder.stem(names[sample.image])}.txt"
            path.write_bytes(_lines(dataset, sample, min_iou).encode())
            _require_read_back(path, sample, min_iou)
        _folder.write_pictures(dataset, new / "images", placed)
        sides = "".join(f"{name}: images/{side}\n" for side, name in NAMES.items())
        # JSON strings are YAML too, whatever a category's name contains.
        listed = "".join(f"  {n}: {json.dumps(name)}\n" for n, name in enumerate(dataset.categories))
        text = f"# dataset {dataset.digest}\n{sides}names:\n{listed}" if listed else f"{sides}names: {{}}\n"
        (new / "data.yaml").write_bytes(text.encode())
    return folder / "data.yaml"


def losses(dataset: Dataset) -> list[str]:
    """Sentences on what the dataset loses in YOLO files."""
    labels = [label for sample in dataset.samples for label in sample.labels]
    drawn = sum(isinstance(label.geometry, Polygon) for label in labels)
    parts = [group_rings(simplify_mask(rle_to_mask(label.rle)).rings) for label in labels]
    with_holes = sum(any(holes for _, holes in part) for part in parts)
    found = _folder.sentences(
        (drawn, "polygons are outlines of what they cover, not with the points that were drawn"),
        (with_holes, "objects have holes, joined to their outline"),
        (sum(len(part) > 1 for part in parts), "objects have parts, joined by bridges of no width"),
        _folder.empty_labels(dataset),
        _folder.without_side(dataset, ": they are in images/unused"),
    )
    if dataset.unlabelled == "ignore":
        found.append("area without a label is unknown in this project, but background in YOLO")
    return found + _folder.picture_losses(dataset, _folder.file_names(dataset.samples, unique_stems=True))


def _lines(dataset: Dataset, sample: Sample, min_iou: float) -> str:
    height, width = sample.size
    lines: list[str] = []
    for label in sample.labels:
        parts = group_rings(simplify_mask(rle_to_mask(label.rle), min_iou).rings)
        if parts:  # else the label covers no pixel
            ring = join_parts([join_holes(outer, holes) for outer, holes in parts]) / (width, height)
            numbers = " ".join(f"{value:.6f}" for value in ring.ravel())
            lines.append(f"{dataset.categories.index(label.category)} {numbers}\n")
    return "".join(lines)


def _require_read_back(path: Path, sample: Sample, min_iou: float) -> None:
    """Raise Failed unless each line draws its label's mask as closely as `min_iou` asks."""
    height, width = sample.size
    labels = [label for label in sample.labels if rle_to_mask(label.rle).any()]
    lines = path.read_text().splitlines()
    for label, line in zip(labels, lines, strict=True):
        ring = np.array(line.split()[1:], np.float64).reshape(-1, 2) * (width, height)
        iou = mask_iou(polygons_to_mask([ring], sample.size), rle_to_mask(label.rle))
        if iou < min_iou - 0.02:  # six decimals move a vertex by less than 0.01 px
            raise Failed(f"region {label.key.region} of {sample.name} reads back with an IoU of {iou:.3f}")
