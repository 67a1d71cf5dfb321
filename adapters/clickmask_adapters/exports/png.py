"""PNG masks for semantic segmentation: `images/`, `masks/` with the same stems, `categories.json`.

Each pixel holds one class: 0 is background, i + 1 is category i, 255 is unknown.
"""

import json
from pathlib import Path

from clickmask.datasets.snapshot import IGNORED, Dataset
from clickmask_adapters.exports import _class_maps, _folder

CATEGORIES = "categories.json"


def write(dataset: Dataset, folder: Path) -> Path:
    """Write the dataset and return its `categories.json`, which also lists each image's side."""
    _class_maps.require_room(dataset)
    names = _folder.file_names(dataset.samples, unique_stems=True)
    masks = {image: f"{_folder.stem(name)}.png" for image, name in names.items()}
    with _folder.replacing(folder) as new:
        (new / "images").mkdir()
        (new / "masks").mkdir()
        for sample in dataset.samples:
            _class_maps.write_classes(dataset, sample, new / "masks" / masks[sample.image])
        _folder.write_pictures(dataset, new / "images", names)
        described = {
            "dataset": dataset.digest,
            "unlabelled": dataset.unlabelled,
            "categories": {"background": 0, "unknown": IGNORED}
            | {f"{number}": name for number, name in enumerate(dataset.categories, 1)},
            "images": [
                {
                    "image": names[each.image],
                    "mask": masks[each.image],
                    **_folder.described(each, names[each.image]),
                }
                for each in dataset.samples
            ],
        }
        (new / CATEGORIES).write_bytes(json.dumps(described, indent=1).encode())
    return folder / CATEGORIES


def losses(dataset: Dataset) -> list[str]:
    """Sentences on what the dataset loses in masks of classes."""
    names = _folder.file_names(dataset.samples, unique_stems=True)
    labels = sum(len(sample.labels) for sample in dataset.samples)
    objects = labels, "objects are one class a pixel: which pixels are one object is lost"
    found = _folder.sentences(objects, _class_maps.overlaps(dataset))
    return found + _folder.picture_losses(dataset, names)
