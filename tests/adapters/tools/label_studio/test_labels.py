"""From Label Studio's annotations to submissions in the domain's words."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.errors import InvalidRequest
from clickmask.labels.geometry import Brush, Ellipse, Geometry, Polygon, Rectangle, rasterise
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Change,
    ProjectDeleted,
    ProjectDescribed,
    Submission,
    TaskDeleted,
    Unreadable,
    Unsized,
)
from clickmask.masks.rle import mask_to_rle, rle_to_mask
from clickmask_adapters.tools.label_studio import label_config, labels
from clickmask_adapters.tools.label_studio.shapes import mask_to_bit_mask, mask_to_brush_rle
from support import CONTRACTS, drawn
from support.growth import grows_linearly

RECORDED = CONTRACTS / "label_studio"
CONTROLS = """<BrushLabels name="brush" toName="image"><Label value="Car"/><Label value="Road"/></BrushLabels>
<PolygonLabels name="poly" toName="image"><Label value="Tree" alias="t"/><Label value="Car"/></PolygonLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Only to ask"/></KeyPointLabels>"""
XML = f'<View><Image name="image" value="$image"/>{CONTROLS}</View>'
SIZE = (48, 64)
TASK = {"id": 7, "project": 3, "data": {"image": "/data/upload/3/e9473b6b-a photo.jpg"}}
PROJECT = {"id": 3, "title": "Streets", "label_config": XML}


def recorded(number: int) -> dict[str, Any]:
    (path,) = RECORDED.glob(f"{number:02}_*.json")
    return json.loads(path.read_text())


def changes_of(number: int) -> list[Change]:
    return list(labels.changes(recorded(number)["request"]["body"]))


