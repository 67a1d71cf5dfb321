from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools.coco import COCO

from clickmask.datasets.snapshot import Dataset, create_dataset
from clickmask.errors import Failed
from clickmask.images.decode import decode_image
from clickmask.labels.geometry import Ellipse, Geometry, Polygon, Rectangle
from clickmask.labels.split import Assigned, Side, fingerprint
from clickmask.labels.submissions import AcceptedLabel, LabelledImage
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import rle_area, rle_to_mask
from clickmask_adapters.exports import coco
from support.drawn import MASKS, disc, ring, two_parts
from support.labelled import FilesInMemory, accepted, brush, digest_of, labelled, noise, png, polygon

# pycocotools 2.0.x returns arrays in a way that numpy 2 is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HERE = {"tool": "label_studio", "project": "7"}
TRIANGLE = ((10.5, 10.0), (30.0, 10.25), (28.0, 30.0))


def dataset(labels: list[AcceptedLabel], images: list[LabelledImage] | None = None, **more: Any) -> Dataset:
    return create_dataset(images or [labelled("a")], labels, **HERE, **more)


def written(made: Dataset, folder: Path, **options: Any) -> dict[str, Any]:
    return json.loads(coco.write(made, folder / "out", **options).read_text())


def read(made: Dataset, folder: Path, **options: Any) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(coco.write(made, folder / "out", **options)))


def one(geometry: Geometry | np.ndarray, folder: Path, **options: Any) -> dict[str, Any]:
    (annotation,) = written(dataset([accepted("a", geometry)]), folder, **options)["annotations"]
    return annotation


def test_the_sections_are_complete_and_ids_begin_at_one(tmp_path: Path) -> None:
    labels = [accepted(image, disc(), category, region=category) for image in "ba" for category in ("y", "x")]
    made = written(dataset(labels, [labelled("b"), labelled("a")], declared=["y", "z"]), tmp_path)
    assert set(made["info"]) == {
        *("description", "url", "version", "year", "contributor", "date_created", "tool", "project")
    }
    assert made["licenses"] == [{"id": 1, "name": "unknown", "url": ""}]
    assert made["categories"] == [
        {"id": number, "name": name, "supercategory": ""} for number, name in enumerate("yzx", 1)
    ]
    assert [(image["id"], image["file_name"]) for image in made["images"]] == [(1, "a.png"), (2, "b.png")]
    assert {image["license"] for image in made["images"]} == {1}
    assert (made["images"][0]["width"], made["images"][0]["height"]) == (64, 48)
    assert [(a["id"], a["image_id"], a["category_id"]) for a in made["annotations"]] == [
        (1, 1, 3), (2, 1, 1), (3, 2, 3), (4, 2, 1),
    ]  # fmt: skip
    assert made["annotations"][0]["attributes"] == {"region": "label_studio/7/1/1/x"}


def test_a_polygon_without_holes_is_the_annotators_own_ring(tmp_path: Path) -> None:
    annotation = one(Polygon((TRIANGLE,)), tmp_path)
    assert annotation["segmentation"] == [[value for point in TRIANGLE for value in point]]
    assert annotation["iscrowd"] == 0


