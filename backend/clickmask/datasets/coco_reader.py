"""Reads the outlined objects of a COCO dataset in a folder, except crowd regions.

Format: cocodataset.org, "Data format", object detection (read 2026): polygons and RLE, compressed or not.
"""

import json
import random
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from clickmask.errors import InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS
from clickmask.labels.geometry import Brush, Geometry, Polygon, geometry_to_rle
from clickmask.masks.regions import mask_area
from clickmask.masks.rle import Rle, as_rle, rings_to_rle, rle_to_mask, runs_to_counts, unite
from clickmask.types import Mask, Size

Row = Mapping[str, Any]  # an entry of the file's images or annotations
MAX_PIXELS = DEFAULT_LIMITS.max_pixels  # of a picture, by what the file says of it


@dataclass(frozen=True)
class CocoObject:
    """One object in a picture. `rle` is its mask, small in memory."""

    picture: Path
    category: str
    annotation: int
    rle: Rle

    @property
    def size(self) -> Size:
        height, width = self.rle["size"]
        return height, width

    def mask(self) -> Mask:
        return rle_to_mask(self.rle)


@dataclass(frozen=True)
class CocoSample:
    """Objects of a dataset, grouped by picture, and the reasons why others were left out."""

    annotations: Path
    objects: Sequence[CocoObject]
    left_out: Mapping[str, int]  # objects by reason, among those examined


def sample_objects(dataset: Path, most: int | None = None, seed: int = 0, smallest: int = 64) -> CocoSample:
    """Draw `most` objects of `dataset` by `seed`, or all if None. The same call gives the same objects.

    `dataset` is an annotation file or a folder with one in it or in its `annotations`. `smallest` is in mask
    pixels. Raises InvalidRequest if there is no file or no object.
    """
    path = _annotation_file(dataset)
    if (content := _read(path)) is None:
        raise InvalidRequest(f"{path.name} is no COCO annotation file")
    images = {row["id"]: row for row in rows_of(content, "images")}
    categories: dict[int, str] = {row["id"]: str(row.get("name")) for row in rows_of(content, "categories")}
    annotations = rows_of(content, "annotations")
    annotations.sort(key=lambda row: (isinstance(row["id"], str), row["id"]))
    random.Random(seed).shuffle(annotations)  # noqa: S311  must be repeatable, not unguessable
    pictures = Pictures(dataset if dataset.is_dir() else path.parent, path.parent)
    taken: list[CocoObject] = []
    left_out = Counter({"damaged": len(content["annotations"]) - len(annotations)})
    for annotation in annotations:
        if most is not None and len(taken) == most:
            break
        try:
            found = _object(annotation, images, categories, pictures, smallest)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError):
            found = "damaged"
        if isinstance(found, str):
            left_out[found] += 1
        else:
            taken.append(found)
    left_out = +left_out
    if not taken:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InvalidRequest(f"{path.name} has no object to take: {reasons or 'it has no annotations'}")
    taken.sort(key=lambda each: (str(each.picture), each.annotation))
    return CocoSample(path, taken, left_out)


def rows_of(content: Row, name: str) -> list[Row]:
    """The rows of a section that have a number; damaged ones have none."""
    section = content.get(name)
    found = cast("list[object]", section) if isinstance(section, list) else []
    rows = [cast("Row", row) for row in found if isinstance(row, dict)]
    return [row for row in rows if isinstance(row.get("id"), int | str)]


def _object(
    annotation: Row,
    images: Mapping[int, Row],
    categories: Mapping[int, str],
    pictures: "Pictures",
    smallest: int,
) -> CocoObject | str:
    """The object of an annotation, or why it is left out. Raises what damaged values raise."""
    image = images.get(annotation["image_id"])
    if annotation.get("iscrowd"):
        return "crowd regions"
    if image is None:
        return "of no image"
    if (rle := _rle(annotation.get("segmentation"), int(image["height"]), int(image["width"]))) is None:
        return "without an outline"
    if mask_area(rle_to_mask(rle)) < max(1, smallest):
        return f"smaller than {smallest} px"
    if (picture := pictures.find(str(image["file_name"]))) is None:
        return "whose picture is missing"
    category = categories.get(annotation["category_id"], str(annotation["category_id"]))
    return CocoObject(picture, category, int(annotation["id"]), rle)