def result(kind: str = "rectangle", value: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    value = {"x": 25, "y": 50, "width": 25, "height": 25, "rotation": 0} if value is None else value
    return {
        "id": "abc",
        "type": f"{kind}labels",
        "from_name": kind,
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {f"{kind}labels": ["Car"], **value},
    } | more


def annotation(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": 11,
        "task": 7,
        "project": 3,
        "result": list(results),
        "updated_at": "2026-11-22T17:45:26.980658Z",
        "completed_by": 5,
        "was_cancelled": False,
        "ground_truth": False,
    } | more


def submitted(*results: dict[str, Any], xml: str = XML, **more: Any) -> Submission:
    (only,) = labels.submissions(annotation(*results, **more), TASK, label_config.parse(xml))
    return only


def geometry(*results: dict[str, Any]) -> Geometry:
    (region,) = submitted(*results).regions
    return region.geometry


def event(action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, "project": PROJECT, **more}


@pytest.mark.parametrize("number", [13, 14, 22])
def test_recorded_annotations_are_read(number: int) -> None:
    body = recorded(number)["request"]["body"]
    described, found = labels.changes(body)
    assert isinstance(described, ProjectDescribed)
    assert described.categories == ("Car", "Road")
    assert isinstance(found, Submission)
    assert (found.tool, found.project, found.task, found.annotation) == ("label_studio", "1", "1", "1")
    assert (found.author, found.item, found.skipped, found.ground_truth) == ("1", 0, False, False)
    assert found.size == (480, 640)
    assert found.name in ("a.jpg", "plain.jpg")
    for region, sent in zip(found.regions, body["annotation"]["result"], strict=True):
        assert (region.id, region.category) == (sent["id"], sent["value"]["brushlabels"][0])
        assert isinstance(region.geometry, Brush)
        assert rasterise(region.geometry, (480, 640)).any()


def test_a_later_save_has_a_later_time() -> None:
    created, updated = (changes_of(number)[1] for number in (13, 14))
    assert isinstance(created, Submission)
    assert isinstance(updated, Submission)
    assert 1.32 < updated.updated_at - created.updated_at < 1.33


def test_a_recorded_skip_is_no_label() -> None:
    _, skipped = changes_of(15)
    assert isinstance(skipped, Submission)
    assert skipped.skipped
    assert skipped.regions == ()


def test_recorded_deletions_and_changes_of_a_project_are_read() -> None:
    assert changes_of(16) == [AnnotationDeleted("label_studio", "1")]
    assert changes_of(20) == [TaskDeleted("label_studio", "4")]
    (described,) = changes_of(18)
    assert described == ProjectDescribed("label_studio", "1", "Recorded project", ("Car", "Tree"))


def test_the_deletion_of_a_project_is_read() -> None:
    """As Label Studio's serializer writes it: an organization's webhook gets the id alone."""
    (deleted,) = labels.changes({"action": "PROJECT_DELETED", "project": {"id": 3}})
    assert deleted == ProjectDeleted("label_studio", "3")


@pytest.mark.parametrize("number", [17, 19])
def test_events_that_say_nothing_of_labels_mean_nothing(number: int) -> None:
    assert changes_of(number) == []


def test_a_recorded_bit_mask_of_the_ui_is_read() -> None:
    (found,) = recorded(32)["response_body"]
    xml = XML.replace("BrushLabels", "BitmaskLabels")
    (only,) = labels.submissions(found, {**TASK, "project": 23}, label_config.parse(xml))
    (region,) = only.regions
    assert isinstance(region.geometry, Brush)
    assert 1000 < rasterise(region.geometry, (480, 640)).sum() < 480 * 640 / 2


def test_bulk_events_match_annotations_with_their_tasks() -> None:
    other = {"id": 8, "project": 3, "data": {"image": "http://host/b.jpg"}}
    first, second = annotation(result()), annotation(result(), id=12, task=8)
    found = labels.changes(event("ANNOTATIONS_CREATED", annotation=[first, second], task=[other, TASK]))
    assert [(each.annotation, each.task, each.name) for each in found if isinstance(each, Submission)] == [
        ("11", "7", "a photo.jpg"),
        ("12", "8", "b.jpg"),
    ]


def test_the_categories_are_those_of_the_controls_that_mark_areas() -> None:
    assert labels.described(PROJECT) == ProjectDescribed("label_studio", "3", "Streets", ("Car", "Road", "t"))


def test_categories_are_in_the_order_that_the_label_config_numbers_them() -> None:
    more = """<RectangleLabels name="box" toName="image"><Label value="new"/>
    <Label value="truck" category="10"/>
    <Label value="car" alias="auto" category="1"/><Label value="odd" category="x"/></RectangleLabels>
    <PolygonLabels name="ring" toName="image"><Label value="person" category=" 2"/><Label value="truck"/>
    <Label value="zero" category="0"/><Label value="new" category="3"/></PolygonLabels>"""
    config = f'<View><Image name="image" value="$image"/>{more}</View>'
    described = labels.described(PROJECT | {"label_config": config})
    assert described.categories == ("zero", "auto", "person", "new", "truck", "odd")


@pytest.mark.parametrize("name", drawn.MASKS)
def test_brushes_and_bit_masks_are_their_masks(name: str) -> None:
    mask = drawn.MASKS[name]()
    height, width = mask.shape
    size = {"original_height": height, "original_width": width}
    brush = geometry(result("brush", {"format": "rle", "rle": mask_to_brush_rle(mask).tolist()}, **size))
    bit_mask = geometry(result("bitmask", {"imageDataURL": mask_to_bit_mask(mask)}, **size))
    assert brush == bit_mask == Brush(mask_to_rle(mask))


@given(st.integers(0, 63), st.integers(0, 47), st.integers(1, 64), st.integers(1, 48))
def test_percents_of_whole_pixels_are_whole_pixels(x: int, y: int, across: int, down: int) -> None:
    value = {"x": 100 * x / 64, "y": 100 * y / 48, "width": 100 * across / 64, "height": 100 * down / 48}
    assert geometry(result(value=value)) == Rectangle((x, y, x + across, y + down))


@given(st.floats(0, 60), st.floats(0, 40), st.floats(1, 40), st.floats(1, 40), st.floats(-360, 360))
def test_a_rectangle_turns_about_its_first_corner(
    x: float, y: float, across: float, down: float, degrees: float
) -> None:
    value = {"x": 100 * x / 64, "y": 100 * y / 48, "width": 100 * across / 64, "height": 100 * down / 48}
    found = geometry(result(value={**value, "rotation": degrees}))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    angle = math.radians(degrees)
    along = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    beside = (rows - y) * math.cos(angle) - (columns - x) * math.sin(angle)
    inside = (along > 0) & (along < across) & (beside > 0) & (beside < down)
    edges = np.stack([np.abs(along), np.abs(along - across), np.abs(beside), np.abs(beside - down)])
    doubt = edges.min(axis=0) < 1e-6
    assert np.array_equal(rasterise(found, SIZE) | doubt, inside | doubt)


def test_an_ellipse_turns_about_its_centre() -> None:
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 12.5, "rotation": 30}
    found = geometry(result("ellipse", value))
    assert found == Ellipse((32, 24), (16, 6), 30)
    assert np.array_equal(rasterise(found, SIZE), drawn.ellipse(SIZE, (32, 24), (16, 6), 30))


