"""Pascal VOC: `JPEGImages`, `Annotations`, `SegmentationClass`, `SegmentationObject`, `ImageSets`.

The format follows the VOC2012 development kit. Boxes count pixels from 1 and include both ends. Masks are
indexed PNG files: 0 is background, 255 void. `ImageSets/Segmentation` lists stems; images without a side are
in no set. `JPEGImages` holds the files in their own formats; those that EXIF turns are upright copies.
"""

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.errors import Failed
from clickmask.labels.split import SIDES
from clickmask.masks.rle import rle_box
from clickmask_adapters.exports import _class_maps, _folder

FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
BOUNDS = ("xmin", "ymin", "xmax", "ymax")
BACKGROUND = "background"
# Control characters, ends of lines, and what is no character.
_UNFIT = re.compile("^#|[:\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_Object = tuple[str, tuple[int, int, int, int]]


def write(dataset: Dataset, folder: Path) -> Path:
    """Write the dataset and return the path of `labelmap.txt`, which names the colours."""
    _class_maps.require_room(dataset)
    names = _folder.file_names(dataset.samples, unique_stems=True)
    stems = {image: _folder.stem(name) for image, name in names.items()}
    classes = class_names(dataset.categories)
    with _folder.replacing(folder) as new:
        for name in FOLDERS:
            (new / name).mkdir(parents=True)
        for sample in dataset.samples:
            stem = stems[sample.image]
            _class_maps.write_classes(dataset, sample, new / "SegmentationClass" / f"{stem}.png")
            _class_maps.write_objects(dataset, sample, new / "SegmentationObject" / f"{stem}.png")
            path = new / "Annotations" / f"{stem}.xml"
            objects = _objects(sample, classes)
            path.write_bytes(_annotation(sample, names[sample.image], objects))
            _require_read_back(path, objects)
        _folder.write_pictures(dataset, new / "JPEGImages", names)
        for side in SIDES:
            listed = "".join(f"{stems[sample.image]}\n" for sample in dataset.split(side))
            (new / "ImageSets" / "Segmentation" / f"{_folder.NAMES[side]}.txt").write_bytes(listed.encode())
        # Name, colour, parts and actions, as CVAT and datumaro write and read it.
        colours = np.frombuffer(_class_maps.palette(), np.uint8).reshape(256, 3).tolist()
        named = zip((BACKGROUND, *classes.values()), colours, strict=False)
        lines = [f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in named]
        (new / "labelmap.txt").write_bytes(f"# label:color_rgb:parts:actions\n{''.join(lines)}".encode())
    return folder / "labelmap.txt"


def losses(dataset: Dataset) -> list[str]:
    """Sentences on what the dataset loses in Pascal VOC."""
    no_set = _folder.without_side(dataset, ", and in no set")
    crowded = sum(not _class_maps.has_room(sample) for sample in dataset.samples)
    found = _folder.sentences(
        no_set,
        _folder.empty_labels(dataset),
        _class_maps.overlaps(dataset),
        (crowded, "images have more than 254 objects, and so no file in SegmentationObject"),
    )
    renamed = [f"{a!r} is {b!r}" for a, b in class_names(dataset.categories).items() if a != b]
    if renamed:
        found.append(
            f"categories have another name, for labelmap.txt cannot hold theirs: {', '.join(renamed)}"
        )
    return found + _folder.picture_losses(dataset, _folder.file_names(dataset.samples, unique_stems=True))


def class_names(categories: Sequence[str]) -> dict[str, str]:
    """Names by category that XML and a line of labelmap.txt can hold, all different from each other.

    As CVAT and datumaro read them: `:` ends a name, `#` at the beginning makes the line a comment, spaces
    around it are lost, and `background` is the first line.
    """
    plain = {each: _UNFIT.sub("_", each.strip()) or "_" for each in categories}
    taken = {BACKGROUND} | {each for each in categories if plain[each] == each}
    names: dict[str, str] = {}
    for category, name in plain.items():
        if name != category or name == BACKGROUND:
            free = (f"{name}_{number}" for number in itertools.count(2))
            name = name if name not in taken else next(each for each in free if each not in taken)
            taken.add(name)
        names[category] = name
    return names


def _annotation(sample: Sample, name: str, objects: Sequence[_Object]) -> bytes:
    root = ET.Element("annotation")
    _texts(root, folder="JPEGImages", filename=name)
    height, width = sample.size
    _texts(ET.SubElement(root, "size"), width=width, height=height, depth=3)
    _texts(root, segmented=1)
    for category, box in objects:
        each = ET.SubElement(root, "object")
        x0, y0, x1, y1 = box
        edge = x0 == 0 or y0 == 0 or x1 == width or y1 == height
        _texts(each, name=category, pose="Unspecified", truncated=int(edge), difficult=0, occluded=0)
        _texts(ET.SubElement(each, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8")


def _objects(sample: Sample, classes: Mapping[str, str]) -> list[_Object]:
    """Name and box (outer edges) of each label that covers a pixel."""
    boxes = [(classes[label.category], map(int, rle_box(label.rle))) for label in sample.labels]
    return [(name, (x, y, x + across, y + down)) for name, (x, y, across, down) in boxes if across]


def _require_read_back(path: Path, objects: Sequence[_Object]) -> None:
    read = [
        (each.findtext("name"), tuple(int(each.findtext(f"bndbox/{bound}") or 0) for bound in BOUNDS))
        for each in ET.fromstring(path.read_bytes()).iter("object")  # noqa: S314 - written just now, by us
    ]
    if read != [(category, (x0 + 1, y0 + 1, x1, y1)) for category, (x0, y0, x1, y1) in objects]:
        raise Failed(f"{path.name} does not read back as it was meant")


def _texts(parent: ET.Element, **texts: str | int) -> None:
    for tag, text in texts.items():
        ET.SubElement(parent, tag).text = str(text)
