"""YOLO, Pascal VOC and PNG masks: what is in their files, read by others where there are any."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import yaml

from clickmask.datasets.snapshot import Dataset, create_dataset
from clickmask.errors import Failed, InvalidRequest
from clickmask.labels.geometry import Ellipse, Geometry, Polygon, Rectangle
from clickmask.labels.split import Assigned, Side, fingerprint
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import rle_to_mask
from clickmask_adapters.exports import _class_maps, _folder, coco, panoptic, png, voc, yolo
from support.drawn import MASKS, disc, rectangle, ring, two_parts
from support.labelled import SIZE, FilesInMemory, accepted, digest_of, labelled, noise, polygon
from support.labelled import png as to_png

SIDES: dict[str, Side] = {"a": "train", "b": "validation", "c": "test"}
LABELS = [
    accepted("a", disc(), "cell", region="1"),
    accepted("a", rectangle(SIZE, (20, 20, 40, 30)), "nucleus", region="2"),
    accepted("b", ring(), "cell", region="3", task="2"),
    accepted("b", two_parts(), "nucleus", region="4", task="2"),
]


def dataset(labels: list[AcceptedLabel] = LABELS, names: str = "abcd", **more: Any) -> Dataset:
    """The image "d" has no side."""
    placed = [Assigned(digest_of(name), side, fingerprint(noise(ord(name)))) for name, side in SIDES.items()]
    return create_dataset(
        [labelled(name, task=str(number)) for number, name in enumerate(names, 1)],
        labels,
        placed,
        tool="cvat",
        project="1",
        pictures=FilesInMemory({name: to_png(noise(ord(name))) for name in names}),
        **more,
    )


def indexed(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def test_yolo_has_a_line_an_object_in_the_folder_of_its_side(tmp_path: Path) -> None:
    main = yolo.write(dataset(), tmp_path / "out")
    described = yaml.safe_load(main.read_text())
    assert described["names"] == {0: "cell", 1: "nucleus"}
    for name, side in {"a": "train", "b": "val", "c": "test"}.items():
        images = tmp_path / "out" / described[side]
        assert [path.name for path in images.iterdir()] == [f"{name}.png"]
        assert (tmp_path / "out" / described[side].replace("images", "labels") / f"{name}.txt").exists()
    assert [path.name for path in (tmp_path / "out" / "images" / "unused").iterdir()] == ["d.png"]
    lines = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    assert (tmp_path / "out" / "labels" / "test" / "c.txt").read_text() == ""


@pytest.mark.parametrize("name", [name for name in MASKS if name != "empty"])
def test_a_line_of_yolo_draws_its_mask_with_parts_and_holes(name: str, tmp_path: Path) -> None:
    mask = MASKS[name]()
    label = accepted("d", mask, size=mask.shape)
    made = create_dataset([labelled("d", size=mask.shape)], [label], tool="cvat", project="1")
    yolo.write(made, tmp_path / "out", min_iou=1)
    (line,) = (tmp_path / "out" / "labels" / "unused" / "d.txt").read_text().splitlines()
    values = np.array(line.split()[1:], float)
    assert values.min() >= 0
    assert values.max() <= 1
    drawn = values.reshape(-1, 2) * (mask.shape[1], mask.shape[0])
    assert mask_iou(polygons_to_mask([np.round(drawn, 3)], mask.shape), mask) == 1


def test_opencv_draws_a_line_of_yolo_about_as_it_was_meant(tmp_path: Path) -> None:
    """As Ultralytics does: vertices cut off to whole pixels, and the edges drawn with the inside."""
    yolo.write(dataset(), tmp_path / "out")
    for line, mask in zip(
        (tmp_path / "out" / "labels" / "validation" / "b.txt").read_text().splitlines(),
        (ring(), two_parts()),
        strict=True,
    ):
        points = (np.array(line.split()[1:], float).reshape(-1, 2) * (64, 48)).astype(np.int32)
        filled = cv2.fillPoly(np.zeros(SIZE, np.uint8), [points], 1).astype(bool)
        assert mask_iou(filled, mask) > 0.8


def test_categories_of_any_name_are_read_by_yaml(tmp_path: Path) -> None:
    names = ["a: b", 'quo"te', "- dash", "Zelle ü", "null", "1", "new\nline", "#hash", "back\\slash", "", " "]
    names += [
        "\U0001f600 happy",
        "猫",
        "\U00020bb7野家",
        "\x00\x7f\x85\u2028\ufeff\ufffe",
        "👩\u200d🚀",
        "%TAG",
        "--- ...",
    ]
    main = yolo.write(dataset([], declared=names), tmp_path / "out")
    for loader in (yaml.SafeLoader, yaml.CSafeLoader):
        assert yaml.load(main.read_bytes(), loader)["names"] == dict(enumerate(names))
    halved = yolo.write(dataset([], declared=["\ud83d"]), tmp_path / "halved")
    assert yaml.safe_load(halved.read_text())["names"] == {0: "\ufffd"}
    assert yaml.safe_load(yolo.write(dataset([]), tmp_path / "none").read_text())["names"] == {}


def test_yolo_writes_a_rectangle_and_a_polygon_as_they_were_drawn(tmp_path: Path) -> None:
    drawn = [
        accepted("a", Rectangle((16, 12, 32, 24)), region="1"),
        accepted("a", polygon((8.0, 6.0), (40.0, 12.0), (16.0, 36.0)), region="2"),
        accepted("a", Rectangle((48, 36, 90, 90)), region="3"),
    ]
    yolo.write(dataset(drawn, declared=["cell"]), tmp_path / "out")
    lines = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    assert [[float(value) for value in line.split()[1:]] for line in lines] == [
        [0.25, 0.25, 0.5, 0.25, 0.5, 0.5, 0.25, 0.5],
        [0.125, 0.125, 0.625, 0.25, 0.25, 0.75],
        [0.75, 1, 0.75, 0.75, 1, 0.75, 1, 1],
    ]


def test_yolo_names_no_folder_without_pictures_and_every_format_says_so(tmp_path: Path) -> None:
    made = dataset([], names="acd")
    main = yolo.write(made, tmp_path / "out")
    assert yaml.safe_load(main.read_text()) == {"train": "images/train", "test": "images/test", "names": {}}
    folders = [path for path in (tmp_path / "out").rglob("*") if path.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders)
    for export in (coco, png, voc, yolo):
        (said,) = [sentence for sentence in export.losses(made) if "on the side" in sentence]
        assert said.startswith("no picture is on the side validation; many trainers")
        assert export.losses(dataset([], names="ab"))[0] == "no picture is on the side test"
    assert not [sentence for sentence in yolo.losses(dataset()) if "on the side" in sentence]


def test_yolo_says_what_it_bends() -> None:
    said = "\n".join(yolo.losses(dataset(unlabelled="ignore")))
    assert "1 objects have holes" in said
    assert "1 objects have parts" in said
    assert "1 images are on no side" in said
    assert "unknown in this project" in said


def test_png_masks_have_the_number_of_a_category(tmp_path: Path) -> None:
    main = png.write(dataset(unlabelled="ignore"), tmp_path / "out")
    described = json.loads(main.read_text())
    assert described["categories"] == {"background": 0, "unknown": 255, "1": "cell", "2": "nucleus"}
    sides = {image["image"]: image["side"] for image in described["images"]}
    assert sides == {"a.png": "train", "b.png": "validation", "c.png": "test", "d.png": None}
    classes = indexed(tmp_path / "out" / "masks" / "a.png")
    small = rectangle(SIZE, (20, 20, 40, 30))
    assert np.array_equal(classes == 2, small)
    assert np.array_equal(classes == 1, disc() & ~small)
    assert np.array_equal(classes == 255, ~disc() & ~small)
    said = "\n".join(png.losses(dataset()))
    assert "4 objects are one class a pixel" in said
    assert "2 images have labels that overlap" in said


def test_voc_has_boxes_from_one_on_and_both_kinds_of_masks(tmp_path: Path) -> None:
    labelmap = voc.write(dataset(), tmp_path / "out")
    assert labelmap.read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "cell:128,0,0::",
        "nucleus:0,128,0::",
    ]
    root = ET.fromstring((tmp_path / "out" / "Annotations" / "a.xml").read_text())
    assert root.findtext("filename") == "a.png"
    assert (root.findtext("size/width"), root.findtext("size/height")) == ("64", "48")
    cell, nucleus = root.findall("object")
    assert (cell.findtext("name"), nucleus.findtext("name")) == ("cell", "nucleus")
    assert [nucleus.findtext(f"bndbox/{name}") for name in voc.BOUNDS] == ["21", "21", "40", "30"]
    objects = indexed(tmp_path / "out" / "SegmentationObject" / "a.png")
    assert np.array_equal(objects == 2, rectangle(SIZE, (20, 20, 40, 30)))
    assert np.array_equal(objects > 0, indexed(tmp_path / "out" / "SegmentationClass" / "a.png") > 0)
    sets = tmp_path / "out" / "ImageSets" / "Segmentation"
    assert {path.name: path.read_text() for path in sets.iterdir()} == {
        "train.txt": "a\n", "val.txt": "b\n", "test.txt": "c\n",
    }  # fmt: skip
    assert "1 images are on no side, and in no set" in voc.losses(dataset())


def test_a_category_that_xml_cannot_hold_is_written_without_that(tmp_path: Path) -> None:
    made = dataset([accepted("a", disc(), "ce\x00ll <&> \ud800", region="1")])
    voc.write(made, tmp_path / "out")
    root = ET.fromstring((tmp_path / "out" / "Annotations" / "a.xml").read_bytes())
    assert root.findtext("object/name") == "ce_ll <&> _"


def test_every_category_has_a_name_of_its_own_in_labelmap_and_boxes(tmp_path: Path) -> None:
    names = [
        "background",
        "#tag",
        "a:b",
        "a_b",
        " cat ",
        "cat",
        "",
        "two\nlines",
        "a\u2028b",
        "a_b_2",
        "_tag",
    ]
    labels = [accepted("a", disc(), name, region=f"{number:02}") for number, name in enumerate(names)]
    made = dataset(labels, declared=names)
    labelmap = voc.write(made, tmp_path / "out").read_text()
    # As datumaro reads it.
    stripped = (line.strip() for line in labelmap.splitlines())
    rows = [line.split(":") for line in stripped if line and not line.startswith("#")]
    assert [len(row) for row in rows] == [4] * 12
    read = [row[0] for row in rows]
    assert len(set(read)) == 12
    assert read[:6] == ["background", "background_2", "_tag_2", "a_b_3", "a_b", "cat_2"]
    assert (read[6], read[10], read[11]) == ("cat", "a_b_2", "_tag")
    root = ET.parse(tmp_path / "out" / "Annotations" / "a.xml")
    assert read[1:] == [each.findtext("name") for each in root.iter("object")]
    (said,) = [sentence for sentence in voc.losses(made) if "another name" in sentence]
    assert "'background' is 'background_2', '#tag' is '_tag_2', 'a:b' is 'a_b_3'" in said


def test_the_colours_are_those_of_the_voc_kit() -> None:
    colours = np.frombuffer(_class_maps.palette(), np.uint8).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    assert {number: tuple(colours[number]) for number in known} == known


def test_more_than_254_categories_do_not_fit_a_png_and_more_objects_leave_out_one_file(
    tmp_path: Path,
) -> None:
    many = dataset([], declared=[str(number) for number in range(255)])
    for export in (png, voc):
        with pytest.raises(InvalidRequest, match="254 categories"):
            export.write(many, tmp_path / "out")
    crowd = [accepted("a", rectangle(SIZE, (n % 60, 2, n % 60 + 3, 6)), region=f"{n:03}") for n in range(255)]
    assert not (tmp_path / "out").exists()
    made = dataset([*crowd, accepted("b", disc(), region="1", task="2")])
    voc.write(made, tmp_path / "out")
    assert len(list((tmp_path / "out" / "SegmentationClass").iterdir())) == 4
    assert {path.stem for path in (tmp_path / "out" / "SegmentationObject").iterdir()} == {"b", "c", "d"}
    assert len(ET.parse(tmp_path / "out" / "Annotations" / "a.xml").findall("object")) == 255
    assert "1 images have more than 254 objects, and so no file in SegmentationObject" in voc.losses(made)


def test_files_beside_pictures_have_stems_of_their_own() -> None:
    images = [
        labelled(str(n), str(n), name) for n, name in enumerate(["a.png", "A.jpg", "b.tar.gz", ".png", "b"])
    ]
    made = create_dataset(images, [], tool="cvat", project="1")
    found = _folder.file_names(made.samples, unique_stems=True)
    assert (found[digest_of("2")], _folder.stem("b.tar.gz")) == ("b.tar.gz", "b.tar")
    assert (found[digest_of("3")], _folder.stem(".png")) == ("_.png", ".png")
    assert found[digest_of("0")] == f"{digest_of('0')[:8]}-a.png"
    assert len({_folder.stem(name).casefold() for name in found.values()}) == 5


@pytest.mark.parametrize("damage", ["mask", "box", "line"])
def test_what_reads_back_differently_never_appears(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "mask":
        monkeypatch.setattr(_class_maps, "palette", lambda: bytes(768))
        monkeypatch.setattr(_class_maps.np, "array_equal", lambda one, other: False)
        export: Any = png
    elif damage == "box":
        monkeypatch.setattr(voc, "BOUNDS", ("xmax", "ymin", "xmin", "ymax"))
        export = voc
    else:
        monkeypatch.setattr(yolo, "join_parts", lambda rings: rings[0] + 5)
        export = yolo
    with pytest.raises(Failed):
        export.write(dataset(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("geometry", "corner"),
    [
        (Rectangle((100.5, 100.5, 120.5, 120.5)), (100.5, 100.5)),
        (Polygon((((10.0, 10.0), (30.0, 30.0), (30.0, 10.0), (10.0, 30.0)),)), (10.0, 10.0)),
        (Polygon((((20.0, 20.0), (60.0, 20.0), (20.0, 60.0)),)), (20.0, 20.0)),
    ],
    ids=str,
)
def test_yolo_takes_drawn_edges_that_pass_through_the_centres_of_pixels(
    tmp_path: Path, geometry: Geometry, corner: tuple[float, float]
) -> None:
    size = (1080, 1920)
    label = accepted("a", geometry, size=size)
    made = create_dataset([labelled("a", size=size)], [label], tool="cvat", project="1")
    yolo.write(made, tmp_path / "out")
    (line,) = next((tmp_path / "out" / "labels").rglob("*.txt")).read_text().splitlines()
    points = np.array(line.split()[1:], float).reshape(-1, 2) * (1920, 1080)
    assert points.min(axis=0) == pytest.approx(corner, abs=0.002)


PARTS = Polygon((((4.5, 4.5), (20.5, 4.5), (20.5, 30.5)), ((30.5, 10.5), (60.5, 10.5), (60.5, 44.5))))
NESTED = Polygon((((4, 4), (60, 4), (60, 44), (4, 44)), ((20, 16), (20, 30), (40, 30), (40, 16))))


@pytest.mark.parametrize(
    "geometry",
    [PARTS, NESTED, Ellipse((30, 24), (25, 14), 20.0), Ellipse((60, 44), (18, 15))],
    ids=["parts", "nested", "ellipse", "clipped ellipse"],
)
def test_yolo_traces_no_pixels_of_polygons_with_parts_and_of_ellipses(
    geometry: Geometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = accepted("a", geometry)
    monkeypatch.setattr(yolo, "simplify_mask", lambda *_: pytest.fail("a mask was traced"))
    yolo.write(dataset([label], declared=["cell"]), tmp_path / "out")
    (line,) = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    points = np.array(line.split()[1:], float).reshape(-1, 2) * SIZE[::-1]
    assert mask_iou(polygons_to_mask([points], SIZE), rle_to_mask(label.rle)) >= 0.98


@pytest.mark.parametrize("length", [0.8, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("parts", [False, True])
def test_yolo_traces_the_pixels_of_what_is_too_small_to_be_near(
    length: float, parts: bool, tmp_path: Path
) -> None:
    x, y = 20.5, 20.5
    corners = ((x, y), (x + length, y), (x + length, y + length), (x, y + length))
    two = Polygon((corners, tuple((a + 8, b) for a, b in corners)))
    label = accepted("a", two if parts else Ellipse((x, y), (length, length / 2), 30.0))
    yolo.write(dataset([label], declared=["cell"]), tmp_path / "out", min_iou=1)
    (line,) = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    points = np.array(line.split()[1:], float).reshape(-1, 2) * SIZE[::-1]
    assert np.array_equal(polygons_to_mask([points], SIZE), rle_to_mask(label.rle))


def test_panoptic_numbers_each_object_in_colours_and_describes_it(tmp_path: Path) -> None:
    crowd = [
        accepted("a", rectangle(SIZE, (x, y, x + 2, y + 2)), "cell", region=f"{y:02}-{x:02}")
        for y in range(0, 40, 2)
        for x in range(0, 40, 2)
    ]
    under = accepted("a", rectangle(SIZE, (2, 2, 6, 6)), "nucleus", region="z", layer=-1)
    made = dataset([*crowd, under, *LABELS[2:]])
    main = panoptic.write(made, tmp_path / "out")
    described = json.loads(main.read_text())
    assert [each["name"] for each in described["categories"]] == ["cell", "nucleus"]
    assert [each["side"] for each in described["images"]] == ["train", "validation", "test", None]
    first, second, *_ = described["annotations"]
    assert len(first["segments_info"]) == 400  # the label below four others is not to be seen
    with PIL.Image.open(tmp_path / "out" / "panoptic" / first["file_name"]) as opened:
        red, green, blue = np.moveaxis(np.asarray(opened).astype(int), -1, 0)
    ids = red + 256 * green + 65536 * blue
    assert set(np.unique(ids)) == {0, *(each["id"] for each in first["segments_info"])}
    for each in first["segments_info"]:
        rows, columns = np.nonzero(ids == each["id"])
        x, y, width, height = each["bbox"]
        assert each["area"] == len(rows) == 4
        assert (x, y, width, height) == (columns.min(), rows.min(), 2, 2)
    assert sum(each["area"] for each in second["segments_info"]) == (ring() | two_parts()).sum()
    assert panoptic.losses(made)[0].startswith("1 labels cover no pixel")
    again = panoptic.write(made, tmp_path / "again")
    assert again.read_bytes() == main.read_bytes()
