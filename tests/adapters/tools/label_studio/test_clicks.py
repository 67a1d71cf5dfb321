"""From Label Studio's marks to prompts, and from masks to its regions."""

from __future__ import annotations

import base64
import math
from typing import Any

import cv2
import numpy as np
import pytest

from clickmask.errors import ClickmaskError, InvalidInput, InvalidRequest
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.masks.single_rings import mask_to_single_rings
from clickmask.types import Mask, Prediction
from clickmask_adapters.tools.label_studio import clicks, label_config
from clickmask_adapters.tools.label_studio.shapes import (
    brush_rle_to_mask,
    mask_to_bit_mask,
    mask_to_brush_rle,
)
from support import drawn

CAR_ROAD = '<Label value="Car"/><Label value="Road"/>'
IMAGE = '<Image name="image" value="$image"/>'
KEYPOINTS = f'<KeyPointLabels name="kp" toName="image" smart="true">{CAR_ROAD}</KeyPointLabels>'
SMART_BOXES = f'<RectangleLabels name="rect" toName="image" smart="true">{CAR_ROAD}</RectangleLabels>'
BRUSH = f'<BrushLabels name="brush" toName="image">{CAR_ROAD}</BrushLabels>'
POLYGON = f'<PolygonLabels name="poly" toName="image">{CAR_ROAD}</PolygonLabels>'
SIZE = (48, 64)


def config(*tags: str) -> label_config.LabelConfig:
    return label_config.parse(f"<View>{IMAGE}{KEYPOINTS}{SMART_BOXES}{''.join(tags)}</View>")


def mark(x: Any = 50, y: Any = 25, label: str = "Car", **changes: Any) -> dict[str, Any]:
    return {
        "original_width": 64,
        "original_height": 48,
        "image_rotation": 0,
        "value": {"x": x, "y": y, "width": 0.26, "labels": [label], "keypointlabels": [label]},
        "is_positive": True,
        "from_name": "kp",
        "to_name": "image",
        "type": "keypointlabels",
    } | changes


def box(x: Any, y: Any, width: Any, height: Any, rotation: Any = 0, label: str = "Car") -> dict[str, Any]:
    value = {
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "rotation": rotation,
        "rectanglelabels": [label],
    }
    shape = mark(value=value, type="rectanglelabels", from_name="rect")
    del shape["is_positive"]
    return shape


def asked(*marks: dict[str, Any], tags: tuple[str, ...] = (BRUSH,)) -> clicks.Request:
    return clicks.request({"result": list(marks)}, config(*tags))


def answered(request: clicks.Request, mask: Mask, min_iou: float = 0.98) -> list[dict[str, Any]]:
    return clicks.regions("p", Prediction(mask, 0.5, "disc"), request, min_iou)[0]


def summary(regions: list[dict[str, Any]]) -> list[tuple[str, str, list[str] | None]]:
    return [(region["type"], region["from_name"], region["value"].get(region["type"])) for region in regions]


def polygon_mask(regions: list[dict[str, Any]], size: tuple[int, int] = SIZE) -> Mask:
    height, width = size
    rings = [np.array(region["value"]["points"]) * (width, height) / 100 for region in regions]
    return polygons_to_mask(rings, size)


# Prompts


def test_percent_become_pixels_of_the_displayed_image() -> None:
    prompt = asked(mark(50, 25), mark(75, 100, is_positive=False)).prompt
    assert prompt is not None
    assert prompt.foreground == ((32.0, 12.0),)
    assert prompt.background == ((48.0, 48.0),)


def test_a_mark_that_does_not_say_what_it_is_is_positive() -> None:
    unsaid = mark()
    del unsaid["is_positive"]
    for each in (unsaid, mark(is_positive=None)):
        prompt = asked(each).prompt
        assert prompt is not None and len(prompt.foreground) == 1


def test_points_and_a_box_go_together() -> None:
    prompt = asked(mark(), box(25, 50, 50, 25)).prompt
    assert prompt is not None
    assert prompt.foreground == ((32.0, 12.0),)
    assert prompt.box == (16.0, 24.0, 48.0, 36.0)


def test_of_several_boxes_the_last_counts() -> None:
    prompt = asked(box(0, 0, 10, 10), box(25, 50, 50, 25)).prompt
    assert prompt is not None and prompt.box == (16.0, 24.0, 48.0, 36.0)


