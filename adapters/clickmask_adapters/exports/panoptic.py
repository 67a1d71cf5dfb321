"""COCO panoptic: `annotations/panoptic.json`, a PNG of object ids for each picture, and `images/`.

The format is cocodataset.org/#format-data (panoptic segmentation, 2018). An id is R + 256 G + 65536 B of its
pixels, the same as in `segments_info`; 0 is void. A pixel has one object: the one on top, as `paint` decides.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import PIL.Image
from numpy.typing import NDArray

from clickmask.datasets.snapshot import Dataset, Sample, paint
from clickmask.errors import Failed
from clickmask_adapters.exports import _class_maps, _folder

JSON = Path("annotations/panoptic.json")
MASKS = "panoptic"


def write(dataset: Dataset, folder: Path) -> Path:
    """Write the dataset and return the path of its JSON file."""
    names = _folder.file_names(dataset.samples, unique_stems=True)
    numbers = {name: number for number, name in enumerate(dataset.categories, 1)}
    colours = np.frombuffer(_class_maps.palette(), np.uint8).reshape(256, 3).tolist()
    annotations: list[dict[str, Any]] = []
    with _folder.replacing(folder) as new:
        for name in ("annotations", MASKS, "images"):
            (new / name).mkdir()
        for image, sample in enumerate(dataset.samples, 1):
            ids = _ids(sample)
            file_name = f"{_folder.stem(names[sample.image])}.png"
            _write_ids(ids, new / MASKS / file_name)
            segments = _segments(sample, ids, numbers)
            annotations.append({"image_id": image, "file_name": file_name, "segments_info": segments})
        _folder.write_pictures(dataset, new / "images", names)
        content = {
            "info": {
                "description": f"{dataset.tool} project {dataset.project}",
                "version": dataset.digest,
                "contributor": "clickmask",
            },
            "categories": [
                {
                    "id": number,
                    "name": name,
                    "supercategory": "",
                    "isthing": 1,
                    "color": colours[number % 256],
                }
                for name, number in numbers.items()
            ],
            "images": [
                {"id": image, "width": sample.size[1], "height": sample.size[0]}
                | {"file_name": names[sample.image], "digest": sample.image}
                | _folder.described(sample, names[sample.image])
                for image, sample in enumerate(dataset.samples, 1)
            ],
            "annotations": annotations,
        }
        (new / JSON).write_bytes(orjson.dumps(content))
    return folder / JSON


def losses(dataset: Dataset) -> list[str]:
    """Sentences on what the dataset loses in COCO's panoptic format."""
    hidden = sum(
        len(sample.labels) - int(np.count_nonzero(np.unique(_ids(sample)))) for sample in dataset.samples
    )
    found = _folder.sentences(
        (hidden, "labels cover no pixel that is not another one's, and are left out"),
        _class_maps.overlaps(dataset),
    )
    if dataset.unlabelled == "background":
        found.append(
            "area without a label is background in this project, but void in this format: not measured"
        )
    return found + _folder.picture_losses(dataset, _folder.file_names(dataset.samples, unique_stems=True))


def _ids(sample: Sample) -> NDArray[np.uint32]:
    """Map (H, W) of the objects' numbers from 1, in the order of the labels; 0 where nothing is."""
    return paint(sample, range(1, len(sample.labels) + 1), 0, np.uint32)


def _segments(sample: Sample, ids: NDArray[np.uint32], numbers: dict[str, int]) -> list[dict[str, Any]]:
    """Each object of which a pixel is to be seen."""
    segments: list[dict[str, Any]] = []
    for number, label in enumerate(sample.labels, 1):
        there = (ids == number).view(np.uint8)
        if area := cv2.countNonZero(there):
            segments.append(
                {
                    "id": number,
                    "category_id": numbers[label.category],
                    "area": area,
                    "bbox": list(cv2.boundingRect(there)),
                    "iscrowd": 0,
                }
            )
    return segments


def _write_ids(ids: NDArray[np.uint32], path: Path) -> None:
    """Write the ids as colours and read them back. Raises Failed if they differ."""
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(colours).save(path, "PNG", compress_level=1)
    with PIL.Image.open(path) as opened:
        read = np.asarray(opened).astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    if not np.array_equal(read, ids):
        raise Failed(f"{path.name} does not read back as it was meant")
