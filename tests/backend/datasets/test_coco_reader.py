from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from clickmask.datasets.coco_reader import sample_objects
from clickmask.errors import InvalidRequest
from clickmask.masks.rle import mask_to_rle
from support.coco_folders import flat, write_annotations, write_dataset, write_picture
from support.drawn import disc, rectangle, ring

SIZE = (20, 30)
SQUARE = [[4.0, 5.0, 14.0, 5.0, 14.0, 15.0, 4.0, 15.0]]  # 10 x 10 px


def one_picture(folder: Path, *annotations: dict[str, Any]) -> Path:
    write_picture(folder / "images" / "a.png", flat(SIZE))
    return write_annotations(folder / "annotations.json", [("a.png", SIZE)], annotations)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_polygons_and_both_kinds_of_rle_are_the_masks_that_pycocotools_reads(tmp_path: Path) -> None:
    parts = [*SQUARE, [16.5, 2.2, 28.0, 3.0, 22.1, 18.4]]
    path = one_picture(
        tmp_path,
        {"segmentation": parts},
        {"segmentation": mask_to_rle(ring(SIZE, (15, 10), 9, 4))},
        {"segmentation": {"size": list(SIZE), "counts": [100, 70, 30, 50, 350]}},
    )
    reference = COCO(path)
    for each in sample_objects(tmp_path).objects:
        expected = reference.annToMask(reference.anns[each.annotation]).astype(bool)
        assert (each.mask() == expected).all()
        assert expected.sum() >= 100


def test_overlapping_polygons_are_one_object_without_a_hole(tmp_path: Path) -> None:
    path = one_picture(tmp_path, {"segmentation": SQUARE * 2})
    assert sample_objects(path).objects[0].mask().sum() == 100


def test_crowds_specks_and_what_has_no_outline_are_left_out_and_said(tmp_path: Path) -> None:
    path = one_picture(
        tmp_path,
        {"segmentation": SQUARE},
        {"segmentation": SQUARE, "iscrowd": 1},
        {"segmentation": mask_to_rle(rectangle(SIZE, (0, 0, 7, 9)))},
        {"segmentation": []},
        {"segmentation": [[1, 1, 5, 5]]},
        {"segmentation": None},
        {"segmentation": mask_to_rle(disc((9, 9), (4, 4), 4))},
        {"segmentation": SQUARE, "image_id": 7},
    )
    sample = sample_objects(path, smallest=64)
    assert len(sample.objects) == 1
    assert sample.left_out == {
        "crowd regions": 1,
        "smaller than 64 px": 1,
        "without an outline": 4,
        "of no image": 1,
    }
    assert len(sample_objects(path, smallest=63).objects) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["annotations"][0].pop("id"),
        lambda content: content["annotations"][0].pop("image_id"),
        lambda content: content["annotations"][0].pop("category_id"),
        lambda content: content["annotations"][0].update(segmentation=[["a", "b", 1, 2, 3, 4]]),
        lambda content: content["annotations"].insert(0, "text"),
        lambda content: content["images"][0].update(height=None),
        lambda content: content["images"][0].pop("file_name"),
        lambda content: content["images"][0].update(file_name="x" * 5000),
        lambda content: content["images"][0].update(height=10**9, width=10**9),
        lambda content: content["images"][0].update(height="9" * 5000),
        *(
            lambda content, bad=bad: content["annotations"][0].update(segmentation=bad)
            for bad in (
                [[[], [], [], [], [], []]],  # pycocotools would read the memory behind it
                [[0, 0, 1e9, 0, 1e9, 1e9]],  # and walk along each edge
                [[0, 0, float("nan"), 0, 9, 9]],
                [[0, 0, 10**400, 0, 9, 9]],
                ["0, 0, 9, 9"],
                {"size": list(SIZE), "counts": [-1, SIZE[0] * SIZE[1] + 1]},
                {"size": list(SIZE), "counts": [2**70]},
                {"size": list(SIZE), "counts": ["x"]},
                {"size": list(SIZE), "counts": []},
                {"size": list(SIZE), "counts": "\u00e9"},
                {"size": list(SIZE)},
                {"size": 5},
            )
        ),
    ],
)
def test_damaged_rows_are_left_out_and_said(tmp_path: Path, damage: Callable[[Any], object]) -> None:
    path = one_picture(tmp_path, {"segmentation": SQUARE}, {"segmentation": SQUARE})
    content = json.loads(path.read_text())
    content["categories"] = 5
    content["images"].append({**content["images"][0], "id": 2})
    content["annotations"][1]["image_id"] = 2
    damage(content)
    path.write_text(json.dumps(content))
    found = sample_objects(path)
    assert found.left_out == {"damaged": 1}