def test_a_turned_box_becomes_the_upright_box_round_it() -> None:
    # 10 px to the right and 5 px down from (32, 24), turned clockwise about that corner
    prompt = asked(box(50, 50, 1000 / 64, 500 / 48, rotation=90)).prompt
    assert prompt is not None and prompt.box == pytest.approx((27, 24, 32, 34))
    prompt = asked(box(50, 50, 1000 / 64, 500 / 48, rotation=45)).prompt
    half = math.sqrt(0.5)
    assert prompt is not None
    assert prompt.box == pytest.approx((32 - 5 * half, 24, 32 + 10 * half, 24 + 15 * half))


def test_what_lies_outside_is_moved_to_the_edge() -> None:
    prompt = asked(mark(-3, 140), box(-10, 50, 500, 80)).prompt
    assert prompt is not None
    assert prompt.foreground == ((0.0, 48.0),)
    assert prompt.box == (0.0, 24.0, 64.0, 48.0)
    prompt.require_inside(SIZE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "50", None, True, [5], {}, 10**400])
def test_what_is_no_finite_number_is_refused(bad: Any) -> None:
    for marks in ([mark(x=bad)], [mark(y=bad)], [box(10, 10, bad, 10)], [box(10, bad, 10, 10)]):
        with pytest.raises(InvalidInput, match="is no finite number"):
            asked(*marks)


def test_a_box_without_area_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no area"):
        asked(box(10, 10, 0, 10))


def test_only_negative_marks_make_no_prompt() -> None:
    assert asked(mark(is_positive=False), mark(is_positive=False)).prompt is None


def test_results_of_one_id_are_one_mark() -> None:
    value = {"x": 50, "y": 25, "labels": ["Road"]}
    point = mark(id="a", type="keypoint", value={"x": 50, "y": 25})
    labels = mark(id="a", type="labels", from_name="labels", value=value)
    for pair in ((point, labels), (labels, point)):
        request = asked(*pair)
        assert request.prompt is not None and len(request.prompt.foreground) == 1
        assert request.answers[0].labels == ("Road",)


def test_the_last_marks_label_is_the_wanted_one() -> None:
    assert asked(mark(label="Car"), mark(label="Road", is_positive=False)).answers[0].labels == ("Road",)


def test_marks_on_another_image_are_left_out() -> None:
    request = asked(mark(item_index=0), mark(10, 10, item_index=1))
    assert request.item_index == 1
    assert request.prompt is not None and len(request.prompt.foreground) == 1


def region(shape: Mask | dict[str, Any], kind: str = "brush", **changes: Any) -> dict[str, Any]:
    """A region as annotations have it: a smart `Brush` is in the context as it was drawn."""
    value = (
        {"format": "rle", "rle": mask_to_brush_rle(shape).tolist()}
        if isinstance(shape, np.ndarray)
        else shape
    )
    return mark(type=f"{kind}labels", from_name="sketch", value=value | {f"{kind}labels": ["Car"]}) | changes


def prompted_mask(*marks: dict[str, Any]) -> Mask:
    prompt = asked(*marks).prompt
    assert prompt is not None and prompt.mask is not None
    return prompt.mask


def test_a_drawn_region_is_a_mask_to_be_refined() -> None:
    disc, square = drawn.disc(SIZE, (20, 20), 9), drawn.rectangle(SIZE, (16, 12, 48, 36))
    assert np.array_equal(prompted_mask(region(disc)), disc)
    corners = {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "closed": True}
    assert np.array_equal(prompted_mask(region(corners, "polygon")), square)
    picture = {"imageDataURL": mask_to_bit_mask(disc)}
    assert np.array_equal(prompted_mask(region(picture, "bitmask")), disc)
    assert prompted_mask(region({"x": 50, "y": 50, "radiusX": 20, "radiusY": 20}, "ellipse")).sum() > 100


def test_a_region_goes_with_points_and_boxes_and_negative_ones_are_cut_out() -> None:
    disc, square = drawn.disc(SIZE, (20, 20), 9), drawn.rectangle(SIZE, (16, 12, 48, 36))
    request = asked(region(square), mark(id="a"), box(10, 10, 50, 50))
    assert request.prompt is not None
    assert request.prompt.foreground == ((32, 12),) and request.prompt.box is not None
    assert request.prompt.mask is not None and np.array_equal(request.prompt.mask, square)
    assert np.array_equal(prompted_mask(region(square), region(disc, is_positive=False)), square & ~disc)
    assert np.array_equal(prompted_mask(region(square), region(disc)), square | disc)
    assert asked(region(disc, is_positive=False)).prompt is None