def test_a_polygon_keeps_the_annotators_own_points() -> None:
    value = {"points": [[10, 10], [33.333333, 10], [20, 87.5]], "closed": True}
    assert geometry(result("polygon", value)) == Polygon((((6.4, 4.8), (21.33333312, 4.8), (12.8, 42.0)),))


def test_the_rotate_tool_does_not_turn_the_coordinates() -> None:
    assert geometry(result(image_rotation=90)) == geometry(result())


def test_a_region_that_labels_tag_labels_is_one_region() -> None:
    xml = XML.replace(CONTROLS, '<Labels name="l" toName="image"><Label value="Car"/></Labels>')
    bare = {key: value for key, value in result()["value"].items() if key != "rectanglelabels"}
    shape = result("rectangle") | {"type": "rectangle", "value": bare}
    labels = shape | {"type": "labels", "from_name": "l", "value": {**bare, "labels": ["Car"]}}
    (region,) = submitted(shape, labels, xml=xml).regions
    assert (region.id, region.category) == ("abc", "Car")
    assert submitted(shape, xml=xml).regions == ()  # its label was forgotten


def test_where_nothing_is_labelled_the_control_is_the_category() -> None:
    bare = result() | {
        "type": "rectangle",
        "from_name": "outline",
        "value": {"x": 0, "y": 0, "width": 9, "height": 9},
    }
    xml = '<View><Image name="image" value="$image"/><Rectangle name="outline" toName="image"/></View>'
    (region,) = submitted(bare, xml=xml).regions
    assert region.category == "outline"


def test_what_marks_no_area_is_left_out() -> None:
    point = result("keypoint", {"x": 1, "y": 1, "width": 1}, id="point")
    text = result(id="text") | {"type": "textarea", "value": {"text": ["a"]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    assert [region.id for region in submitted(point, result(), text, relation).regions] == ["abc"]


def test_regions_that_we_proposed_name_their_proposal() -> None:
    regions = submitted(result(id="Ab-_efghijklmn12-3"), result(id="own")).regions
    assert [region.proposal for region in regions] == ["Ab-_efghijklmn12", None]


def test_each_image_of_a_task_is_a_submission_of_its_own() -> None:
    xml = f'<View><Image name="image" valueList="$pages"/><Image name="map" value="$map"/>{CONTROLS}</View>'
    task = TASK | {"data": {"pages": ["s3://b/one.png", "s3://b/two.png"], "map": "http://host/m.png?sig=1"}}
    drawn_on = annotation(result(id="second", item_index=1), result(id="map", to_name="map"))
    found = list(labels.submissions(drawn_on, task, label_config.parse(xml)))
    assert [(each.item, each.name, [region.id for region in each.regions], each.size) for each in found] == [
        (0, "one.png", [], None),
        (1, "two.png", ["second"], SIZE),
        (2, "m.png", ["map"], SIZE),
    ]
    assert {each.items for each in found} == {3}


def in_base64(address: str) -> str:
    return base64.urlsafe_b64encode(address.encode()).decode()


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/upload/3/e9473b6b-a photo.jpg", "a photo.jpg"),
        ("/studio/data/upload/3/e9473b6b-%C3%A4.png", "ä.png"),
        ("/data/local-files/?d=set/b.tif", "b.tif"),
        ("https://host/e9473b6b-c.jpg?X-Amz-Signature=secret", "e9473b6b-c.jpg"),
        ("s3://bucket/folder/d.webp", "d.webp"),
        ("s3://bucket/set/photo#1.png", "photo#1.png"),
        ("gs://bucket/set/100%25 of it?.png", "100%25 of it?.png"),
        ("azure-blob://container", "task-7"),
        ("/storage-data/uploaded/?filepath=upload/7/0123abcd-cow%20one.jpg", "cow one.jpg"),
        ("https://ls/x/storage-data/uploaded?filepath=upload%2F7%2F0123abcd-scan", "scan"),
        ("/tasks/5/presign/?fileuri=czM6Ly9idWNrZXQvc2V0L2RlZXAucG5n", "deep.png"),
        ("/projects/5/resolve/?fileuri=" + in_base64("gs://b/é #1?~~.jpg").rstrip("="), "é #1?~~.jpg"),
        ("/tasks/5/presign?fileuri=s3%3A%2F%2Fbucket%2Fplain.png", "plain.png"),
        ("/tasks/5/presign/", "task-7"),
        ("/data/local-files/?d=set/100%2525.png", "100%25.png"),
        ("/data/local-files/", "task-7"),
        ("http://host/download?id=77", "download"),
        ("http://host/get.php?id=7&file=set/e.JPG&size=1", "e.JPG"),
        ("http://host/f.png?from=g.png", "f.png"),
        ("http://host/show?url=https%3A%2F%2Fother%2Fh.png%3Fw%3D9&w=640", "h.png"),
        ("http://host/i.jpg/download", "i.jpg"),
        ("/data/local-files/?d=C:\\set\\j.png", "j.png"),
        (" http://host/k.png\n", "k.png"),
        ("data:image/PNG;base64,AAAA", "task-7.png"),
        ("data:,x", "task-7.img"),
        ("http://host/", "task-7"),
        ("http://[", "task-7"),
    ],
)
def test_an_image_is_called_as_before_it_was_uploaded(uri: str, name: str) -> None:
    task = TASK | {"data": {"image": uri}}
    (found,) = labels.submissions(annotation(), task, label_config.parse(XML))
    assert (found.name, found.address, found.size) == (name, uri.strip(), None)