def test_a_sample_is_the_same_for_the_same_seed_and_by_picture(tmp_path: Path) -> None:
    masks = [rectangle(SIZE, (x, 0, x + 8, 10)) for x in range(0, 20, 2)]
    write_dataset(tmp_path, [(flat(SIZE), masks) for _ in range(6)])
    samples = [sample_objects(tmp_path, 12, seed).objects for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    names = [each.picture.name for each in samples[0]]
    assert len(names) == 12
    assert names == sorted(names)
    assert len(sample_objects(tmp_path).objects) == 60


@pytest.mark.parametrize(
    ("annotations", "picture", "file_name"),
    [
        ("annotations.json", "images/a.png", "a.png"),
        ("annotations.json", "a.png", "a.png"),
        ("annotations.json", "images/a.png", "images/a.png"),
        ("_annotations.coco.json", "a.png", "a.png"),
        ("annotations/instances_val2017.json", "val2017/a.png", "a.png"),
        ("annotations/instances_default.json", "images/default/a.png", "a.png"),
        ("annotations/instances.json", "images/left/a.png", "left\\a.png"),
    ],
)
def test_pictures_are_found_where_exporters_put_them(
    tmp_path: Path, annotations: str, picture: str, file_name: str
) -> None:
    write_picture(tmp_path / picture, flat(SIZE))
    write_annotations(tmp_path / annotations, [(file_name, SIZE)], [{"segmentation": SQUARE}])
    assert sample_objects(tmp_path).objects[0].picture == tmp_path / picture


def test_an_annotation_file_may_be_named_itself(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.png", flat(SIZE))
    path = write_annotations(
        tmp_path / "annotations" / "b.json", [("a.png", SIZE)], [{"segmentation": SQUARE}]
    )
    assert sample_objects(path).objects[0].picture == tmp_path / "images" / "a.png"


def test_a_picture_is_never_read_from_outside_of_the_dataset(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.png", flat(SIZE))
    for name in ("../secret.png", str(tmp_path / "secret.png"), "gone.png"):
        path = write_annotations(tmp_path / "set" / "a.json", [(name, SIZE)], [{"segmentation": SQUARE}])
        with pytest.raises(
            InvalidRequest, match=r"a\.json has no object to take: 1 whose picture is missing"
        ):
            sample_objects(path)


def test_of_several_annotation_files_the_one_kept_for_validation_is_taken(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.png", flat(SIZE))
    for name in ("train", "test", "val"):
        write_annotations(tmp_path / f"{name}.json", [("a.png", SIZE)], [{"segmentation": SQUARE}])
    (tmp_path / "captions_val.json").write_text(
        json.dumps({"images": [], "annotations": [{"caption": "a cat"}]})
    )
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "pictures.json").write_text('{"images": []}')
    (tmp_path / "notes.json").write_text("{not json")
    assert sample_objects(tmp_path).annotations.name == "val.json"
    (tmp_path / "val.json").unlink()
    assert sample_objects(tmp_path).annotations.name == "test.json"
    (tmp_path / "test.json").rename(tmp_path / "more.json")
    with pytest.raises(InvalidRequest, match=r"give one of the files: more\.json, train\.json"):
        sample_objects(tmp_path)


def test_what_is_no_dataset_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no dataset nowhere"):
        sample_objects(tmp_path / "nowhere")
    with pytest.raises(InvalidRequest, match="has no COCO annotation file"):
        sample_objects(tmp_path)
    (tmp_path / "a.json").write_text("[" * 10**5)
    with pytest.raises(InvalidRequest, match=r"a\.json is no COCO annotation file"):
        sample_objects(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InvalidRequest, match=r"a\.json is no COCO annotation file"):
        sample_objects(tmp_path / "a.json")
    with pytest.raises(InvalidRequest, match="it has no annotations"):
        sample_objects(write_annotations(tmp_path / "b.json", [], []))