def test_a_bare_brush_with_its_labels_is_one_region() -> None:
    disc = drawn.disc(SIZE, (20, 20), 9)
    brush = region(disc, id="b", type="brush")
    labels = region(disc, id="b", type="labels")
    assert np.array_equal(prompted_mask(brush, labels), disc)


def test_a_region_that_cannot_be_read_leaves_the_points_beside_it() -> None:
    damaged = region({"format": "rle", "rle": [0]}, id="b")
    request = asked(mark(id="a"), damaged)
    assert request.prompt is not None and request.prompt.mask is None
    assert len(request.prompt.foreground) == 1
    for shape in ({"format": "rle", "rle": [0]}, {"format": "rle"}, {"format": "rle", "rle": [256] * 9}):
        with pytest.raises(InvalidInput, match="the brush of the context cannot be read"):
            asked(region(shape))
    with pytest.raises(InvalidInput, match="more than"):
        asked(region(damaged["value"], original_width=20_000, original_height=20_000))
    many = [
        region(damaged["value"], id=f"{n}", original_width=10_000, original_height=9000) for n in range(9)
    ]
    with pytest.raises(InvalidInput, match="9 regions on an image of 90000000 pixels"):
        asked(*many)


@pytest.mark.parametrize(
    "context",
    [7, [], {}, {"result": {}}, {"result": [7]}, {"result": [{}]}, {"result": [{"type": "keypoint"}]}],
)
def test_a_context_that_is_none_is_refused(context: Any) -> None:
    with pytest.raises(InvalidRequest):
        clicks.request(context, config(BRUSH))


@pytest.mark.parametrize(
    "changes",
    [
        {"original_width": 0},
        {"original_width": "64"},
        {"original_height": None},
        {"original_height": 48.5},
        {"item_index": -1},
        {"item_index": "1"},
        {"to_name": 5},
        {"from_name": None},
        {"image_rotation": "x"},
        {"is_positive": "no"},
        {"value": None},
    ],
)
def test_a_mark_of_which_a_part_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ClickmaskError):
        asked(mark(**changes))