def test_each_side_has_a_file_of_its_own_if_that_is_asked_for(tmp_path: Path) -> None:
    sides: dict[str, Side] = {"a": "train", "b": "validation", "c": "train"}
    labels = [
        accepted(name, disc(), category, task=name) for name, category in zip("abcd", "xyxy", strict=True)
    ]
    placed = [Assigned(digest_of(name), side, fingerprint(noise(ord(name)))) for name, side in sides.items()]
    images = [labelled(name, name, "same.png") for name in "abcd"]  # the image "d" has no side
    pictures = FilesInMemory({name: png(noise(ord(name))) for name in "abcd"})
    made = create_dataset(images, labels, placed, **HERE, pictures=pictures)
    main = coco.write(made, tmp_path / "out", by_side=True)
    assert main.name == "instances_train.json"
    found = {path.name: json.loads(path.read_bytes()) for path in main.parent.iterdir()}
    assert {name: len(each["annotations"]) for name, each in found.items()} == {
        "instances_train.json": 2, "instances_val.json": 1, "instances_unused.json": 1,
    }  # fmt: skip
    assert {str(each["categories"]) for each in found.values()} == {str(found[main.name]["categories"])}
    listed = {image["file_name"] for each in found.values() for image in each["images"]}
    assert listed == {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert len(listed) == 4
    assert coco.write(dataset([], []), tmp_path / "none", by_side=True).exists()


@pytest.mark.parametrize(
    "geometry",
    [
        polygon((50.0, 40.0), (90.0, 40.0), (90.0, 70.0), (50.0, 70.0)),
        polygon((-20.0, 10.0), (30.0, -20.0), (60.0, 60.0)),
        Rectangle((50, 40, 90, 70)),
        Rectangle((-10, -10, 30, 20), 30.0),
    ],
)
def test_what_was_drawn_beyond_the_picture_is_clipped_to_it(geometry: Geometry, tmp_path: Path) -> None:
    annotation = one(geometry, tmp_path)
    (flat,) = annotation["segmentation"]
    points = np.array(flat).reshape(-1, 2)
    x, y, across, down = annotation["bbox"]
    assert (points >= (x - 1, y - 1)).all()
    assert (points <= (min(64, x + across + 1), min(48, y + down + 1))).all()
    assert annotation["area"] == pytest.approx(rle_area(accepted("a", geometry).rle), rel=0.05)


@pytest.mark.parametrize(
    "geometry",
    [
        brush(disc()),
        Ellipse((30, 20), (9, 6), 20.0),
        Polygon((TRIANGLE, ((18, 14), (24, 14), (24, 18)))),
        Polygon((TRIANGLE, ((40, 34), (50, 34), (50, 40)))),
    ],
    ids=["brush", "ellipse", "hole", "two parts"],
)
def test_all_else_is_run_lengths_of_exactly_the_mask(geometry: Geometry, tmp_path: Path) -> None:
    label = accepted("a", geometry)
    annotation = one(geometry, tmp_path)
    assert annotation["segmentation"] == {"size": [48, 64], "counts": label.rle["counts"]}
    assert annotation["area"] == rle_to_mask(label.rle).sum()
    assert annotation["iscrowd"] == 0


def test_a_rotated_rectangle_has_its_four_corners(tmp_path: Path) -> None:
    (corners,) = one(Rectangle((20, 10, 40, 20), 90.0), tmp_path)["segmentation"]
    assert np.allclose(np.reshape(corners, (4, 2)), [(35, 5), (35, 25), (25, 25), (25, 5)])


def test_area_and_box_are_those_of_what_pycocotools_reads(tmp_path: Path) -> None:
    labels = [
        accepted("a", Polygon((TRIANGLE,)), region="1"),
        accepted("a", Rectangle((3.3, 4.4, 20.7, 30.2), 33.0), region="2"),
        accepted("a", ring(), region="3"),
    ]
    loaded = read(dataset(labels), tmp_path)
    for annotation in loaded.anns.values():
        mask = loaded.annToMask(annotation).astype(bool)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == [
            columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1,
        ]  # fmt: skip


@pytest.mark.parametrize("polygons", ["source", "exact"])
@pytest.mark.parametrize("name", [name for name in MASKS if name != "empty"])
def test_a_mask_comes_back_exactly(name: str, polygons: coco.Polygons, tmp_path: Path) -> None:
    mask = MASKS[name]()
    made = dataset([accepted("a", mask, size=mask.shape)], [labelled("a", size=mask.shape)])
    loaded = read(made, tmp_path, polygons=polygons)
    assert np.array_equal(loaded.annToMask(loaded.anns[1]), mask)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=10)).filter(np.any))
