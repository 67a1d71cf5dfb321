"""COCO instances: `annotations/instances.json` and `images/`.

The format is cocodataset.org/#format-data (2014). Sizes, outlines and boxes fit the upright picture. `area`
and `bbox` are those of pycocotools' raster, and pycocotools reads every annotation back before the export
appears.
"""

import contextlib
import io
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import orjson
from pycocotools.coco import COCO
from typer import Option

from clickmask.datasets.coco_reader import geometry_of
from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.errors import Failed
from clickmask.labels.geometry import (
    Brush,
    Ellipse,
    Geometry,
    Polygon,
    Rectangle,
    drawn_ring,
    geometry_to_json,
)
from clickmask.labels.split import SIDES
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.polygons import mask_to_polygons, ring_area
from clickmask.masks.rle import Rle, as_rle, rings_to_rle, rle_area, rle_box, rle_iou, rle_to_mask
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Ring
from clickmask_adapters.exports import _folder
from clickmask_adapters.exports._folder import NAMES

Polygons = Literal["source", "exact", "simplified"]
Segmentation = list[list[float]] | dict[str, Any]

JSON = Path("annotations/instances.json")
CVAT_JSON = Path("annotations/instances_default.json")  # CVAT looks for its subset "default" in a zip
_PRINTING = threading.Lock()  # pycocotools prints while it loads, and all threads share standard output


class _Written(NamedTuple):
    """An annotation to write, and the raster that pycocotools must read from it."""

    label: AcceptedLabel
    image: int  # its id, from 1
    segmentation: Segmentation
    raster: Rle
    iou: float  # of the raster with the label's mask


def write(
    dataset: Dataset,
    folder: Path,
    *,
    polygons: Annotated[
        Polygons,
        Option(help="As drawn; along pixel edges; or in few points. Masks with holes are run lengths."),
    ] = "source",
    for_cvat: Annotated[
        bool,
        Option("--for-cvat", help="As CVAT writes it: frames' names, iscrowd 1, instances_default.json."),
    ] = False,
    by_side: Annotated[
        bool, Option("--by-side", help="A file for each side: instances_train.json, instances_val.json.")
    ] = False,
) -> Path:
    """Write the dataset and return the path of its JSON file, the first one if there are several.

    `polygons` chooses the masks that become polygons; all others are run lengths. "source": labels drawn as
    one ring without holes, as drawn. "exact": any mask without holes, along pixel edges. "simplified": the
    same with few points, at an IoU of 0.98. With `for_cvat`, run lengths are uncompressed with `iscrowd` 1,
    and the file is named as in CVAT's own exports. `file_name` is the frame's name in CVAT then; a picture of
    several frames stands there once for each. CVAT refuses a file with a frame that its task lacks: if there
    are several tasks, `tasks/N.json` has the labels of task N. With `by_side`, each side with images has a
    file of its own, and the images without a side share `instances_unused.json`.
    """
    images = _images(dataset, for_cvat)
    parts = {CVAT_JSON if for_cvat else JSON: images}
    if by_side and images:
        unused = [sample for sample in dataset.samples if not sample.usable]
        sides = {NAMES[side]: dataset.split(side) for side in SIDES} | {"unused": unused}
        on_side = {name: {sample.image for sample in samples} for name, samples in sides.items() if samples}
        parts = {
            Path(f"annotations/instances_{name}.json"): [each for each in images if each[0].image in digests]
            for name, digests in on_side.items()
        }
    if for_cvat:
        by_task: dict[str, dict[str, Sample]] = {}
        for sample in dataset.samples:
            for each in sample.shown_as:
                by_task.setdefault(each.task, {})[each.known_as] = sample
        for task, frames in by_task.items() if len(by_task) > 1 else ():
            if "" not in frames:  # else its names were not stored yet
                parts[Path("tasks", f"{_folder.safe_basename(task)}.json")] = [
                    (sample, name) for name, sample in frames.items()
                ]
    with _folder.replacing(folder) as new:
        for place, some in parts.items():
            written = _written([sample for sample, _ in some], polygons)
            (new / place).parent.mkdir(exist_ok=True)
            content = _content(dataset, some, written, for_cvat, polygons == "source" and not for_cvat)
            (new / place).write_bytes(orjson.dumps(content))
            _require_read_back(new / place, dataset, some, written)
        (new / "images").mkdir()
        files, folders = set[str](), set[str]()  # in lower case, as on some systems
        for sample, name in images:
            steps = [step for each in name.split("/") if (step := _folder.safe_basename(each))]
            place = Path(*steps or [sample.image])
            above = {str(parent).casefold() for parent in place.parents}
            if (
                str(place).casefold() in files | folders or above & files
            ):  # frames' names that became the same
                place = Path(f"{sample.image[:8]}-{len(files)}-{place.name}")
                above = set[str]()
            files.add(str(place).casefold())
            folders |= above
            (new / "images" / place).parent.mkdir(parents=True, exist_ok=True)
            _folder.write_picture(dataset, sample, new / "images" / place)
    return folder / next(iter(parts))


