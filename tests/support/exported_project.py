"""A drawn Label Studio project of every kind of region, as it exports itself as JSON; and what a reader
of COCO gets of it by clickmask and by the converters of label-studio-sdk.

Each object has a category of its own, so that it is known again whatever a converter makes of it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from pycocotools.coco import COCO

from clickmask.datasets.snapshot import create_dataset
from clickmask.labels.geometry import rasterise
from clickmask.labels.submissions import AcceptedLabel, LabelKey, LabelledImage
from clickmask.masks.rle import mask_to_rle
from clickmask.types import Mask, Size
from clickmask_adapters.exports import coco
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio import labels as accepted
from clickmask_adapters.tools.label_studio.shapes import mask_to_bit_mask, mask_to_brush_rle
from support import label_studio_sdk_oracle
from support.drawn import disc, ellipse, rectangle, ring
from support.labelled import FilesInMemory, digest_of, noise

SIZE = (240, 320)
TURNED: Size = (320, 240)  # as displayed; stored as SIZE with EXIF orientation 6
KINDS = ("brush", "bitmask", "polygon", "rectangle", "ellipse")
CONTROLS = {
    "brush": "BrushLabels",
    "bitmask": "BitmaskLabels",
    "polygon": "PolygonLabels",
    "rectangle": "RectangleLabels",
    "ellipse": "EllipseLabels",
}


@dataclass(frozen=True, eq=False)
class Drawn:
    """An object, as Label Studio holds it, on the upright picture "a" or the turned photo "b"."""

    kind: str
    value: Mapping[str, Any]
    picture: str = "a"


def _brush(mask: Mask) -> Drawn:
    return Drawn("brush", {"format": "rle", "rle": mask_to_brush_rle(mask).tolist()})


def _polygon(points: list[tuple[float, float]], picture: str = "a") -> Drawn:
    return Drawn("polygon", {"points": [list(point) for point in points], "closed": True}, picture)


OBJECTS: Mapping[str, Drawn] = {
    "brush": _brush(disc(SIZE, (60, 60), 40)),
    "brush with a hole": _brush(ring(SIZE, (160, 120), 70, 35)),
    "brush of two parts": _brush(rectangle(SIZE, (10, 180, 60, 230)) | rectangle(SIZE, (260, 10, 310, 60))),
    "brush, small": _brush(ellipse(SIZE, (250, 180), (5, 3), 20)),
    "brush, a line": _brush(rectangle(SIZE, (20, 120, 100, 121))),
    "bit mask": Drawn("bitmask", {"imageDataURL": mask_to_bit_mask(disc(SIZE, (250, 100), 30))}),
    "polygon": _polygon([(10.5, 20.2), (40.1, 22.7), (35.3, 60.9), (15.2, 55.1)]),
    "rectangle": Drawn("rectangle", {"x": 50, "y": 50, "width": 20, "height": 30, "rotation": 0}),
    "rectangle, rotated": Drawn("rectangle", {"x": 50, "y": 20, "width": 30, "height": 15, "rotation": 35}),
    "ellipse": Drawn("ellipse", {"x": 70, "y": 70, "radiusX": 15, "radiusY": 10, "rotation": 0}),
    "ellipse, rotated": Drawn("ellipse", {"x": 70, "y": 70, "radiusX": 15, "radiusY": 8, "rotation": 40}),
    "polygon on an EXIF-turned photo": _polygon([(10, 10), (90, 15), (80, 40), (20, 35)], "b"),
    "rectangle on an EXIF-turned photo": Drawn(
        "rectangle", {"x": 20, "y": 50, "width": 60, "height": 30, "rotation": 0}, "b"
    ),
}


def config() -> str:
    controls = "".join(
        f'<{CONTROLS[kind]} name="{kind}" toName="image">'
        + "".join(f'<Label value="{name}"/>' for name, each in OBJECTS.items() if each.kind == kind)
        + f"</{CONTROLS[kind]}>"
        for kind in KINDS
    )
    return f'<View><Image name="image" value="$image"/>{controls}</View>'


def files() -> dict[str, bytes]:
    """The picture "a" and the photo "b"."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    upright, turned = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(noise(1, SIZE)).save(upright, "PNG")
    PIL.Image.fromarray(noise(2, SIZE)).save(turned, "JPEG", exif=exif, quality=90)
    return {"a": upright.getvalue(), "b": turned.getvalue()}


