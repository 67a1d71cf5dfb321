"""YOLO's lines of outlines or boxes: `data.yaml`, pictures, and `labels` beside `images`.

As Ultralytics reads it (docs.ultralytics.com/datasets/segment, read 2026-11): a picture's lines are in the
file of its name in the folder `labels` that takes the place of the last folder `images` in its path. A line
of four numbers is a box, a longer one an outline. What is in `images/unused` has no side.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.images.decode import upright_size
from clickmask.ingest.imports import ImportedDataset, ImportedImage, ImportedLabel
from clickmask.labels.geometry import Geometry, Polygon, Rectangle
from clickmask.labels.split import Side
from clickmask.types import Size
from clickmask_adapters.imports import _folder

REMARK = "YOLO has outlines alone: brushes became polygons, and annotations and proposals are not told"


def read(place: Path) -> ImportedDataset:
    """The dataset of a `data.yaml`, or of a folder with one. Raises InvalidRequest if there is none."""
    files = [place] if place.is_file() else sorted(place.glob("data.y*ml")) or sorted(place.glob("*.y*ml"))
    file = next(iter(files), None)
    described = _described(file) if file else None
    if file is None or described is None:
        raise InvalidRequest(f"{place.name} has no data.yaml that names classes and folders of pictures")
    names = described["names"]
    numbered = dict(enumerate(cast("list[Any]", names))) if isinstance(names, list) else names
    try:
        named = {int(number): str(name) for number, name in cast("dict[Any, Any]", numbered).items()}
    except (TypeError, ValueError) as error:
        raise InvalidRequest("data.yaml numbers its classes with something else than numbers") from error
    placed: dict[Path, Side | None] = {}
    for word, value in described.items():
        if (side := _folder.side_of(word)) is not None:
            for path in _pictures(file.parent, described.get("path"), value):
                placed.setdefault(path, side)
    for path in _folder.pictures_in(file.parent / "images" / "unused"):
        placed.setdefault(path, None)
    return ImportedDataset(
        source=f"yolo {place.name}",
        made_at=max(each.stat().st_mtime for each in (file, *map(_label_file, placed)) if each.exists()),
        categories=tuple(named[number] for number in sorted(named)),
        images=[partial(_image, path, side, named) for path, side in sorted(placed.items())],
        title=place.stem,
        remarks=(REMARK,),
    )


def _described(file: Path) -> dict[str, Any] | None:
    try:
        read: Any = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(read, dict) or not isinstance(cast("dict[str, Any]", read).get("names"), list | dict):
        return None
    return {str(key): value for key, value in cast("dict[Any, Any]", read).items()}


def _pictures(beside: Path, root: object, value: object) -> list[Path]:
    """The pictures of a side: of folders, or of text files that list them, all under the dataset's folder."""
    found: list[Path] = []
    bases = [beside / root, beside] if isinstance(root, str) and not Path(root).is_absolute() else [beside]
    for each in cast("list[object]", value) if isinstance(value, list) else [value]:
        if not isinstance(each, str) or Path(each).is_absolute():
            continue
        # Exporters write `../train/images` for a folder beside data.yaml.
        tried = [base / name for base in bases for name in (each, each.removeprefix("../"))]
        some = next(
            (path for path in tried if path.exists() and path.resolve().is_relative_to(beside.resolve())),
            None,
        )
        if some is None:
            continue
        if some.is_dir():
            found += _folder.pictures_in(some)
            continue
        for line in some.read_text(errors="replace").splitlines():
            path = beside / line.strip().removeprefix("./")
            if line.strip() and path.is_file() and path.resolve().is_relative_to(beside.resolve()):
                found.append(path)
    return found


def _label_file(picture: Path) -> Path:
    parts = list(picture.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _image(picture: Path, side: Side | None, names: dict[int, str]) -> ImportedImage:
    labels, left_out = list[ImportedLabel](), Counter[str]()
    try:
        size = upright_size(picture.read_bytes())
        lines = _label_file(picture).read_text(errors="replace").splitlines()
    except (
        OSError,
        InvalidInput,
    ):  # a picture without lines has nothing on it; a damaged one is refused later
        size, lines = (1, 1), []
    for line in filter(str.strip, lines):
        try:
            number, *numbers = line.split()
            geometry = _geometry([float(each) for each in numbers], size)
            labels.append(ImportedLabel(names.get(int(float(number)), number), geometry))
        except (ValueError, OverflowError):  # of the number inf
            left_out["damaged"] += 1
    return ImportedImage(picture, picture.name, labels, None, side, left_out)


def _geometry(numbers: list[float], size: Size) -> Geometry:
    height, width = size
    if len(numbers) in (4, 5):  # the fifth is a score
        x, y, across, down = (value * side for value, side in zip(numbers, (width, height) * 2, strict=False))
        return Rectangle((x - across / 2, y - down / 2, x + across / 2, y + down / 2))
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError("neither a box nor an outline")
    points = zip(numbers[::2], numbers[1::2], strict=True)
    return Polygon((tuple((x * width, y * height) for x, y in points),))