@pytest.mark.parametrize(("completed_by", "author"), [(5, "5"), ({"id": 6, "email": "a@b"}, "6"), (None, "")])
def test_the_author_is_a_number(completed_by: object, author: str) -> None:
    assert submitted(completed_by=completed_by).author == author


def test_ground_truth_and_skips_are_told() -> None:
    assert submitted(ground_truth=True).ground_truth
    assert submitted(result(), was_cancelled=True).skipped


DAMAGED = {
    "no labels list": result() | {"value": "text"},
    "a polygon of two points": result("polygon", {"points": [[1, 1], [2, 2]]}),
    "points that are no pairs": result("polygon", {"points": [[1], [2], [3]]}),
    "a coordinate that is no number": result(value={"x": "a", "y": 1, "width": 1, "height": 1}),
    "no width": result(value={"x": 1, "y": 1}),
    "a brush that is cut off": result("brush", {"rle": mask_to_brush_rle(drawn.disc()).tolist()[:40]}),
    "a brush of another size": result("brush", {"rle": mask_to_brush_rle(drawn.full()).tolist()}),
    "a bit mask of another size": result("bitmask", {"imageDataURL": mask_to_bit_mask(drawn.full())}),
}


@pytest.mark.parametrize(
    "where",
    [{"to_name": "elsewhere"}, *({"item_index": index} for index in (4, -1, "1", True, 0.5, [0]))],
    ids=str,
)
def test_a_region_on_an_image_that_the_task_does_not_show_is_named_and_the_others_are_taken(
    where: dict[str, Any],
) -> None:
    xml = f'<View><Image name="image" valueList="$pages"/>{CONTROLS}</View>'
    task = TASK | {"data": {"pages": ["s3://b/one.png", "s3://b/two.png"]}}
    made = annotation(result(id="good", item_index=1.0), result(id="astray", **where))
    first, second, refused = labels.submissions(made, task, label_config.parse(xml))
    assert isinstance(first, Submission) and isinstance(second, Submission)
    assert [region.id for region in (*first.regions, *second.regions)] == ["good"]
    # It may have been meant for the first page, which is no example of nothing then.
    assert (first.left_out, second.left_out) == ({"misplaced rectangle": 1}, {})
    assert isinstance(refused, Unreadable)
    assert "task 7, annotation 11: region 'astray' is left out: the task shows no image" in refused.reason


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_region_is_named_and_the_others_are_taken(name: str) -> None:
    drawn_on = annotation(result(id="one"), DAMAGED[name] | {"id": "bad"}, result(id="two"))
    found, unreadable = labels.submissions(drawn_on, TASK, label_config.parse(XML))
    assert isinstance(found, Submission)
    assert [region.id for region in found.regions] == ["one", "two"]
    assert found.left_out == {f"damaged {DAMAGED[name]['type'].removesuffix('labels')}": 1}
    assert isinstance(unreadable, Unreadable)
    assert "task 7, annotation 11: region 'bad' is damaged and left out" in unreadable.reason