# What is answered with


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ((BRUSH,), [("brushlabels", "brush", ["Car"])]),
        ((POLYGON,), [("polygonlabels", "poly", ["Car"])]),
        ((POLYGON, BRUSH), [("polygonlabels", "poly", ["Car"]), ("brushlabels", "brush", ["Car"])]),
        (
            (f'<BitmaskLabels name="bits" toName="image">{CAR_ROAD}</BitmaskLabels>',),
            [("bitmasklabels", "bits", ["Car"])],
        ),
        (
            (f'<RectangleLabels name="boxes" toName="image">{CAR_ROAD}</RectangleLabels>',),
            [("rectanglelabels", "boxes", ["Car"])],
        ),
        (
            (BRUSH, f'<RectangleLabels name="boxes" toName="image">{CAR_ROAD}</RectangleLabels>'),
            [("brushlabels", "brush", ["Car"])],
        ),
        (
            (f'<Labels name="l" toName="image">{CAR_ROAD}</Labels>', '<Polygon name="p" toName="image"/>'),
            [("polygon", "p", None), ("labels", "l", ["Car"])],
        ),
        (('<Brush name="b" toName="image"/>',), [("brush", "b", None)]),
        (
            (BRUSH, '<BrushLabels name="trees" toName="image"><Label value="Tree"/></BrushLabels>'),
            [("brushlabels", "brush", ["Car"])],
        ),
        (
            ('<brushlabels name="b" toname="image"><view><label value="Car"/></view></brushlabels>',),
            [("brushlabels", "b", ["Car"])],
        ),
        (('<BrushLabels name="b" toName="image" value="$kinds"/>',), [("brushlabels", "b", ["Car"])]),
    ],
)
def test_every_control_that_carries_the_label_answers(
    tags: tuple[str, ...], expected: list[tuple[str, str, list[str] | None]]
) -> None:
    assert summary(answered(asked(mark(), tags=tags), drawn.disc())) == expected


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ((), "no control to answer with: add <BrushLabels>"),
        (('<BrushLabels name="b" toName="other"><Label value="Car"/></BrushLabels>',), "no control"),
        (
            ('<BrushLabels name="b" toName="image"><Label value="Tree"/></BrushLabels>',),
            "has the label 'Car'",
        ),
    ],
)
def test_a_config_that_cannot_answer_is_refused_with_what_to_add(
    tags: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        asked(mark(), tags=tags)


def test_a_mark_of_a_thousand_labels_is_refused() -> None:
    many = [f"label {number}" for number in range(1001)]
    with pytest.raises(InvalidRequest, match="1001"):
        asked(mark(type="keypointlabels", value={"x": 1, "y": 1, "keypointlabels": many}))


def test_labels_are_written_by_their_alias() -> None:
    aliased = '<Label value="Car" alias="c"/><Label value="Road" alias="r"/>'
    brush = f'<BrushLabels name="brush" toName="image">{aliased}</BrushLabels>'
    for written in ("c", "Car"):
        assert asked(mark(label=written), tags=(brush,)).answers[0].labels == ("c",)
    keypoints = f'<KeyPointLabels name="k2" toName="image" smart="true">{aliased}</KeyPointLabels>'
    assert asked(mark(label="c", from_name="k2"), tags=(BRUSH, keypoints)).answers[0].labels == ("Car",)


@pytest.mark.parametrize(
    "bad", ["", "<View>", "text", "<!DOCTYPE x [<!ENTITY a 'b'>]><View/>", "\x00", "<View></Vew>"]
)
def test_a_config_that_is_no_plain_xml_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        label_config.parse(bad)


@pytest.mark.parametrize(
    ("tag", "data", "expected"),
    [
        ('value="$image"', {"image": "/a.png"}, ["/a.png"]),
        ('valueList="$pages"', {"pages": ["/a.png", "/b.png"]}, ["/a.png", "/b.png"]),
        ('value="$page.scan"', {"page": {"scan": "/a.png"}}, ["/a.png"]),
        ('value="https://host/$name.png"', {"name": "a"}, None),
        ('value="https://host/$name"', {"name": "a.png"}, ["https://host/a.png"]),
        ('value="$images[1]"', {"images": ["/a.png", "/b.png"]}, ["/b.png"]),
        ('value="$images[2]"', {"images": ["/a.png", "/b.png"]}, None),
        ('value="$doc.pages[1].url"', {"doc": {"pages": [{}, {"url": "/b.png"}]}}, ["/b.png"]),
        ('value="http://host/$id-x.png"', {"id": "p9"}, ["http://host/p9-x.png"]),
        ('value="http://host/$n-$m"', {"n": 7, "m": 0.5}, ["http://host/7-0.5"]),
        ('value="http://host/$n"', {"n": None}, None),
        ('value="$a.b"', {"a.b": "/a.png"}, ["/a.png"]),
        ('value="$image"', {"$undefined$": "/a.png"}, ["/a.png"]),
        ('value="$image"', {"photo": "/a.png"}, None),
        ('value="$image"', {"image": 5}, None),
        ('valueList="$pages"', {"pages": []}, None),
        ('valueList="$pages"', {"pages": ["/a.png", None]}, None),
    ],
)
def test_an_image_is_looked_up_in_the_task(
    tag: str, data: dict[str, Any], expected: list[str] | None
) -> None:
    parsed = label_config.parse(f'<View><Image name="image" {tag}/></View>')
    if expected is None:
        with pytest.raises(InvalidRequest, match="no image"):
            parsed.image_uris("image", data)
    else:
        assert parsed.image_uris("image", data) == expected


REPEATED = """<View><Repeater on="$document" indexFlag="{{idx}}" mode="pagination">
<Image name="page_{{idx}}" value="$document[{{idx}}].page"/>
<BrushLabels name="brush_{{idx}}" toName="page_{{idx}}"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="point_{{idx}}" toName="page_{{idx}}" smart="true"><Label value="Cat"/></KeyPointLabels>
</Repeater></View>"""


def test_a_repeater_gives_each_entry_of_its_list_an_image_and_controls() -> None:
    parsed = label_config.parse(REPEATED)
    data = {"document": [{"page": "/a.png"}, {}, {"page": "/c.png"}]}
    assert list(parsed.shown(1, data)) == [("page_0", ["/a.png"]), ("page_2", ["/c.png"])]
    config = parsed.of_task(data)
    (answer,) = config.answers("page_2", "point_2", ["Cat"])
    assert answer.controls[0].name == "brush_2"
    assert parsed.of_task({}).controls == ()
    assert config.of_task({}) is config


def test_repeaters_may_be_nested_and_have_flags_of_their_own() -> None:
    nested = """<View><Repeater on="$docs" indexFlag="{{d}}"><Header value="{{d}}"/>
    <Repeater on="$docs[{{d}}]" indexFlag="{{p}}">
    <Image name="i{{d}}_{{p}}" value="$docs[{{d}}][{{p}}]"/></Repeater></Repeater></View>"""
    data = {"docs": [["/a.png"], ["/b.png", "/c.png"]]}
    assert list(label_config.parse(nested).shown(1, data)) == [
        ("i0_0", ["/a.png"]), ("i1_0", ["/b.png"]), ("i1_1", ["/c.png"]),
    ]  # fmt: skip


def test_a_repeater_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="more than"):
        label_config.parse(REPEATED).of_task({"document": [{"page": "/a.png"}] * 10_000})
    assert list(label_config.parse(REPEATED).shown(1, {"document": [{"page": "/a.png"}] * 10_000})) == []