def test_any_mask_comes_back_exactly(tmp_path: Path, mask: np.ndarray) -> None:
    made = dataset([accepted("a", mask, size=mask.shape)], [labelled("a", size=mask.shape)])
    for polygons in ("source", "exact"):
        loaded = read(made, tmp_path, polygons=polygons)
        assert np.array_equal(loaded.annToMask(loaded.anns[1]), mask)
        assert loaded.anns[1]["area"] == mask.sum()


coordinates = st.floats(-20, 80).map(lambda value: round(value, 2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_any_ring_is_written_so_that_it_reads_back(tmp_path: Path, points: list[tuple[float, float]]) -> None:
    """Also one that crosses itself, leaves the image or has no area."""
    label = accepted("a", Polygon((tuple(points),)))
    annotations = written(dataset([label]), tmp_path)["annotations"]
    assert len(annotations) == bool(rle_to_mask(label.rle).any())


def test_exact_polygons_are_used_where_topology_allows_them(tmp_path: Path) -> None:
    assert len(one(two_parts(), tmp_path, polygons="exact")["segmentation"]) == 2
    assert isinstance(one(ring(), tmp_path, polygons="exact")["segmentation"], dict)


def test_simplified_polygons_have_few_points_and_a_high_iou(tmp_path: Path) -> None:
    loaded = read(dataset([accepted("a", disc())]), tmp_path, polygons="simplified")
    (ring_written,) = loaded.anns[1]["segmentation"]
    assert len(ring_written) < len(one(disc(), tmp_path, polygons="exact")["segmentation"][0]) / 2
    assert mask_iou(loaded.annToMask(loaded.anns[1]).astype(bool), disc()) > 0.9


def test_cvat_reads_masks_as_crowds_of_plain_runs(tmp_path: Path) -> None:
    for mask in (disc(), np.ones((48, 64), bool)):
        loaded = read(dataset([accepted("a", mask)]), tmp_path, for_cvat=True)
        assert loaded.anns[1]["iscrowd"] == 1
        assert isinstance(loaded.anns[1]["segmentation"]["counts"], list)
        assert np.array_equal(loaded.annToMask(loaded.anns[1]), mask)
    assert one(Polygon((TRIANGLE,)), tmp_path, for_cvat=True)["iscrowd"] == 0


def test_cvat_finds_its_frames_by_their_whole_names(tmp_path: Path) -> None:
    images = [
        labelled("a", task="9", name="0001.png", known_as="seq1/0001.png"),
        labelled("b", task="9", name="0001.png", known_as="seq2/0001.png", item=1),
        labelled("c", task="9", name="clip-000000.png", known_as="frame_000000.png", item=2),
    ]
    kept = FilesInMemory({name: png(noise(ord(name))) for name in "abc"})
    made = dataset([accepted("b", disc(), task="9", item=1)], images, pictures=kept)
    content = written(made, tmp_path, for_cvat=True)
    named = {image["file_name"]: image["digest"] for image in content["images"]}
    assert named == {image.known_as: image.digest for image in images}
    for name, digest in named.items():
        assert (tmp_path / "out" / "images" / name).read_bytes() == kept.read(digest)
    (annotation,) = content["annotations"]
    assert content["images"][annotation["image_id"] - 1]["file_name"] == "seq2/0001.png"
    assert not [loss for loss in coco.losses(made, for_cvat=True) if "file name" in loss]
    assert {image["file_name"] for image in written(made, tmp_path)["images"]} == {
        f"{digest_of('a')[:8]}-0001.png", f"{digest_of('b')[:8]}-0001.png", "clip-000000.png",
    }  # fmt: skip


def test_cvat_gets_a_picture_of_several_frames_by_the_name_of_each(tmp_path: Path) -> None:
    """With the same labels, as one set counts."""
    images = [
        labelled("a", task="2", known_as="one.png"),
        labelled("a", task="10", known_as="again/one.png"),
        labelled("a", task="11", known_as="one.png", at=2000.0),
    ]
    content = written(dataset([accepted("a", disc(), task="11")], images), tmp_path, for_cvat=True)
    assert [image["file_name"] for image in content["images"]] == ["one.png", "again/one.png"]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 2]
    assert len({json.dumps(each["segmentation"]) for each in content["annotations"]}) == 1
    plain = written(dataset([accepted("a", disc(), task="11")], images), tmp_path)
    assert len(plain["images"]) == len(plain["annotations"]) == 1


def test_frames_of_one_name_in_several_tasks_stay_apart_as_in_cvats_own_exports(tmp_path: Path) -> None:
    name = "set/frame_000000.png"
    images = [
        labelled("a", task="10", known_as=name),
        labelled("b", task="9", known_as=name),
        labelled("c", task="11", known_as="set/frame_000000_1.png"),
        labelled("d", task="12", name="d.png"),  # stored before such names were
    ]
    made = dataset([], images)
    content = written(made, tmp_path, for_cvat=True)
    assert {image["file_name"]: image["digest"] for image in content["images"]} == {
        name: digest_of("b"),
        "set/frame_000000_1.png": digest_of("c"),
        "set/frame_000000_2.png": digest_of("a"),
        "d.png": digest_of("d"),
    }
    assert [loss for loss in coco.losses(made, for_cvat=True) if "file name" in loss] == [
        "1 images have another file name: their frame's is that of another picture in another task"
    ]
    tasks = {path.name for path in (tmp_path / "out" / "tasks").iterdir()}
    assert tasks == {"9.json", "10.json", "11.json"}


def test_each_of_several_tasks_of_cvat_has_a_file_of_its_own(tmp_path: Path) -> None:
    """CVAT refuses a file with frames that the task does not have."""
    images = [
        labelled("a", task="9", known_as="frame_000000.png", at=2000.0),
        labelled("b", task="10", known_as="frame_000000.png", item=0),
        labelled("a", task="10", known_as="frame_000001.png", item=1),
    ]
    labels = [
        accepted("a", disc(), task="9", at=2000.0),
        accepted("b", ring(), "nucleus", task="10", region="1"),
    ]
    main = coco.write(dataset(labels, images), tmp_path / "out", for_cvat=True)
    assert main == tmp_path / "out" / "annotations" / "instances_default.json"
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "tasks").iterdir()}
    drawn = {
        name: {
            image["file_name"]: [each["category_id"] for each in content["annotations"]
                                 if each["image_id"] == image["id"]]
            for image in content["images"]
        }
        for name, content in found.items()
    }  # fmt: skip
    assert drawn == {
        "9.json": {"frame_000000.png": [1]},
        "10.json": {"frame_000000.png": [2], "frame_000001.png": [1]},
    }