@pytest.mark.parametrize(
    "sides",
    [
        {},
        *(
            {"original_width": side, "original_height": side}
            for side in (None, 0, -64, 64.5, "64", True, 1e9)
        ),
        {"original_width": 64},
    ],
    ids=str,
)
def test_regions_that_give_no_size_are_percent_of_the_fetched_image(sides: dict[str, Any]) -> None:
    unsized = {key: value for key, value in result().items() if not key.startswith("original_")} | sides
    tilted = result(value={"x": 25, "y": 50, "width": 25, "height": 25, "rotation": 30}, id="tilted")
    bad = result("polygon", {"points": [[1, 1]]}, id="bad")
    (found,) = labels.submissions(annotation(unsized), TASK, label_config.parse(XML))
    assert isinstance(found, Unsized)
    assert (found.submission.size, found.submission.regions) == (None, ())
    assert found.read(SIZE) == [replace(found.submission, regions=submitted(result()).regions)]
    some = annotation(*({**each, "original_width": None, "original_height": None} for each in (tilted, bad)))
    (found,) = labels.submissions(some, TASK, label_config.parse(XML))
    assert isinstance(found, Unsized)
    read, unreadable = found.read(SIZE)
    assert isinstance(read, Submission)
    assert read.regions == submitted(tilted).regions
    assert isinstance(unreadable, Unreadable)


def test_a_size_in_floats_and_one_that_another_region_gives_are_taken() -> None:
    floats = result(id="floats", original_width=64.0, original_height=48.0)
    nothing = result(id="nothing", original_width=None, original_height=None)
    found = submitted(floats, nothing)
    assert found.size == SIZE
    assert {region.geometry for region in found.regions} == {submitted(result()).regions[0].geometry}


def test_a_choice_about_a_region_is_not_its_category() -> None:
    choice = {"type": "choices", "from_name": "seen", "value": {"choices": ["Occluded"]}}
    taxonomy = {"type": "taxonomy", "from_name": "kind", "value": {"taxonomy": [["A", "B"]]}}
    bare = result(value={"rectanglelabels": []}, id="c")
    bare["value"] |= {"x": 1, "y": 1, "width": 9, "height": 9}
    for first, second in (
        (result(id="a"), result(id="a") | choice),
        (result(id="a") | taxonomy, result(id="a")),
    ):
        found = submitted(first, second, bare, result(id="c") | choice)
        assert [(region.id, region.category) for region in found.regions] == [("a", "Car")]
        assert found.left_out == {"unlabelled rectangle": 1}


def test_the_same_id_twice_on_a_page_and_on_two_pages_is_as_many_regions() -> None:
    other = result(value={"x": 1, "y": 1, "width": 9, "height": 9})
    found = submitted(result(), other)
    assert [region.id for region in found.regions] == ["abc", "abc~2"]
    assert len({region.geometry for region in found.regions}) == 2
    xml = f'<View><Image name="image" valueList="$pages"/>{CONTROLS}</View>'
    task = TASK | {"data": {"pages": ["s3://b/one.png", "s3://b/two.png"]}}
    pages = labels.submissions(
        annotation(result(item_index=0), result(item_index=1)), task, label_config.parse(xml)
    )
    assert [len(each.regions) for each in pages if isinstance(each, Submission)] == [1, 1]


def test_a_text_projects_events_say_nothing() -> None:
    project = PROJECT | {"label_config": '<View><Text name="t" value="$t"/></View>'}
    task = {"id": 7, "project": 3, "data": {"t": "words"}}
    read = event("ANNOTATION_CREATED", annotation=annotation(), task=task) | {"project": project}
    assert list(labels.changes(read)) == []


def test_key_points_and_open_vectors_are_counted_as_left_out() -> None:
    point = result("keypoint", {"x": 1, "y": 1, "width": 1}, id="point")
    line = result("vector", {"vertices": vertices((1, 1), (9, 9)), "closed": False}, id="line")
    found = submitted(point, line)
    assert found.regions == ()
    assert found.left_out == {"keypoint": 1, "vector": 1}


def vertices(*points: tuple[float, float]) -> list[dict[str, Any]]:
    before: list[str | None] = [None, *(f"v{number}" for number in range(len(points)))]
    return [
        {"id": f"v{number}", "x": x, "y": y, "prevPointId": before[number], "isBezier": False}
        for number, (x, y) in enumerate(points)
    ]


def test_a_closed_vector_is_a_polygon_whatever_the_order_of_its_vertices() -> None:
    outline = vertices((10, 10), (60, 10), (60, 60))
    (region,) = submitted(result("vector", {"vertices": outline[::-1], "closed": True})).regions
    assert isinstance(region.geometry, Polygon)
    (polygon,) = submitted(result("polygon", {"points": [[10, 10], [60, 10], [60, 60]]})).regions
    assert isinstance(polygon.geometry, Polygon)
    assert region.geometry.rings == polygon.geometry.rings