def test_a_cdata_section_is_no_document_type() -> None:
    xml = "<View><Style><![CDATA[ .a > .b { color: <red> } ]]></Style><Image name='i' value='$i'/></View>"
    assert label_config.parse(xml).images == {"i": "$i"}


# Answers


def test_what_belongs_to_a_region_is_echoed() -> None:
    (region,) = answered(asked(mark(item_index=2, image_rotation=90)), drawn.disc())
    assert region["image_rotation"] == 90
    assert region["item_index"] == 2
    assert (region["original_width"], region["original_height"]) == (64, 48)
    assert region["id"] == "p-0"
    assert "item_index" not in answered(asked(mark()), drawn.disc())[0]


def test_a_brush_is_the_mask() -> None:
    (region,) = answered(asked(mark()), drawn.ring())
    assert np.array_equal(brush_rle_to_mask(region["value"]["rle"], SIZE), drawn.ring())


def test_a_bit_mask_is_black_where_the_mask_is() -> None:
    tag = f'<BitmaskLabels name="bits" toName="image">{CAR_ROAD}</BitmaskLabels>'
    (region,) = answered(asked(mark(), tags=(tag,)), drawn.ring())
    head, _, png = region["value"]["imageDataURL"].partition(",")
    assert head == "data:image/png;base64"
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (*SIZE, 4) and not pixels[..., :3].any()
    assert np.array_equal(pixels[..., 3], drawn.ring() * np.uint8(255))


def test_a_rectangle_is_the_masks_box_in_percent() -> None:
    tag = f'<RectangleLabels name="boxes" toName="image">{CAR_ROAD}</RectangleLabels>'
    (region,) = answered(asked(mark(), tags=(tag,)), drawn.rectangle(SIZE, (16, 12, 48, 24)))
    expected = {"x": 25, "y": 25, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["Car"]}
    assert region["value"] == expected


def test_nothing_is_made_of_an_empty_mask() -> None:
    assert answered(asked(mark(), tags=(BRUSH, POLYGON)), np.zeros(SIZE, bool)) == []


@pytest.mark.parametrize("name", sorted(set(drawn.MASKS) - {"empty"}))
def test_polygons_are_the_mask_if_all_of_it_is_asked_for(name: str) -> None:
    mask = drawn.MASKS[name]()
    height, width = mask.shape
    point = mark(original_width=width, original_height=height)
    regions = answered(asked(point, tags=(POLYGON,)), mask, min_iou=1)
    assert all(region["value"]["closed"] for region in regions)
    assert np.array_equal(polygon_mask(regions, (height, width)), mask)
    assert len({region["id"] for region in regions}) == len(regions)


def test_each_part_is_a_region_of_its_own_and_crumbs_are_none() -> None:
    mask = drawn.two_parts()
    mask[0, 0] = True
    made = mask_to_single_rings(mask, 0.98)
    assert len(made.rings) == 2
    assert made.lost_area == 1
    assert made.iou == mask_iou(polygons_to_mask(made.rings, SIZE), mask)
    assert made.iou >= 0.975


def test_of_nothing_but_crumbs_one_is_kept() -> None:
    mask = np.zeros((48, 64), bool)
    mask[::2, ::2] = True
    mask[0, 1] = True
    made = mask_to_single_rings(mask, 0.98)
    assert len(made.rings) == 1
    assert made.lost_area == mask.sum() - 3


def test_a_smart_brush_asks_and_the_plain_one_beside_it_answers() -> None:
    sketch = f'<BrushLabels name="sketch" toName="image" smart="true">{CAR_ROAD}</BrushLabels>'
    drawn_on_it = region(drawn.disc(SIZE, (20, 20), 9))
    for prompt in (drawn_on_it, mark()):
        request = asked(prompt, tags=(sketch, BRUSH))
        assert [answer.controls[0].name for answer in request.answers] == ["brush"]
    assert [answer.controls[0].name for answer in asked(mark(), tags=(sketch,)).answers] == ["sketch"]