def losses(dataset: Dataset, *, polygons: Polygons = "source", for_cvat: bool = False) -> list[str]:
    """Sentences on what the dataset loses in COCO, or what COCO expresses differently."""
    kinds = Counter(_lost(label.geometry, polygons) for sample in dataset.samples for label in sample.labels)
    counted = [(count, sentence) for sentence, count in sorted(kinds.items()) if sentence]
    found = _folder.sentences(*counted, _folder.empty_labels(dataset))
    names = _folder.file_names(dataset.samples)
    if for_cvat:
        frames = {sample.image: {each.known_as for each in sample.shown_as} for sample in dataset.samples}
        others = sum(
            any(frames[sample.image]) and name not in frames[sample.image]
            for sample, name in _images(dataset, for_cvat)
        )
        named_alike = (
            "images have another file name: their frame's is that of another picture in another task"
        )
        found += _folder.sentences((others, named_alike))
        names = {sample.image: sample.name for sample in dataset.samples}
    found += _folder.picture_losses(dataset, names)
    if dataset.unlabelled == "ignore":
        found.append("area without a label is unknown in this project, but background in COCO")
    if ious := [each.iou for each in _written(dataset.samples, polygons) if each.iou < 1]:
        found.append(
            f"{len(ious)} polygons are filled by pycocotools, which rounds vertices, with a mean IoU of "
            f"{np.mean(ious):.4f} with what was accepted, {min(ious):.4f} at least; exact ones lose nothing"
        )
    return found


def _lost(geometry: Geometry, polygons: Polygons) -> str:
    """A sentence on how such labels change; empty if they are written as drawn."""
    match geometry:
        case Ellipse():
            return "ellipses are written as what they cover: COCO has no ellipses"
        case Rectangle(rotation=rotation) if rotation:
            return "rotated rectangles are polygons or run lengths: a box of COCO is upright"
        case Polygon(rings) if len(rings) > 1:
            return "polygons with holes or parts are written as what they cover"
        case Polygon() if polygons != "source":
            return "polygons are written as what they cover, not with the points that were drawn"
        case Rectangle() | Polygon() | Brush():
            return ""


def _images(dataset: Dataset, for_cvat: bool) -> list[tuple[Sample, str]]:
    """The images to write, in the order of their ids, and their file names.

    For CVAT these are the whole names of all frames that show a picture: its import looks for them. Different
    pictures of one name, in different tasks, become `name_1.png` and so on, as in CVAT's own exports.
    """
    names = _folder.file_names(dataset.samples)
    if not for_cvat:
        return [(sample, names[sample.image]) for sample in dataset.samples]
    frames = [(each, sample.image) for sample in dataset.samples for each in sample.shown_as if each.known_as]
    frames.sort(key=lambda frame: (len(frame[0].task), frame[0].task, frame[0].item))  # numbers, as text
    wanted = [(each.known_as, image) for each, image in frames]
    named = {image for _, image in wanted}
    wanted += [(name, image) for image, name in names.items() if image not in named]
    shown: dict[str, str] = {}
    for name, image in wanted:
        shown.setdefault(name, image)
    numbers = Counter[str]()
    for whole, image in dict.fromkeys(wanted):
        name, path = whole, PurePosixPath(whole)
        while shown.setdefault(name, image) != image:
            numbers[whole] += 1
            name = str(path.with_stem(f"{path.stem}_{numbers[whole]}"))
    by_image: dict[str, list[str]] = {}
    for name, image in shown.items():
        by_image.setdefault(image, []).append(name)
    return [(sample, name) for sample in dataset.samples for name in by_image[sample.image]]


def _written(samples: Sequence[Sample], polygons: Polygons) -> list[_Written]:
    """The annotations in order. Labels of area 0 are left out: many readers refuse them."""
    written: list[_Written] = []
    numbered = ((number, label) for number, sample in enumerate(samples, 1) for label in sample.labels)
    for number, label in ((number, label) for number, label in numbered if rle_area(label.rle)):
        flat = [[float(value) for value in ring.ravel()] for ring in _rings(label, polygons)]
        raster = rings_to_rle(flat, label.size) if flat else label.rle
        iou = rle_iou(raster, label.rle)
        # pycocotools may fill no pixel of a sliver.
        if flat and rle_area(raster) and (iou == 1 or polygons != "exact"):
            written.append(_Written(label, number, cast("Segmentation", flat), raster, iou))
        else:
            lengths = {"size": list(label.size), "counts": label.rle["counts"]}
            written.append(_Written(label, number, lengths, label.rle, 1.0))
    return written