def test_an_outline_that_the_ui_closed_is_read_and_one_that_goes_round_for_ever_is_damaged() -> None:
    outline = vertices((10, 10), (60, 10), (60, 60))
    outline[0]["prevPointId"] = "v2"  # as the UI stores it
    (region,) = submitted(result("vector", {"vertices": outline, "closed": True})).regions
    assert isinstance(region.geometry, Polygon)
    assert len(region.geometry.rings[0]) == 3
    outline = vertices((10, 10), (60, 10), (60, 60))
    outline[2]["id"] = "v0"
    for endless in (outline, [{"id": None, "prevPointId": None, "x": 1, "y": 1}], []):
        drawn_on = annotation(result("vector", {"vertices": endless, "closed": True}), result(id="good"))
        found, unreadable = labels.submissions(drawn_on, TASK, label_config.parse(XML))
        assert isinstance(found, Submission) and isinstance(unreadable, Unreadable)
        assert [each.id for each in found.regions] == ["good"]


@pytest.mark.parametrize(
    "odd",
    [
        result("vector", {"vertices": [[1, 2], [3, 4], [5, 6]], "closed": True}),
        result("bitmask", {"imageDataURL": ["data:"]}),
    ],
)
def test_a_region_of_another_type_than_expected_is_damaged(odd: dict[str, Any]) -> None:
    found, unreadable = labels.submissions(annotation(result(id="good"), odd), TASK, label_config.parse(XML))
    assert isinstance(found, Submission) and isinstance(unreadable, Unreadable)
    assert [each.id for each in found.regions] == ["good"]


def test_many_regions_of_one_name_are_no_more_work_each_than_few() -> None:
    def read(count: int) -> None:
        rows = [result("rectangle", {}), {**result(), "type": "labels", "value": {"labels": ["Car"]}}]
        found = labels.submissions(annotation(*rows * count), TASK, label_config.parse(XML))
        assert len(list(found)) == 1 + count  # all of them are damaged

    assert grows_linearly(read, 20)


@pytest.mark.parametrize("written", ["0001-01-01", "9999-12-31T23:59:59", "x" * 10**6, [[]], 5, None])
def test_a_time_that_no_clock_shows_is_refused(written: Any) -> None:
    found = labels.readable(annotation(updated_at=written), TASK, label_config.parse(XML))
    assert all(isinstance(each, Submission) or "is no time" in each.reason for each in found)  # type: ignore


def test_shapes_that_label_studio_does_not_have_are_counted_together() -> None:
    odd = [result(f"kind {number}", id=str(number)) for number in range(30)]
    assert submitted(*odd).left_out == {"other shape": 30}


def test_a_long_name_of_an_image_that_is_not_shown_does_not_fill_the_log() -> None:
    _, astray = labels.readable(annotation(result(to_name="x" * 10**5)), TASK, label_config.parse(XML))
    assert isinstance(astray, Unreadable)
    assert len(str(astray)) < 300


def test_values_nested_too_deeply_to_be_written_down_are_named_by_their_kind() -> None:
    deep: list[Any] = []
    for _ in range(1020):
        deep = [deep]
    for member in ("id", "to_name", "type", "item_index"):
        found = labels.readable(annotation(result(**{member: deep})), TASK, label_config.parse(XML))
        assert "cannot be read" not in str(found[0])
    (unreadable,) = labels.readable(annotation(id=deep), TASK, label_config.parse(XML))
    assert "'a list' is not a number" in str(unreadable)


def test_regions_of_a_text_beside_the_image_are_none_of_its_own() -> None:
    text = {"id": "t1", "type": "hypertextlabels", "from_name": "words", "to_name": "text"}
    found = submitted(
        result(), text | {"value": {"start": "/p[1]", "end": "/p[1]", "hypertextlabels": ["A"]}}
    )
    assert [region.id for region in found.regions] == ["abc"]
    assert found.left_out == {}


@pytest.mark.parametrize(
    ("uri", "name"), [("https://host/a%00.jpg", "a.jpg"), ("/presign/?fileuri=" * 800 + "x", "task-7")]
)
def test_a_name_has_no_nul_and_an_address_in_addresses_ends(uri: str, name: str) -> None:
    (found,) = labels.submissions(annotation(), TASK | {"data": {"image": uri}}, label_config.parse(XML))
    assert isinstance(found, Submission)
    assert found.name == name