def test_a_frames_name_never_leaves_the_folder(tmp_path: Path) -> None:
    images = [
        labelled("a", known_as="../../../a.png"),
        labelled("b", known_as="/etc/b.png", item=1),
        labelled("c", known_as="..", item=2),
    ]
    kept = FilesInMemory({name: png(noise(ord(name))) for name in "abc"})
    written(dataset([], images, pictures=kept), tmp_path / "deep", for_cvat=True)
    inside = tmp_path / "deep" / "out" / "images"
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert {str(path.relative_to(inside)) for path in inside.rglob("*") if path.is_file()} == {
        "a.png", "etc/b.png", digest_of("c"),
    }  # fmt: skip


def test_a_label_that_covers_nothing_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    made = dataset([accepted("a", polygon((100, 100), (120, 100), (110, 130)))])
    assert written(made, tmp_path)["annotations"] == []
    assert "1 labels cover no pixel and are left out" in coco.losses(made)


def test_a_polygon_that_pycocotools_sees_nothing_of_becomes_run_lengths(tmp_path: Path) -> None:
    sliver = polygon((10.45, 3.0), (10.55, 3.0), (10.55, 40.0), (10.45, 40.0))
    label = accepted("a", sliver)
    assert rle_to_mask(label.rle).sum() == 37
    annotation = one(sliver, tmp_path)
    assert annotation["area"] > 0