def _rings(label: AcceptedLabel, polygons: Polygons) -> list[Ring]:
    """Rings of a label that is written as polygons; empty if it becomes run lengths."""
    if polygons == "source":
        ring = drawn_ring(label.geometry, label.size)
        # pycocotools reads four numbers as a box.
        return [] if ring is None or len(ring) < 3 else [ring]
    mask = rle_to_mask(label.rle)
    rings = mask_to_polygons(mask) if polygons == "exact" else simplify_mask(mask).rings
    return rings if all(ring_area(ring) > 0 for ring in rings) else []


def _content(
    dataset: Dataset,
    images: Sequence[tuple[Sample, str]],
    written: Sequence[_Written],
    for_cvat: bool,
    as_drawn: bool,
) -> dict[str, Any]:
    """The file's content. Members of our own say what `clickmask import coco` could not know otherwise,
    `as_drawn` also the shapes that COCO does not have."""
    category_ids = {name: number for number, name in enumerate(dataset.categories, 1)}
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in category_ids.items()]
    unknown = {"license": 1, "flickr_url": "", "coco_url": "", "date_captured": ""}
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(written, 1):
        segmentation, crowd = each.segmentation, 0
        if for_cvat and isinstance(segmentation, dict):
            columns = rle_to_mask(each.raster).ravel(order="F")
            turns = np.flatnonzero(columns[1:] != columns[:-1]) + 1
            runs = np.diff(np.concatenate(([0], turns, [columns.size]))).tolist()
            counts = [0, *runs] if columns[0] else runs  # the first run counts background
            segmentation, crowd = {"size": segmentation["size"], "counts": counts}, 1
        label, key = each.label, each.label.key
        region = "/".join((key.tool, key.project, key.task, key.annotation, key.region))
        attributes: dict[str, Any] = {"region": region}
        attributes |= {"layer": label.layer} if label.layer else {}
        attributes |= {"proposal": label.proposal} if label.proposal else {}
        if as_drawn and geometry_of(each.segmentation, *label.size) != label.geometry:
            attributes["drawn"] = geometry_to_json(label.geometry)
        annotations.append(
            {
                "id": number,
                "image_id": each.image,
                "category_id": category_ids[each.label.category],
                "segmentation": segmentation,
                "area": float(rle_area(each.raster)),
                "bbox": rle_box(each.raster),
                "iscrowd": crowd,
                "attributes": attributes,
            }
        )
    return {
        "info": {
            "description": f"{dataset.tool} project {dataset.project}",
            "url": "",
            "version": dataset.digest,
            "year": 0,  # a date would change the bytes of the same dataset
            "contributor": "clickmask",
            "date_created": "",
            "tool": dataset.tool,
            "project": dataset.project,
        }
        | ({"unlabelled": dataset.unlabelled} if dataset.unlabelled != "background" else {}),
        "licenses": [{"id": 1, "name": "unknown", "url": ""}],
        "categories": categories,
        "images": [
            {"id": number, "width": sample.size[1], "height": sample.size[0]}
            | {"file_name": name, **unknown, "digest": sample.image, **_folder.described(sample, name)}
            | _shown_as(sample)
            for number, (sample, name) in enumerate(images, 1)
        ],
        "annotations": annotations,
    }


def _shown_as(sample: Sample) -> dict[str, Any]:
    """Where the tool shows the image, first where its labels are from."""
    keys = {(label.key.task, label.item) for label in sample.labels}
    shown = sorted(sample.shown_as, key=lambda each: (each.task, each.item) not in keys)
    names = ("task", "annotation", "item", "known_as")
    return {"shown_as": [{name: getattr(each, name) for name in names} for each in shown]}


def _require_read_back(
    path: Path, dataset: Dataset, images: Sequence[tuple[Sample, str]], written: Sequence[_Written]
) -> None:
    """Raise Failed unless pycocotools reads images, categories and every mask as intended."""
    with _PRINTING, contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(path))
    found = [(image["id"], image["height"], image["width"]) for image in read.dataset["images"]]
    meant = [(number, *sample.size) for number, (sample, _) in enumerate(images, 1)]
    categories = [category["name"] for category in read.loadCats(read.getCatIds())]
    if found != meant or categories != list(dataset.categories) or len(read.anns) != len(written):
        raise Failed("the export does not read back with the images, categories and annotations meant")
    for number, each in enumerate(written, 1):
        annotation = cast("dict[str, Any]", read.anns[number])
        name = read.cats[annotation["category_id"]]["name"]
        raster = as_rle(read.annToRLE(cast("Any", annotation)))
        if (
            (annotation["image_id"], name) != (each.image, each.label.category)
            or rle_iou(raster, each.raster) != 1
            or annotation["area"] != rle_area(raster)
            or annotation["bbox"] != rle_box(raster)
        ):
            raise Failed(f"annotation {number} of the export does not read back as it was meant")
