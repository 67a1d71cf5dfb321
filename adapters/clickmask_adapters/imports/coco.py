"""COCO instances: one annotation file or several, and the pictures beside them.

Polygons stay polygons, run lengths become brushes, an object with nothing but a box becomes a rectangle.
Crowd regions are left out, but for those with `attributes`: CVAT and datumaro mark every mask so. Our own
exports give back names, shapes as drawn, sides and proposals.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from clickmask.datasets.coco_reader import Pictures, Row, geometry_of, rows_of
from clickmask.errors import InvalidRequest
from clickmask.ingest.imports import ImportedDataset, ImportedImage, ImportedLabel, Shown
from clickmask.labels.geometry import Geometry, Rectangle, geometry_from_json
from clickmask.labels.split import Side
from clickmask.labels.submissions import Unlabelled
from clickmask.types import Size
from clickmask_adapters.imports._folder import own_side, side_of

DAMAGED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)


def read(place: Path) -> ImportedDataset:
    """The dataset of an annotation file, or of all annotation files of a folder: `instances_train.json` and
    `instances_val.json` are two sides of one. Raises InvalidRequest if there is none."""
    root = place if place.is_dir() else place.parent
    contents = _annotation_files(place)
    categories = dict.fromkeys(name for _, content in contents for name in _categories(content).values())
    infos = [_member(content, "info") for _, content in contents]
    info = next(filter(None, infos), infos[0])
    named = (info.get("tool"), info.get("project"))
    unlabelled: Unlabelled = "ignore" if info.get("unlabelled") == "ignore" else "background"
    return ImportedDataset(
        source=f"coco {place.name}",
        made_at=max(path.stat().st_mtime for path, _ in contents),
        categories=tuple(categories),
        images=[each for path, content in contents for each in _images(path, content, root)],
        title=str(info.get("description") or place.stem),
        exported_from=(str(named[0]), str(named[1])) if all(named) else None,
        unlabelled=unlabelled,
    )


def _annotation_files(place: Path) -> list[tuple[Path, Row]]:
    listed = (
        [place] if place.is_file() else sorted([*place.glob("*.json"), *place.glob("annotations/*.json")])
    )
    found = [(path, content) for path in listed if (content := _content(path)) is not None]
    if any(
        path.name.startswith("instances") for path, _ in found
    ):  # keypoints of the same images lie beside them
        found = [each for each in found if each[0].name.startswith("instances")]
    if not found:
        raise InvalidRequest(f"{place.name} has no COCO annotation file, nor has its folder annotations")
    return found


def _content(path: Path) -> Row | None:
    """What is in a file of outlines or boxes; None for any other file."""
    try:
        read: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(read, dict):
        return None
    content = cast("Row", read)
    rows = rows_of(content, "annotations")
    lists = all(isinstance(content.get(name), list) for name in ("images", "annotations"))
    drawn = any("segmentation" in row or "bbox" in row for row in rows)
    return content if lists and (drawn or not content["annotations"]) else None


def _categories(content: Row) -> dict[Any, str]:
    return {row["id"]: str(row.get("name")) for row in rows_of(content, "categories")}


def _images(path: Path, content: Row, root: Path) -> list[Callable[[], ImportedImage]]:
    pictures, categories = Pictures(root, path.parent), _categories(content)
    of_image: dict[Any, list[Row]] = {}
    for row in rows_of(content, "annotations"):
        if isinstance(image := row.get("image_id"), int | str):
            of_image.setdefault(image, []).append(row)
    words = re.split(r"[^A-Za-z]+", path.stem)
    sides: list[Side] = [side for word in words if (side := side_of(word)) is not None]

    def read(row: Row) -> ImportedImage:
        name = str(row.get("file_name")).replace("\\", "/")
        base, size = name.rpartition("/")[2], _size(row)
        labels, left_out = _labels(of_image.get(row["id"], ()), categories, size)
        return ImportedImage(
            pictures.find(name) or root / base,
            str(row.get("name") or base),
            labels,
            size,
            own_side(row) or (sides[0] if sides else None),
            left_out,
            _shown_as(row),
        )

    return [partial(read, row) for row in rows_of(content, "images")]


def _shown_as(row: Row) -> Shown | None:
    match row.get("shown_as"):
        case [
            {"task": str(task), "annotation": str(annotation), "item": int(item), "known_as": str(name)},
            *_,
        ]:
            return Shown(task, annotation, item, name)
        case _:
            return None


def _member(row: Row, name: str) -> Row:
    """A member that is an object itself; empty if there is none."""
    found = row.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _size(row: Row) -> Size | None:
    height, width = row.get("height"), row.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _labels(
    rows: Sequence[Row], categories: dict[Any, str], size: Size | None
) -> tuple[list[ImportedLabel], Counter[str]]:
    labels, left_out = list[ImportedLabel](), Counter[str]()
    for row in rows:
        attributes = _member(row, "attributes")
        if row.get("iscrowd") and not attributes:
            left_out["crowd regions"] += 1
            continue
        try:
            geometry = _geometry(row, attributes, size)
            if geometry is None:
                left_out["without an outline"] += 1
                continue
            labels.append(
                ImportedLabel(
                    categories.get(row.get("category_id"), str(row.get("category_id"))),
                    geometry,
                    str(attributes.get("region", "")).split("/", 4)[-1],
                    str(attributes["proposal"]) if "proposal" in attributes else None,
                    int(attributes.get("layer", 0)),
                )
            )
        except DAMAGED:
            left_out["damaged"] += 1
    return labels, left_out


def _geometry(row: Row, attributes: Row, size: Size | None) -> Geometry | None:
    if isinstance(drawn := attributes.get("drawn"), dict):
        return geometry_from_json(cast("Row", drawn))
    if size is None:
        raise ValueError("an image without a size")
    if geometry := geometry_of(row.get("segmentation"), *size):
        return geometry
    if row.get("bbox"):
        x, y, width, height = (float(each) for each in row["bbox"])
        return Rectangle((x, y, x + width, y + height)) if width > 0 and height > 0 else None
    return None