def geometry_of(segmentation: object, height: int, width: int) -> Geometry | None:
    """What a segmentation draws: one ring as it is, several as they are if none overlap, else what they cover
    together, and run lengths as a brush; None for anything else. Raises what damaged values raise."""
    if not isinstance(segmentation, list):
        rle = _rle(segmentation, height, width)
        return rle and Brush(rle)
    _require_pixels(height, width)
    rings = [ring.reshape(-1, 2) for ring in map(np.array, _flat_rings(cast("list[Any]", segmentation)))]
    if not rings:
        return None
    polygon = Polygon(tuple(tuple((x, y) for x, y in ring.tolist()) for ring in rings))
    if len(rings) > 1:
        even_odd = geometry_to_rle(polygon, (height, width))
        together = unite([geometry_to_rle(Polygon((ring,)), (height, width)) for ring in polygon.rings])
        if even_odd != together:
            return Brush(together)
    return polygon


def _flat_rings(segmentation: list[Any]) -> list[list[float]]:
    """Rings of at least three points. pycocotools would read the memory behind a list of empty lists."""
    return [list(array("d", ring)) for ring in segmentation if len(ring) >= 6]


def _rle(segmentation: object, height: int, width: int) -> Rle | None:
    """An RLE of this size, or one of polygons united as pycocotools draws them; None for anything else."""
    _require_pixels(height, width)
    if isinstance(segmentation, list):
        rings = _flat_rings(cast("list[Any]", segmentation))
        return rings_to_rle(rings, (height, width)) if rings else None
    if not isinstance(segmentation, dict):
        return None
    given = cast("Any", segmentation)
    if list(given.get("size", ())) != [height, width]:
        return None
    if not isinstance(given["counts"], list):
        return as_rle(given)
    runs = np.array(array("q", cast("list[int]", given["counts"])))
    if not len(runs) or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise ValueError("runs that do not fit their size")
    return Rle(size=[height, width], counts=runs_to_counts(runs))


def _require_pixels(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} pixels")


def _annotation_file(dataset: Path) -> Path:
    if dataset.is_file():
        return dataset
    if not dataset.is_dir():
        raise InvalidRequest(f"there is no dataset {dataset.name}")
    files = sorted(path for folder in (dataset, dataset / "annotations") for path in folder.glob("*.json"))
    found = [path for path in files if _read(path) is not None]
    if not found:
        raise InvalidRequest(f"{dataset.name} has no COCO annotation file, nor has its folder annotations")
    for word in ("val", "test"):  # of several files, the one with such a name
        named = [path for path in found if word in path.stem.lower()]
        if len(named) == 1:
            return named[0]
    if len(found) > 1:
        raise InvalidRequest(f"give one of the files: {', '.join(path.name for path in found)}")
    return found[0]


def _read(path: Path) -> Row | None:
    """The content of a COCO instances file; None for any other file."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    match content:
        case {"images": list(), "annotations": list()}:
            rows = content["annotations"]
            return (
                content
                if not rows or any("segmentation" in row for row in rows if isinstance(row, dict))
                else None
            )
        case _:
            return None


@dataclass
class Pictures:
    """The pictures of a dataset, which exporters put in different folders."""

    root: Path
    beside: Path

    def find(self, file_name: str) -> Path | None:
        relative = PurePosixPath(file_name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts:
            return None  # a dataset may only name its own pictures
        root, beside = self.root, self.beside
        for folder in (root / "images", root, beside / "images", beside, beside.parent / "images"):
            if (folder / relative).is_file():
                return folder / relative
        return self._by_name.get(relative.name)

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        files = sorted((path for path in self.root.rglob("*") if path.is_file()), reverse=True)
        return {path.name: path for path in files}
