"""PNG masks for semantic segmentation: `images/`, `masks/` of the same stems, `categories.json`.

A mask has one class a pixel: 0 is background, i + 1 the i-th category, 255 unknown.
"""

from __future__ import annotations

import json
from pathlib import Path

from clickmask.datasets.snapshot import IGNORED, Dataset
from clickmask_adapters.exports import _class_maps, _folder, _pictures

CATEGORIES = "categories.json"


def write(dataset: Dataset, folder: Path) -> Path:
    """Write the dataset; the path of its `categories.json`, which also lists each image's side."""
    _class_maps.require_room(dataset)
    stems = _pictures.stems(dataset.samples)
    with _folder.replacing(folder) as new:
        (new / "images").mkdir()
        (new / "masks").mkdir()
        for sample in dataset.samples:
            _class_maps.write_classes(dataset, sample, new / "masks" / f"{stems[sample.image][0]}.png")
        names = {image: stem + ending for image, (stem, ending) in stems.items()}
        _pictures.write_pictures(dataset, {image: new / "images" / name for image, name in names.items()})
        described = {
            "dataset": dataset.digest,
            "categories": {"background": 0, "unknown": IGNORED}
            | {f"{number}": name for number, name in enumerate(dataset.categories, 1)},
            "images": [
                {
                    "image": names[sample.image],
                    "mask": f"{stems[sample.image][0]}.png",
                    "side": "quarantine" if sample.quarantined else sample.side,
                }
                for sample in dataset.samples
            ],
        }
        (new / CATEGORIES).write_text(json.dumps(described, indent=1))
    return folder / CATEGORIES


def losses(dataset: Dataset) -> list[str]:
    """What masks of classes cannot say of this dataset, in sentences."""
    names = {image: "".join(name) for image, name in _pictures.stems(dataset.samples).items()}
    labels = sum(len(sample.labels) for sample in dataset.samples)
    found = [f"{labels} objects are one class a pixel: which pixels are one object is lost"] if labels else []
    return found + _class_maps.overlap_losses(dataset) + _pictures.picture_losses(dataset, names)