def tasks(folder: Path) -> list[dict[str, Any]]:
    """As `GET /api/projects/7/export?exportType=JSON` lists them; the pictures lie in `folder`."""
    return [
        {
            "id": number,
            "project": 7,
            "data": {"image": str(folder / f"{picture}.{ending}")},
            "annotations": [
                {
                    "id": number,
                    "task": number,
                    "completed_by": 1,
                    "was_cancelled": False,
                    "ground_truth": False,
                    "created_at": "2026-11-22T10:00:00.000000Z",
                    "updated_at": "2026-11-22T10:00:00.000000Z",
                    "result": [
                        _result(name, each) for name, each in OBJECTS.items() if each.picture == picture
                    ],
                }
            ],
            "predictions": [],
        }
        for number, (picture, ending) in enumerate((("a", "png"), ("b", "jpg")), 1)
    ]


def truth() -> dict[str, Mask]:
    """The pixels of each object whose centre is in it, in the picture as it is displayed."""
    return {label.category: rasterise(label.geometry, label.size) for label in labels(Path("nowhere"))}


def labels(folder: Path) -> list[AcceptedLabel]:
    parsed = label_config.parse(config())
    found: list[AcceptedLabel] = []
    for task in tasks(folder):
        (submission,) = accepted.submissions(task["annotations"][0], task, parsed)
        size = submission.size
        assert size is not None
        picture = "ab"[task["id"] - 1]
        found += [
            AcceptedLabel(
                LabelKey("label_studio", "7", submission.task, submission.annotation, region.id),
                digest_of(picture),
                size,
                region.category,
                region.geometry,
                mask_to_rle(rasterise(region.geometry, size)),
                submission.updated_at,
                None,
            )
            for region in submission.regions
        ]
    return found


def by_clickmask(folder: Path) -> COCO:
    images = [
        LabelledImage(digest_of("a"), "a.png", SIZE, "1", 0),
        LabelledImage(digest_of("b"), "b.jpg", TURNED, "2", 0),
    ]
    dataset = create_dataset(
        images, labels(folder), tool="label_studio", project="7", pictures=FilesInMemory(files())
    )
    return loaded(coco.write(dataset, folder / "clickmask"))


def by_converter(name: str, folder: Path) -> COCO:
    """`name` is COCO or BRUSH_TO_COCO."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for (picture, raw), ending in zip(files().items(), ("png", "jpg"), strict=True):
        (pictures / f"{picture}.{ending}").write_bytes(raw)
    exported = folder / "tasks.json"
    exported.write_text(json.dumps(tasks(pictures)))
    label_studio_sdk_oracle.convert(config(), exported, folder / "converted", name)
    (written,) = (folder / "converted").glob("*.json")
    return loaded(written)


def loaded(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@dataclass(frozen=True)
class Outcome:
    """What a reader gets of one object."""

    annotations: int
    iou: float | None  # of all of them together, 0 where picture and mask have different sizes; None: nothing
    area_ratio: float | None  # of the areas that are written to the true one
    boxes: bool  # an annotation has no outline: its box was taken


def outcomes(read: COCO) -> dict[str, Outcome]:
    """Of each object, by name."""
    names = {number: category["name"] for number, category in read.cats.items()}
    found: dict[str, Outcome] = {}
    for name, mask in truth().items():
        own = [each for each in read.anns.values() if names[each["category_id"]] == name]
        if not own:
            found[name] = Outcome(0, None, None, False)
            continue
        drawn = [_mask(read, each) for each in own]
        together = np.logical_or.reduce(drawn)
        same = together.shape == mask.shape
        iou = (together & mask).sum() / (together | mask).sum() if same else 0.0
        area = sum(each["area"] for each in own) / mask.sum()
        found[name] = Outcome(
            len(own), float(iou), float(area), any(not each["segmentation"] for each in own)
        )
    return found


def _mask(read: COCO, annotation: dict[str, Any]) -> Mask:
    if annotation["segmentation"]:
        return np.array(read.annToMask(annotation)).astype(bool)
    image = read.imgs[annotation["image_id"]]
    x, y, width, height = (round(side) for side in annotation["bbox"])
    return rectangle((image["height"], image["width"]), (x, y, x + width, y + height))


def _result(name: str, drawn: Drawn) -> dict[str, Any]:
    height, width = TURNED if drawn.picture == "b" else SIZE
    kind = f"{drawn.kind}labels"
    return {
        "id": name.replace(" ", "-"),
        "type": kind,
        "from_name": drawn.kind,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**drawn.value, kind: [name]},
    }
