from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.masks.polygons import polygons_to_mask
from clickmask.masks.regions import mask_iou
from clickmask.types import Mask, Prediction
from clickmask_adapters.tools.cvat import answers, prompts
from support import drawn
from support.cvat_standin import drawn_shapes, stored_shapes
from support.drawn import MASKS

SIZE = (60, 80)
masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))
points = st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)).map(list), max_size=4)


def prediction(mask: Mask, score: float = 0.5) -> Prediction:
    return Prediction(mask, score, "test")


def detections(mask: Mask, **stored: Any) -> list[dict[str, Any]]:
    answer = orjson.loads(answers.detector_reply([("cat", prediction(mask))], 0.98))
    return stored_shapes(answer, ["cat"], mask.shape, **stored)


@pytest.mark.parametrize("draw", MASKS.values(), ids=MASKS)
def test_detections_hold_every_part_of_a_mask(draw: Callable[[], Mask]) -> None:
    mask = draw()
    found = detections(mask)
    together = np.logical_or.reduce([each["mask"] for each in found]) if found else np.zeros_like(mask)
    assert (together == mask).all()
    polygons = detections(mask, conv_mask_to_poly=True)
    assert len(polygons) == len(found)
    for polygon, each in zip(polygons, found, strict=True):
        ring = np.array(polygon["polygon"]).reshape(-1, 2)
        filled = polygons_to_mask([ring], mask.shape)
        assert (each["mask"] & ~filled).sum() <= 0.05 * each["mask"].sum()  # holes are filled, no more


@settings(deadline=None, max_examples=40)
@given(masks)
def test_detections_can_always_be_stored(mask: Mask) -> None:
    found, polygons = detections(mask), detections(mask, conv_mask_to_poly=True)
    assert bool(found) == bool(polygons) == mask.any()


def test_the_parts_of_one_object_share_a_group_and_others_do_not() -> None:
    apart, whole = drawn.two_parts(), drawn.disc()
    found = [("cat", prediction(apart)), ("cat", prediction(whole)), ("dog", prediction(apart))]
    answer = orjson.loads(answers.detector_reply(found, 0.98))
    groups = [item.get("group_id") for item in answer]
    assert groups == [1, 1, None, 3, 3]


def test_crumbs_are_left_out_and_a_mask_of_crumbs_keeps_the_largest() -> None:
    mask = drawn.rectangle((100, 100), (0, 0, 50, 50))
    mask[80, 80] = True
    (found,) = detections(mask)
    assert (found["mask"] == drawn.rectangle((100, 100), (0, 0, 50, 50))).all()
    crumbs = np.zeros((60, 60), bool)
    crumbs[::2, ::2] = True
    crumbs[11, 10] = True
    (found,) = detections(crumbs)
    assert found["mask"].sum() == 3 and found["mask"][11, 10]


def test_empty_masks_are_left_out_of_every_answer() -> None:
    empty = prediction(drawn.empty())
    assert answers.detector_reply([("cat", empty)], 0.98) == b"[]"
    assert answers.shapes_reply([empty]) == b'{"shapes":[]}'