def test_the_curves_of_a_closed_vector_are_followed() -> None:
    # Four vertices with the control points of a circle: .5523 of the radius along the tangents.
    outline, k = vertices((70, 50), (50, 70), (30, 50), (50, 30)), 0.5523 * 20
    for vertex, (dx, dy) in zip(outline, ((0, 1), (-1, 0), (0, -1), (1, 0)), strict=True):
        x, y = vertex["x"], vertex["y"]
        vertex |= {
            "isBezier": True,
            "controlPoint1": {"x": x - k * dx, "y": y - k * dy},
            "controlPoint2": {"x": x + k * dx, "y": y + k * dy},
        }
    square = {"original_width": 1000, "original_height": 1000}
    (region,) = submitted(result("vector", {"vertices": outline, "closed": True}, **square)).regions
    area = float(rasterise(region.geometry, (1000, 1000)).sum())
    assert area == pytest.approx(math.pi * 200**2, rel=0.005)


@pytest.mark.parametrize("before", ["v0", "elsewhere"])
def test_an_outline_that_branches_or_is_in_pieces_is_damaged(before: str) -> None:
    outline = vertices((10, 10), (60, 10), (60, 60), (10, 60))
    outline[3]["prevPointId"] = before
    drawn_on = annotation(result("vector", {"vertices": outline, "closed": True}))
    _, unreadable = labels.submissions(drawn_on, TASK, label_config.parse(XML))
    assert isinstance(unreadable, Unreadable)


@pytest.mark.parametrize(
    "body",
    [
        event("ANNOTATION_CREATED"),
        event("ANNOTATION_CREATED", annotation=annotation(), task=TASK, project=None),
        event("ANNOTATIONS_DELETED", annotations=[{}]),
        event("TASKS_DELETED"),
        event("PROJECT_UPDATED", project={"id": True}),
    ],
    ids=str,
)
def test_an_event_that_lacks_what_it_must_have_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        list(labels.changes(body))


