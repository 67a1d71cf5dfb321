"""`clickmask import` of datasets that others made, and of ones that make no sense."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner, Result

from clickmask.datasets.snapshot import Dataset, snapshot
from clickmask.labels.geometry import Brush, Polygon, Rectangle
from clickmask.masks.rle import mask_to_rle, rle_area, rle_to_mask
from clickmask_adapters.cli import app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import read_settings
from support.drawn import disc, rectangle
from support.labelled import SIZE, noise, png


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def dataset(project: str = "cells", tool: str = "page") -> Dataset:
    with closing(Home(read_settings())) as home:
        return snapshot(home.store, tool, project, home.archive)


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def coco(annotations: list[dict[str, Any]], **more: Any) -> str:
    rows = [
        {"id": number, "image_id": 1, "category_id": 3, **each} for number, each in enumerate(annotations)
    ]
    height, width = SIZE
    images = [{"id": 1, "file_name": "a.png", "height": height, "width": width}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cell"}]}
    return json.dumps(content | more)


def indexed(numbers: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(numbers.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def test_coco_of_others_is_taken_in_with_sides_by_the_names_of_the_files(tmp_path: Path) -> None:
    two = [{"id": 7, "file_name": "sub/b.png", "height": 48, "width": 64}]
    folder = write(
        tmp_path / "set",
        {
            "train/a.png": png(noise(1)),
            "images/sub/b.png": png(noise(2)),
            "annotations/instances_train2017.json": coco(
                [
                    {"segmentation": [SQUARE]},
                    {"segmentation": [SQUARE, [20, 20, 40, 20, 40, 40]]},
                    {"segmentation": {"size": [48, 64], "counts": mask_to_rle(disc())["counts"]}},
                    {"bbox": [5, 6, 20, 10]},
                    {"segmentation": {"size": [48, 64], "counts": [0, 48 * 64]}, "iscrowd": 1},
                    {
                        "segmentation": {"size": [48, 64], "counts": [48, 3000, 24]},
                        "iscrowd": 1,
                        "attributes": {"z": 1},
                    },
                ]
            ),
            "annotations/instances_val2017.json": coco([], images=two),
            "annotations/captions_val2017.json": json.dumps(
                {"images": two, "annotations": [{"id": 1, "caption": "x"}]}
            ),
        },
    )
    result = run("coco", folder, "page", "cells")
    assert result.stdout == "2 images with 5 labels taken in, 0 known already\n", result.output
    assert result.stderr == "1 objects are crowd regions and left out\n"
    made = dataset()
    assert [(each.name, each.side) for each in made.samples] == [("a.png", "train"), ("b.png", "validation")]
    kinds = [label.geometry for label in made.samples[0].labels]
    assert kinds[0] == Polygon((((10, 10), (30, 10), (30, 30), (10, 30)),))
    assert [type(each) for each in kinds[1:]] == [Brush, Brush, Rectangle, Brush]
    assert rle_area(made.samples[0].labels[4].rle) == 3000
    assert {label.category for label in made.samples[0].labels} == {"cell"}


def test_the_same_import_changes_nothing_and_a_corrected_one_replaces_its_labels(tmp_path: Path) -> None:
    files = {"a.png": png(noise(1)), "x.json": coco([{"segmentation": [SQUARE]}])}
    folder = write(tmp_path / "set", files)
    assert run("coco", folder, "page", "cells").exit_code == 0
    first = dataset()
    assert run("coco", folder, "page", "cells").stdout == "0 images with 0 labels taken in, 1 known already\n"
    assert dataset() == first
    write(folder, {"x.json": coco([{"bbox": [5, 5, 9, 9]}])})
    os.utime(folder / "x.json", (1, 1))  # however old the corrected file claims to be
    assert run("coco", folder, "page", "cells").stdout == "1 images with 1 labels taken in, 0 known already\n"
    assert [type(label.geometry) for label in dataset().samples[0].labels] == [Rectangle]


def test_yolo_of_others_has_boxes_lists_and_folders_beside_data_yaml(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        {
            "data.yaml": "train: ../train/images\nval: valid.txt\nnc: 2\nnames: ['cat', 'dog']\n",
            "train/images/a.png": png(noise(1)),
            "train/labels/a.txt": "1 .5 .5 .25 .5\n0 .1 .1 .9 .1 .9 .9\nbroken\n7 .1 .1 .2\ninf 0 0 1 1\n",
            "more/images/b.png": png(noise(2)),
            "valid.txt": "./more/images/b.png\n../../etc/passwd\n",
        },
    )
    result = run("yolo", folder, "page", "cells")
    assert result.stdout == "2 images with 2 labels taken in, 0 known already\n", result.output
    assert "3 objects are damaged and left out" in result.stderr
    made = dataset()
    assert made.categories == ("cat", "dog")
    assert [(each.side, len(each.labels)) for each in made.samples] == [("train", 2), ("validation", 0)]
    assert made.samples[0].labels[0].geometry == Rectangle((24.0, 12.0, 40.0, 36.0))


def test_voc_of_others_has_boxes_where_it_has_no_masks(tmp_path: Path) -> None:
    box = "<xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>25</ymax>"
    sheet = f"<annotation><object><name>dog</name><bndbox>{box}</bndbox></object></annotation>"
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[disc()] = (0, 128, 0)
    painted = io.BytesIO()
    PIL.Image.fromarray(colours).save(painted, "PNG")
    folder = write(
        tmp_path / "set",
        {
            "JPEGImages/a.png": png(noise(1)),
            "JPEGImages/b.png": png(noise(2)),
            "JPEGImages/c.png": png(noise(3)),
            "Annotations/a.xml": sheet,
            "SegmentationClass/b.png": painted.getvalue(),
            "labelmap.txt": "# a comment:1,2,3\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n",
            "ImageSets/Main/train.txt": "a  1\n",
            "ImageSets/Main/val.txt": "b -1\n",
        },
    )
    result = run("voc", folder, "page", "cells")
    assert "2 images with 2 labels taken in" in result.stdout, result.output
    assert "1 pictures have no annotation and are left out" in result.stderr
    one, two = dataset().samples
    assert (one.side, two.side) == ("train", "validation")
    assert one.labels[0].geometry == Rectangle((10.0, 5.0, 20.0, 25.0))
    assert np.array_equal(rle_to_mask(two.labels[0].rle), disc())


def test_png_masks_without_a_description_have_numbers_for_names(tmp_path: Path) -> None:
    two = disc() * 2 + rectangle(SIZE, (0, 0, 5, 5)) * 1
    folder = write(tmp_path / "set", {"images/a.jpg": png(noise(1)), "masks/a.png": indexed(two)})
    assert run("png", folder, "page", "cells").exit_code == 0
    assert dataset().categories == ("1", "2")
    folder = write(tmp_path / "other", {"images/a.jpg": png(noise(1)), "masks/a.png": indexed(disc() * 255)})
    assert run("png", folder, "page", "one").exit_code == 0
    assert dataset("one").categories == ("object",)


def test_labels_of_a_photo_as_it_is_stored_are_turned_with_it(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(noise(1)).save(file, "JPEG", exif=exif)
    folder = write(tmp_path / "set", {"a.png": file.getvalue(), "x.json": coco([{"bbox": [0, 0, 10, 5]}])})
    assert run("coco", folder, "page", "cells").exit_code == 0
    (sample,) = dataset().samples
    assert sample.size == (64, 48)
    turned = np.rot90(rectangle(SIZE, (0, 0, 10, 5)), -1)
    assert np.array_equal(rle_to_mask(sample.labels[0].rle), turned)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "png"])
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"x.json": "{", "data.yaml": ": [", "labelmap.txt": "x"},
        {"x.json": "[" * 100_000, "data.yaml": "[" * 1000},
        {"x.json": '{"images": 1, "annotations": 2}', "data.yaml": "names: {a: b}"},
        {"x.json": b"\xff\xfe", "data.yaml": b"\xff\x00", "categories.json": "[]"},
    ],
)
def test_what_is_no_dataset_is_refused_in_a_sentence(
    form: str, files: Mapping[str, bytes | str], tmp_path: Path, home: Path
) -> None:
    folder = write(tmp_path / "set", files)
    folder.mkdir(exist_ok=True)
    result = run(form, folder, "page", "cells")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "Traceback" not in result.output
    assert not (home / "images").exists() or not any((home / "images").iterdir())


def test_a_panoptic_file_is_not_taken_for_pictures_with_nothing_on_them(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}]
    rows = [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 3}]}]
    written = json.dumps({"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cell"}]})
    folder = write(tmp_path / "set", {"a.png": png(noise(1)), "annotations/panoptic_train.json": written})
    result = run("coco", folder, "page", "cells")
    assert result.exit_code == 1
    assert "has no COCO annotation file" in result.stderr


def test_damaged_pictures_and_objects_are_named_and_the_others_taken_in(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "a.png", "height": 48, "width": 64},
        {"id": 2, "file_name": "missing.png", "height": 48, "width": 64},
        {"id": 3, "file_name": "broken.png", "height": 48, "width": 64},
        {"id": 4, "file_name": "other.png", "height": 10, "width": 10},
        {"id": 5, "file_name": "same.png", "height": 48, "width": 64},
        {"id": 6, "file_name": "../../../etc/passwd", "height": 48, "width": 64},
        {"id": 7, "file_name": "a\0.png", "height": 48, "width": 64},
        {"id": 8, "file_name": 400 * "long", "height": 48, "width": 64},
        "nonsense",
    ]
    odd: list[dict[str, Any]] = [
        {"segmentation": [SQUARE]},
        {"segmentation": {"size": [48, 64], "counts": "~~~~"}},
        {"segmentation": {"size": [48, 64], "counts": [-1]}},
        {"segmentation": [[float("nan")] * 8]},
        {"segmentation": [["a"] * 8]},
        {"segmentation": [[1e300, 0, -1e300, 5, 7, 1e300]]},
        {"attributes": {"drawn": {"kind": "brush", "rle": {"size": [48, 64], "counts": "~"}}}},
        {"attributes": {"drawn": {"kind": "what"}}},
        {"segmentation": []},
        {"bbox": [1, 2, "x", 4]},
    ]
    files: dict[str, bytes | str] = {
        name: png(noise(seed)) for name, seed in (("a.png", 1), ("other.png", 2), ("same.png", 1))
    }
    folder = write(tmp_path / "set", files | {"broken.png": b"nonsense", "x.json": coco(odd, images=images)})
    result = run("coco", folder, "page", "cells")
    assert result.exit_code == 1
    assert result.stdout == "1 images with 1 labels taken in, 0 known already\n", result.output
    said = result.stderr
    assert "missing.png: it cannot be read: No such file" in said
    assert "broken.png: this is not an image" in said
    assert "other.png: it has 64x48 pixels, but the dataset describes one of 10x10" in said
    assert "same.png: it shows the same pixels as a.png, whose labels count" in said
    assert "passwd: it cannot be read" in said
    assert "it cannot be read: no file has such a name" in said
    assert "an image of the dataset is damaged (OSError)" in said or "File name too long" in said
    assert "8 objects are damaged and left out" in said
    assert "1 objects are without an outline and left out" in said


def test_an_import_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, bytes | str] = {f"images/{n}.png": png(noise(n)) for n in range(6)}
    files |= {f"masks/{n}.png": indexed(disc()) for n in range(6)}
    folder = write(tmp_path / "set", files)
    keep, kept = vars(Home)["archive"].func, list[str]()

    def stopped(home: Home) -> Any:
        archive = keep(home)
        inner = archive.keep

        def once(digest: str, raw: bytes) -> bool:
            if len(kept) == 3:
                raise KeyboardInterrupt
            kept.append(digest)
            return inner(digest, raw)

        archive.keep = once
        return archive

    with monkeypatch.context() as patched:
        patched.setattr(vars(Home)["archive"], "func", stopped)
        result = run("png", folder, "page", "cells")
        assert (result.exit_code, len(kept)) == (130, 3)
        assert "the same command goes on from there" in result.stderr
    assert run("png", folder, "page", "cells").stdout == "3 images with 3 labels taken in, 3 known already\n"


def test_projects_of_clickmasks_own_have_no_tool_to_ask(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"images/a.png": png(noise(1)), "masks/a.png": indexed(disc())})
    assert run("png", folder, "page", "cells").exit_code == 0
    result = CliRunner().invoke(app, ["pull", "page", "cells"])
    assert (result.exit_code, result.stderr) == (
        1,
        "projects of page are clickmask's own: there is no labeling tool to ask\n",
    )
    listed = CliRunner().invoke(app, ["project", "page", "cells"])
    assert "imported: 1 images of png set" in listed.stdout
    assert CliRunner().invoke(app, ["stats", "page", "cells"]).exit_code == 0
