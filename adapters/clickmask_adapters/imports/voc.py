"""Pascal VOC: `JPEGImages`, `Annotations`, `SegmentationClass`, `SegmentationObject`, `ImageSets`.

The format follows the VOC2012 development kit. Masks are read by their colours, which `labelmap.txt` names as
in CVAT's and our own exports, or the development kit. An image without masks has its XML file's boxes.
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from clickmask.errors import InvalidRequest
from clickmask.ingest.imports import ImportedDataset, ImportedImage, ImportedLabel
from clickmask.labels.geometry import Brush, Rectangle
from clickmask.labels.split import Side
from clickmask.masks.rle import mask_to_rle
from clickmask_adapters.exports._class_maps import palette
from clickmask_adapters.exports.voc import BACKGROUND, BOUNDS
from clickmask_adapters.imports import _folder

VOC2012 = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
VOID = (224, 224, 192)
# Numbers by colour in the development kit's palette: objects are numbered from 1.
NUMBERS = {
    _folder.code_of((red, green, blue)): number
    for number, (red, green, blue) in enumerate(np.frombuffer(palette(), np.uint8).reshape(256, 3).tolist())
}
REMARK = "VOC has one object a pixel: what lay under another one, and how an outline was drawn, is not told"


def read(place: Path) -> ImportedDataset:
    """The dataset of a folder. Raises InvalidRequest if there is none."""
    pictures = _folder.by_stem(place / "JPEGImages")
    classes = _folder.by_stem(place / "SegmentationClass")
    objects = _folder.by_stem(place / "SegmentationObject")
    sheets = {path.stem: path for path in sorted((place / "Annotations").glob("*.xml"))}
    told = [stem for stem in pictures if stem in classes or stem in sheets]
    if not told:
        raise InvalidRequest(f"{place.name} has no JPEGImages with Annotations or SegmentationClass")
    colours, names = _label_map(place / "labelmap.txt")
    sides = _sides(place / "ImageSets")
    unknown = len(pictures) - len(told)
    dated = [path for each in (classes, sheets) for stem, path in each.items() if stem in pictures]
    return ImportedDataset(
        source=f"voc {place.name}",
        made_at=max(path.stat().st_mtime for path in dated),
        categories=names,
        images=[
            partial(
                _image,
                pictures[stem],
                classes.get(stem),
                objects.get(stem),
                sheets.get(stem),
                colours,
                sides.get(stem),
            )
            for stem in told
        ],
        title=place.name,
        remarks=(REMARK, *([f"{unknown} pictures have no annotation and are left out"] if unknown else [])),
    )


def _label_map(path: Path) -> tuple[dict[int, str], tuple[str, ...]]:
    """Class names by colour, without the background, and the names in order; those of VOC2012 without a file,
    and then no order: few of them may be there."""
    colours: dict[int, str] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            name, _, rest = line.partition(":")
            try:
                red, green, blue = (int(each) for each in rest.split(":")[0].split(","))
            except ValueError:  # a comment
                continue
            if name != BACKGROUND and not line.startswith("#"):
                colours[_folder.code_of((red, green, blue))] = name
        return colours, tuple(colours.values())
    return dict(zip(list(NUMBERS)[1:], VOC2012, strict=False)), ()


def _sides(folder: Path) -> dict[str, Side]:
    """Sides by stem. A file in Segmentation counts before one of the same name elsewhere."""
    found: dict[str, Side] = {}
    for path in sorted(folder.glob("*/*.txt"), key=lambda each: each.parent.name != "Segmentation"):
        if (side := _folder.side_of(path.stem)) is not None:
            for line in path.read_text(errors="replace").splitlines():
                if stem := line.split(" ")[0].strip() if path.parent.name != "Segmentation" else line.strip():
                    found.setdefault(stem, side)
    return found


def _image(
    picture: Path,
    classes: Path | None,
    objects: Path | None,
    sheet: Path | None,
    colours: Mapping[int, str],
    side: Side | None,
) -> ImportedImage:
    labels, left_out = list[ImportedLabel](), Counter[str]()
    if classes is None:
        labels, left_out = _boxes(sheet)
        return ImportedImage(picture, picture.name, labels, None, side, left_out)
    of_class = _folder.read_colours(classes)
    of_object = of_class if objects is None else _folder.read_colours(objects)
    if of_object.shape != of_class.shape:
        raise InvalidRequest(
            f"{classes.name} differs in size between SegmentationClass and SegmentationObject"
        )
    for code in sorted(map(int, np.unique(of_object)), key=lambda each: NUMBERS.get(each, each)):
        if code in (0, _folder.code_of(VOID)):
            continue
        mask = of_object == code
        inside, counts = np.unique(of_class[mask], return_counts=True)
        name = colours.get(int(inside[counts.argmax()]))
        if name is None:
            left_out["of a colour without a name"] += 1
        else:
            labels.append(ImportedLabel(name, Brush(mask_to_rle(mask))))
    height, width = of_class.shape
    return ImportedImage(picture, picture.name, labels, (height, width), side, left_out)


def _boxes(sheet: Path | None) -> tuple[list[ImportedLabel], Counter[str]]:
    labels, left_out = list[ImportedLabel](), Counter[str]()
    try:
        root = ET.fromstring(sheet.read_bytes()) if sheet else ET.Element("annotation")  # noqa: S314 - expat bounds what entities become
    except (OSError, ET.ParseError, ValueError, LookupError):  # the last two of unknown encodings
        return labels, Counter(damaged=1)
    for each in root.iter("object"):
        try:
            x0, y0, x1, y1 = (float(each.findtext(f"bndbox/{bound}") or "") for bound in BOUNDS)
            labels.append(ImportedLabel(each.findtext("name") or "", Rectangle((x0 - 1, y0 - 1, x1, y1))))
        except ValueError:
            left_out["damaged"] += 1
    return labels, left_out