def test_an_outline_of_fewer_than_three_points_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVAT refuses the whole frame for one."""

    class Collapsed:
        rings = [np.zeros((2, 2))]  # noqa: RUF012  # a stand-in

    monkeypatch.setattr(answers, "simplify_mask", lambda *_: Collapsed)
    assert detections(drawn.disc()) == []
    monkeypatch.setattr(Collapsed, "rings", [])
    assert detections(drawn.disc()) == []


def test_outlines_are_as_good_as_was_asked() -> None:
    mask = drawn.ellipse((300, 400), (200, 150), (120, 60), 30)
    lengths = []
    for min_iou in (0.9, 0.98, 0.995):
        (item,) = orjson.loads(answers.detector_reply([("cat", prediction(mask))], min_iou))
        outline = np.array(item["points"]).reshape(-1, 2)
        assert mask_iou(polygons_to_mask([outline], mask.shape), mask) >= min_iou
        lengths.append(len(outline))
    assert lengths == sorted(set(lengths))


def test_parts_are_cropped_to_their_own_boxes() -> None:
    """Each part is looked at in its own box: not the photo a hundred times."""
    mask = np.zeros((3000, 4000), bool)
    for row in range(8):
        for column in range(10):
            mask[row * 370 + 20 : row * 370 + 60, column * 390 + 20 : column * 390 + 60] = True
    found = orjson.loads(answers.detector_reply([("cat", prediction(mask))], 0.98))
    assert len(found) == 80 and {len(item["mask"]) for item in found} == {40 * 40 + 4}


@settings(deadline=None)
@given(st.lists(masks, min_size=1, max_size=3).filter(lambda each: len({mask.shape for mask in each}) == 1))
def test_shapes_are_drawn_as_the_masks_that_they_were(each: list[Mask]) -> None:
    size = each[0].shape
    shapes = orjson.loads(answers.shapes_reply([prediction(mask) for mask in each]))
    shown = [mask for mask, _ in drawn_shapes(shapes, size)]
    expected = [mask for mask in each if mask.any()]
    assert len(shown) == len(expected)
    assert all((a == b).all() for a, b in zip(shown, expected, strict=True))
    dense = orjson.loads(answers.dense_reply([prediction(mask) for mask in each], size))
    assert (drawn_shapes(dense, size)[0][0] == np.logical_or.reduce(each)).all()


@settings(deadline=None)
@given(points, points, points, st.integers(1, 50), st.integers(1, 50))
def test_every_prompt_of_finite_points_lies_in_the_image(
    foreground: list[Any], background: list[Any], corners: list[Any], height: int, width: int
) -> None:
    asked = {"pos_points": foreground, "neg_points": background, "obj_bbox": corners}
    try:
        pointed = prompts.pointed(asked)
    except (InvalidInput, InvalidRequest):
        numbers = [number for point in foreground + background + corners for number in point]
        assert len(corners) % 2 or not all(map(math.isfinite, numbers))
        return
    asked_of = pointed.prompts((height, width))
    assert len(asked_of) <= max(1, len(corners) // 2)
    for prompt in asked_of:
        prompt.require_inside((height, width))
    if asked_of:  # no point is lost, and none is used twice
        assert sum(len(prompt.foreground) for prompt in asked_of) == len(foreground)
        assert sum(len(prompt.background) for prompt in asked_of) == len(background)


def test_a_box_without_area_leaves_the_points_alone() -> None:
    pointed = prompts.pointed({"pos_points": [[5, 5]], "obj_bbox": [[9, 9], [9, 20]]})
    (prompt,) = pointed.prompts(SIZE)
    assert prompt.box is None and prompt.foreground == ((5.0, 5.0),)


@pytest.mark.parametrize(
    ("user_agent", "shapes"),
    [
        ("CVAT/2.60.0 python-requests/2.33.1", True),
        ("CVAT/10.0", True),
        ("CVAT/2.59.3 python-requests/2.32.3", False),
        ("python-requests/2.28.2", False),
        ("NotCVAT/2.73.0", False),
        ("CVAT/2", False),
        ("CVAT/x.y", False),
        ("", False),
    ],
)
def test_only_cvat_since_2_60_understands_shapes(user_agent: str, shapes: bool) -> None:
    assert prompts.understands_shapes(user_agent) == shapes


def test_more_points_than_anybody_sets_are_refused_before_they_are_dealt_out() -> None:
    many = [[1, 1]] * prompts.MAX_POINTS
    assert len(prompts.pointed({"pos_points": many}).foreground) == prompts.MAX_POINTS
    with pytest.raises(InvalidInput, match="at most 10000 points"):
        prompts.pointed({"pos_points": many, "neg_points": [[1, 1]]})
