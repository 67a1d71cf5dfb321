"""PNG masks of classes: `images`, `masks` and, in ours, `categories.json`.

A mask has its picture's name and a number a pixel; 0 is background, 255 unknown. Without `categories.json`
the classes are called by their numbers; if there is nothing but 0 and 255, the one class is "object".
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from clickmask.datasets.snapshot import IGNORED
from clickmask.errors import InvalidRequest
from clickmask.ingest.imports import ImportedDataset, ImportedImage, ImportedLabel
from clickmask.labels.geometry import Brush
from clickmask.masks.rle import mask_to_rle
from clickmask_adapters.exports.png import CATEGORIES
from clickmask_adapters.imports import _folder

REMARK = "a mask of classes does not tell which pixels are one object: all of a class are one label"
Json = Mapping[str, Any]


def read(place: Path) -> ImportedDataset:
    """The dataset of a folder with `images` and `masks`. Raises InvalidRequest if there is none."""
    pictures = _folder.by_stem(place / "images")
    masks = _folder.by_stem(place / "masks")
    pairs = [(path, masks[stem]) for stem, path in pictures.items() if stem in masks]
    if not pairs:
        raise InvalidRequest(f"{place.name} has no folders images and masks with pictures of the same names")
    described = _described(place / CATEGORIES)
    if described:
        names = cast("dict[int, str]", described["categories"])
    else:
        found = sorted(
            {int(each) for _, mask in pairs for each in np.unique(_folder.read_numbers(mask))} - {0}
        )
        names = (
            {IGNORED: "object"}
            if found == [IGNORED]
            else {each: f"{each}" for each in found if each != IGNORED}
        )
    about: dict[str, Json] = {each["image"]: each for each in described.get("images", ())}
    unpaired = len(pictures) - len(pairs)
    return ImportedDataset(
        source=f"png {place.name}",
        made_at=max(mask.stat().st_mtime for _, mask in pairs),
        categories=tuple(names.values()),
        images=[partial(_image, path, mask, names, about.get(path.name, {})) for path, mask in pairs],
        title=place.name,
        unlabelled="ignore" if described.get("unlabelled") == "ignore" else "background",
        remarks=(REMARK, *([f"{unpaired} pictures have no mask and are left out"] if unpaired else [])),
    )


def _described(path: Path) -> Json:
    """Our own description of the folder; empty if it has none."""
    try:
        written: Any = json.loads(path.read_bytes())
        return {
            **cast("dict[str, Any]", written),
            "categories": {
                int(number): str(name) for number, name in written["categories"].items() if number.isdigit()
            },
            "images": [each for each in written.get("images", ()) if isinstance(each["image"], str)],
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _image(picture: Path, mask: Path, names: Mapping[int, str], about: Json) -> ImportedImage:
    numbers = _folder.read_numbers(mask)
    labels, left_out = list[ImportedLabel](), Counter[str]()
    for number in map(int, np.unique(numbers)):
        if number in names:
            labels.append(ImportedLabel(names[number], Brush(mask_to_rle(numbers == number))))
        elif number not in (0, IGNORED):
            left_out["of a class without a name"] += 1
    height, width = numbers.shape
    side, name = _folder.own_side(about), str(about.get("name") or picture.name)
    return ImportedImage(picture, name, labels, (height, width), side, left_out)
