"""YOLO segmentation, as Ultralytics reads it: `data.yaml`, `images/SIDE/`, `labels/SIDE/`.

Each object is a line: its category's number from 0, then the points of one ring, divided by the picture's
width and height (docs.ultralytics.com/datasets/segment, read 2026-11). Bridges of no width join parts and
holes to that ring. Images without a side are in `images/unused`, which `data.yaml` does not name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from typer import Option

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.errors import Failed
from clickmask.labels.geometry import Ellipse, drawn_ring, near_ring
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.polygons import group_rings, mask_to_polygons
from clickmask.masks.rle import rings_to_rles, rle_area, rle_iou, rle_to_mask
from clickmask.masks.simplify import simplify_mask
from clickmask.masks.single_rings import join_holes, join_parts
from clickmask.types import Ring, Size
from clickmask_adapters.exports import _folder
from clickmask_adapters.exports._folder import NAMES

MinIou = Annotated[float, Option(min=0.5, max=1, help="IoU with the mask that outlines must reach.")]


def write(dataset: Dataset, folder: Path, *, min_iou: MinIou = 0.98) -> Path:
    """Write the dataset and return the path of `data.yaml`. A `min_iou` of 1 gives exact outlines."""
    names = _folder.file_names(dataset.samples, unique_stems=True)
    placed: dict[str, str] = {}
    with _folder.replacing(folder) as new:
        for sample in dataset.samples:
            side = sample.side if sample.side and sample.usable else "unused"
            placed[sample.image] = f"{side}/{names[sample.image]}"
            for kind in ("images", "labels") if dataset.pictures.holds(sample.image) else ("labels",):
                (new / kind / side).mkdir(parents=True, exist_ok=True)
            path = new / "labels" / side / f"{_folder.stem(names[sample.image])}.txt"
            path.write_bytes(_lines(dataset, sample, min_iou).encode())
            _require_read_back(path, sample, min_iou)
        _folder.write_pictures(dataset, new / "images", placed)
        there = {name: f"images/{side}" for side, name in NAMES.items() if (new / "images" / side).exists()}
        sides = "".join(f"{name}: {path}\n" for name, path in there.items())
        listed = "".join(f"  {n}: {_quoted(name)}\n" for n, name in enumerate(dataset.categories))
        text = f"# dataset {dataset.digest}\n{sides}names:\n{listed}" if listed else f"{sides}names: {{}}\n"
        (new / "data.yaml").write_bytes(text.encode())
    return folder / "data.yaml"


def losses(dataset: Dataset) -> list[str]:
    """Sentences on what the dataset loses in YOLO files."""
    labels = [label for sample in dataset.samples for label in sample.labels]
    ellipses = sum(isinstance(label.geometry, Ellipse) for label in labels)
    traced = [label for label in labels if drawn_ring(label.geometry, label.size) is None]
    parts = [
        group_rings(mask_to_polygons(rle_to_mask(label.rle)))
        for label in traced
        if not isinstance(label.geometry, Ellipse)
    ]
    with_holes = sum(any(holes for _, holes in part) for part in parts)
    found = _folder.sentences(
        (ellipses, "ellipses are polygons: YOLO has no ellipses"),
        (with_holes, "objects have holes, joined to their outline"),
        (sum(len(part) > 1 for part in parts), "objects have parts, joined by bridges of no width"),
        _folder.empty_labels(dataset),
        _folder.without_side(dataset, ": they are in images/unused"),
    )
    if dataset.unlabelled == "ignore":
        found.append("area without a label is unknown in this project, but background in YOLO")
    return found + _folder.picture_losses(dataset, _folder.file_names(dataset.samples, unique_stems=True))


def _lines(dataset: Dataset, sample: Sample, min_iou: float) -> str:
    lines: list[str] = []
    for label in filter(_covers, sample.labels):
        ring = _ring(label, min_iou)
        numbers = " ".join(_numbers(ring, sample.size))
        lines.append(f"{dataset.categories.index(label.category)} {numbers}\n")
    return "".join(lines)


def _ring(label: AcceptedLabel, min_iou: float) -> Ring:
    """The ring that was drawn; else one near to what was drawn, if that reaches `min_iou`, which takes a
    hundredth of the time; else the mask's outline."""
    drawn = drawn_ring(label.geometry, label.size)
    if drawn is not None:
        return drawn
    near = near_ring(label.geometry, label.size)
    if near is not None:  # as it will be read: six decimals may move an edge over the centre of a pixel
        (read,) = rings_to_rles([_read(_numbers(near, label.size), label.size)], label.size)
        if rle_iou(read, label.rle) >= min_iou:
            return near
    parts = group_rings(simplify_mask(rle_to_mask(label.rle), min_iou).rings)
    return join_parts([join_holes(outer, holes) for outer, holes in parts])


def _numbers(ring: Ring, size: Size) -> list[str]:
    return [f"{value:.6f}" for value in (ring / size[::-1]).ravel().tolist()]


def _read(numbers: Sequence[str], size: Size) -> Ring:
    return np.array(numbers, np.float64).reshape(-1, 2) * size[::-1]


def _covers(label: AcceptedLabel) -> bool:
    """Whether the label covers a pixel; if not, it has no line."""
    return rle_area(label.rle) > 0


def _quoted(name: str) -> str:
    """`name` in double quotes as every YAML reader takes it, in ASCII. Half a surrogate pair is U+FFFD."""
    codes = (0xFFFD if "\ud800" <= c <= "\udfff" else ord(c) for c in name)
    plain = set(range(0x20, 0x7F)) - {ord('"'), ord("\\")}
    return '"' + "".join(chr(code) if code in plain else f"\\U{code:08X}" for code in codes) + '"'


def _require_read_back(path: Path, sample: Sample, min_iou: float) -> None:
    """Raise Failed unless each line draws its label's mask as closely as `min_iou` asks, or has the points
    that were drawn: a pixel whose centre lies on an edge may fall on either side."""
    rings = [_read(line.split()[1:], sample.size) for line in path.read_text().splitlines()]
    read = rings_to_rles(rings, sample.size)
    for label, ring, rle in zip(filter(_covers, sample.labels), rings, read, strict=True):
        drawn = drawn_ring(label.geometry, label.size)
        if (
            drawn is not None
            and drawn.shape == ring.shape
            and np.abs(ring - drawn).max() <= 1e-6 * max(sample.size)
        ):
            continue
        iou = rle_iou(rle, label.rle)
        if iou < min_iou - 0.02:  # six decimals move a vertex by less than 0.01 px
            raise Failed(f"region {label.key.region} of {sample.name} reads back with an IoU of {iou:.3f}")
