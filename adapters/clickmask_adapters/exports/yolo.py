"""YOLO segmentation, as Ultralytics reads it: `data.yaml`, `images/SIDE/`, `labels/SIDE/`.

One line an object: the number of its category from 0 on, then the points of one ring, divided by the
picture's width and height (docs.ultralytics.com/datasets/segment, read 2026-11). A ring is all that a
line can hold: parts and holes are joined to it by bridges of no width. Images without a side are in
`images/unused`, which `data.yaml` does not name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from typer import Option

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.errors import ExportFailed
from clickmask.labels.geometry import Polygon
from clickmask.labels.split import SIDES
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.polygons import group_rings, polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import rle_to_mask
from clickmask.masks.simplify import simplify_mask
from clickmask.masks.single_rings import join_holes, join_parts
from clickmask.types import Ring
from clickmask_adapters.exports import _folder, _pictures

NAMES = {"train": "train", "validation": "val", "test": "test"}  # of the sides, in data.yaml
MinIou = Annotated[float, Option(min=0.5, max=1, help="IoU with the mask that outlines must reach.")]


def write(dataset: Dataset, folder: Path, *, min_iou: MinIou = 0.98) -> Path:
    """Write the dataset; the path of its `data.yaml`. Outlines have few points, 1 gives exact ones."""
    stems = _pictures.stems(dataset.samples)
    with _folder.replacing(folder) as new:
        for side in (*SIDES, "unused"):
            (new / "images" / side).mkdir(parents=True)
            (new / "labels" / side).mkdir(parents=True)
        pictures: dict[str, Path] = {}
        for sample in dataset.samples:
            stem, ending = stems[sample.image]
            side = _side(sample)
            path = new / "labels" / side / f"{stem}.txt"
            path.write_text(_lines(dataset, sample, min_iou))
            _require_read_back(path, sample, min_iou)
            pictures[sample.image] = new / "images" / side / f"{stem}{ending}"
        _pictures.write_pictures(dataset, pictures)
        (new / "data.yaml").write_text(_yaml(dataset))
    return folder / "data.yaml"


def losses(dataset: Dataset) -> list[str]:
    """What a YOLO file cannot say of this dataset, in sentences."""
    labels = [label for sample in dataset.samples for label in sample.labels]
    drawn = sum(isinstance(label.geometry, Polygon) for label in labels)
    parts = [group_rings(simplify_mask(rle_to_mask(label.rle)).rings) for label in labels]
    stems = _pictures.stems(dataset.samples)
    counted = (
        (drawn, "polygons are outlines of what they cover, not with the points that were drawn"),
        (
            sum(any(holes for _, holes in part) for part in parts),
            "objects have holes, joined to their outline",
        ),
        (sum(len(part) > 1 for part in parts), "objects have parts, joined by bridges of no width"),
        (sum(not part for part in parts), "labels cover no pixel and are left out"),
        (
            sum(not sample.usable for sample in dataset.samples),
            "images are on no side: they are in images/unused",
        ),
    )
    found = [f"{count} {sentence}" for count, sentence in counted if count]
    if dataset.unlabelled == "ignore":
        found.append("area without a label is unknown in this project, but background in YOLO")
    return found + _pictures.picture_losses(dataset, {image: "".join(name) for image, name in stems.items()})


def _side(sample: Sample) -> str:
    return sample.side if sample.side and sample.usable else "unused"


def _lines(dataset: Dataset, sample: Sample, min_iou: float) -> str:
    height, width = sample.size
    lines = [
        " ".join([str(dataset.categories.index(label.category)), *(f"{value:.6f}" for value in flat)])
        for label in sample.labels
        if (flat := (_ring(label, min_iou) / (width, height)).ravel()).size
    ]
    return "".join(f"{line}\n" for line in lines)


def _ring(label: AcceptedLabel, min_iou: float) -> Ring:
    """The outline of the label, (N, 2) px; empty where it covers nothing."""
    parts = group_rings(simplify_mask(rle_to_mask(label.rle), min_iou).rings)
    return join_parts([join_holes(outer, holes) for outer, holes in parts]) if parts else np.zeros((0, 2))


def _require_read_back(path: Path, sample: Sample, min_iou: float) -> None:
    """Raise ExportFailed unless each line draws its label's mask, as well as it was asked for."""
    height, width = sample.size
    labels = [label for label in sample.labels if rle_to_mask(label.rle).any()]
    lines = path.read_text().splitlines()
    for label, line in zip(labels, lines, strict=True):
        ring = np.array(line.split()[1:], np.float64).reshape(-1, 2) * (width, height)
        iou = mask_iou(polygons_to_mask([ring], sample.size), rle_to_mask(label.rle))
        if iou < min_iou - 0.02:  # six decimals move a vertex by less than 0.01 px
            raise ExportFailed(
                f"region {label.key.region} of {sample.name} reads back with an IoU of {iou:.3f}"
            )


def _yaml(dataset: Dataset) -> str:
    """JSON's strings are YAML's, whatever is in a category's name."""
    sides = "".join(f"{name}: images/{side}\n" for side, name in NAMES.items())
    names = "".join(f"  {n}: {json.dumps(name)}\n" for n, name in enumerate(dataset.categories))
    return f"# dataset {dataset.digest}\n{sides}names:\n{names}" if names else f"{sides}names: {{}}\n"