@pytest.mark.parametrize(
    "action",
    "ANNOTATION_CREATED ANNOTATION_UPDATED ANNOTATIONS_CREATED ANNOTATIONS_DELETED TASKS_DELETED "
    "PROJECT_DELETED PROJECT_UPDATED".split(),
)
def test_a_webhook_without_a_payload_says_what_to_switch_on(action: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{action} without a payload: switch on “Send payload”"):
        list(labels.changes({"action": action}))
    for ignored in ("TASKS_CREATED", "PROJECT_CREATED"):
        assert list(labels.changes({"action": ignored})) == []


@pytest.mark.parametrize(
    ("made", "task"),
    [
        (annotation(), {"id": 7}),
        (annotation(), TASK | {"data": {}}),
        (annotation(id="x"), TASK),
        (annotation(updated_at="yesterday"), TASK),
        (annotation(result=None), TASK),
        (annotation(result=["text"]), TASK),
        (annotation(task=1234), TASK),
    ],
    ids=str,
)
def test_an_annotation_that_cannot_be_read_keeps_out_no_other(
    made: dict[str, Any], task: dict[str, Any]
) -> None:
    other = TASK | {"id": 8}
    around = [annotation(result(), id=number, task=8) for number in (21, 22)]
    bulk = event("ANNOTATIONS_CREATED", annotation=[around[0], made, around[1]], task=[task, other])
    _, first, refused, second = labels.changes(bulk)
    assert [each.annotation for each in (first, second) if isinstance(each, Submission)] == ["21", "22"]
    assert isinstance(refused, Unreadable)
    assert f"annotation {made['id']}: " in refused.reason


def test_what_nobody_has_thought_of_keeps_out_no_other_annotation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = labels.value_to_geometry

    def surprised(kind: str, value: dict[str, Any], size: tuple[int, int]) -> Geometry:
        if kind == "ellipse":
            raise RuntimeError("at /home/secret")
        return read(kind, value, size)

    monkeypatch.setattr(labels, "value_to_geometry", surprised)
    strange = annotation(result("ellipse", {"x": 1, "y": 1, "radiusX": 1, "radiusY": 1}), id=12)
    made = [strange, annotation(result())]
    _, refused, read_all_the_same = labels.changes(event("ANNOTATIONS_CREATED", annotation=made, task=[TASK]))
    assert isinstance(read_all_the_same, Submission)
    reason = "task 7, annotation 12 cannot be read (RuntimeError); clickmask's log says why"
    assert refused == Unreadable(reason)
    assert "at /home/secret" in caplog.text


def test_a_bulk_event_is_read_as_it_is_taken_in() -> None:
    events = labels.changes(event("ANNOTATIONS_CREATED", annotation=[annotation(), None], task=[TASK]))
    with pytest.raises(InvalidRequest):
        next(events)  # the list itself is looked at first
    many = labels.changes(event("ANNOTATIONS_DELETED", annotations=[{"id": 1}, {}]))
    assert next(many) == AnnotationDeleted("label_studio", "1")
    with pytest.raises(InvalidRequest):
        next(many)


def test_of_regions_that_disagree_about_the_images_size_those_that_fit_it_are_taken() -> None:
    made = annotation(result(id="good"), result(id="bad", original_width=65))
    (found,) = labels.submissions(made, TASK, label_config.parse(XML))
    assert isinstance(found, Unsized)
    read, refused = found.read(SIZE)
    assert isinstance(read, Submission) and isinstance(refused, Unreadable)
    assert [region.id for region in read.regions] == ["good"]
    assert read.left_out == {"damaged rectangle": 1}
    assert refused.reason.endswith("'bad' is damaged and left out: it was drawn on an image of 65x48 pixels")


@pytest.mark.parametrize("kind", ["choices", "textarea", "rating", "videorectangle", None])
def test_a_remark_about_a_region_that_has_no_shape_is_counted(kind: str | None) -> None:
    place = {"x": 1, "y": 1, "width": 9, "height": 9}
    found = submitted({**result(value=place), "type": kind})
    assert found.regions == ()
    assert found.left_out == {"remark about a region without a shape": 1}
    about_the_image = {
        "type": "choices",
        "from_name": "good",
        "to_name": "image",
        "value": {"choices": ["A"]},
    }
    assert submitted(about_the_image).left_out == {}


@pytest.mark.parametrize(
    ("value", "category"),
    [
        ({"rectanglelabels": ["", " ", "Car"]}, "Car"),
        ({"rectanglelabels": [" "]}, None),
        ({"labels": ["Car"]}, "Car"),
        ({"labels": ["Road"], "rectanglelabels": ["Car"]}, "Car"),
    ],
)
def test_a_category_is_the_first_label_with_a_name(value: dict[str, Any], category: str | None) -> None:
    place = {"x": 1, "y": 1, "width": 9, "height": 9}
    found = submitted({**result(), "value": place | value})
    assert [region.category for region in found.regions] == ([category] if category else [])


def test_a_label_that_got_an_alias_since_is_called_by_it() -> None:
    corners = {"points": [[10, 10], [60, 10], [60, 60]]}
    for written in ("Tree", "t"):
        named = result("polygon", corners | {"polygonlabels": [written]}, from_name="poly")
        assert [region.category for region in submitted(named).regions] == ["t"]


def test_a_region_gets_no_label_of_the_one_with_its_id_on_another_page() -> None:
    xml = """<View><Image name="image" valueList="$pages"/><Rectangle name="box" toName="image"/>
        <Labels name="label" toName="image"><Label value="Car"/></Labels></View>"""
    task = TASK | {"data": {"pages": ["s3://b/one.png", "s3://b/two.png"]}}
    box = result(item_index=0) | {"type": "rectangle", "value": {"x": 1, "y": 1, "width": 9, "height": 9}}
    label = {**box, "type": "labels", "value": {"labels": ["Car"]}}
    nowhere = {key: value for key, value in label.items() if key not in ("item_index", "to_name")}
    for made, taken in ((label, [1, 0]), (nowhere, [1, 1])):
        drawn_on = annotation(box, made, box | {"item_index": 1})
        pages = labels.submissions(drawn_on, task, label_config.parse(xml))
        assert [len(each.regions) for each in pages if isinstance(each, Submission)] == taken


def test_an_id_that_was_free_is_not_given_to_a_second_region() -> None:
    found = submitted(result(id="a"), result(id="a"), result(id="a~2"))
    assert [region.id for region in found.regions] == ["a", "a~3", "a~2"]


def test_labels_of_a_text_beside_the_image_are_no_categories() -> None:
    words = '<Text name="text" value="$text"/><Labels name="ner" toName="text"><Label value="Who"/></Labels>'
    told = labels.described(PROJECT | {"label_config": XML.replace("</View>", f"{words}</View>")})
    assert told == labels.described(PROJECT)


def test_a_project_that_asks_only_what_an_image_shows_has_no_examples_of_nothing() -> None:
    xml = '<View><Image name="image" value="$image"/><Choices name="c" toName="image"/></View>'
    choice = {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["A"]}}
    assert list(labels.submissions(annotation(choice), TASK, label_config.parse(xml))) == []


def test_a_geometry_is_read_back_as_its_mask() -> None:
    mask = drawn.ring_in_ring()
    found = geometry(
        result("brush", {"rle": mask_to_brush_rle(mask).tolist()}, original_height=64, original_width=64)
    )
    assert isinstance(found, Brush)
    assert np.array_equal(rle_to_mask(found.rle), mask)