def test_what_coco_cannot_say_is_said() -> None:
    labels = [
        accepted("a", Ellipse((30, 20), (9, 6), 20.0), region="1"),
        accepted("a", Rectangle((20, 10, 40, 20), 45.0), region="2"),
        accepted("a", Polygon((TRIANGLE, ((40, 34), (50, 34), (50, 40)))), region="3"),
        accepted("a", Polygon((TRIANGLE,)), region="4"),
    ]
    said = "\n".join(coco.losses(dataset(labels, unlabelled="ignore")))
    assert "1 ellipses" in said
    assert "1 rotated rectangles" in said
    assert "1 polygons with holes or parts" in said
    assert "area without a label is unknown" in said
    assert "IoU" in said
    assert not any("IoU" in sentence for sentence in coco.losses(dataset(labels), polygons="exact"))


def test_pictures_are_written_under_their_names_and_prefixed_where_two_share_one(tmp_path: Path) -> None:
    images = [
        labelled("a", "1", "folder/Cat.png"),
        labelled("b", "2", "cat.png"),
        labelled("c", "3", "dog.png"),
        labelled("d", "4", f"{digest_of('b')[:8]}-cat.png"),
    ]
    pictures = FilesInMemory({name: png(noise(ord(name))) for name in "abcd"})
    made = dataset([accepted("a", disc())], images, pictures=pictures)
    names = {image["digest"]: image["file_name"] for image in written(made, tmp_path)["images"]}
    assert names[digest_of("c")] == "dog.png"
    assert names[digest_of("a")] == f"{digest_of('a')[:8]}-Cat.png"
    assert names[digest_of("b")] == f"{digest_of('b')}-cat.png"
    assert len(set(names.values())) == 4
    for digest, name in names.items():
        assert (tmp_path / "out" / "images" / name).read_bytes() == pictures.files[digest]


def test_a_picture_turned_by_exif_is_written_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(noise(1, (64, 48))).save(file, "JPEG", exif=exif, quality=95)
    made = dataset([accepted("a", disc())], pictures=FilesInMemory({"a": file.getvalue()}))
    coco.write(made, tmp_path / "out")
    with PIL.Image.open(tmp_path / "out" / "images" / "a.png") as shown:
        assert shown.size == (64, 48)
        assert not shown.getexif()
        pixels = np.asarray(shown).astype(int)
    displayed = decode_image(file.getvalue()).pixels
    assert np.abs(pixels - displayed).mean() < 4
    assert any("turned upright" in sentence for sentence in coco.losses(made))


def test_an_export_that_reads_back_differently_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dataset([accepted("a", disc(), region="1"), accepted("a", ring(), region="2")])
    right = coco._content

    def swapped(*given: Any) -> dict[str, Any]:
        content = right(*given)
        one, other = content["annotations"]
        one["segmentation"], other["segmentation"] = other["segmentation"], one["segmentation"]
        return content

    monkeypatch.setattr(coco, "_content", swapped)
    with pytest.raises(Failed, match="annotation 1"):
        coco.write(made, tmp_path / "out")
    monkeypatch.setattr(coco, "_content", lambda *given: right(*given) | {"categories": []})
    with pytest.raises(Failed, match="images, categories"):
        coco.write(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_picture_of_an_export_for_cvat_takes_the_place_of_another(tmp_path: Path) -> None:
    frames = {"a": "x/a?.jpg", "b": "x/a_.jpg", "c": "X/A_.JPG", "d": "cat.jpg", "e": "cat.jpg/1.jpg"}
    images = [labelled(image, item=n, known_as=name) for n, (image, name) in enumerate(frames.items())]
    files = FilesInMemory({image: png(noise(n)) for n, image in enumerate(frames)})
    made = create_dataset(images, [], pictures=files, **HERE)
    coco.write(made, tmp_path / "out", for_cvat=True)
    written = [path.read_bytes() for path in (tmp_path / "out" / "images").rglob("*") if path.is_file()]
    assert sorted(written) == sorted(files.files.values())
