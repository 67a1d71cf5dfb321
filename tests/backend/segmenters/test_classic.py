"""Region growing, threshold and contours on drawn scenes; what all segmenters owe is in test_segmenters."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from clickmask.masks.regions import mask_area, mask_box, mask_iou
from clickmask.reports.clicks import central_point
from clickmask.segmenters import contours, region_growing, threshold
from clickmask.segmenters._classic import SmallImage, enlarge, shrink, without_rejected
from clickmask.types import Image, Mask, Pixels, Prompt
from support.drawn import disc, rectangle, ring, scene
from support.hosts import host_of
from support.scenes import SIZE, drawn_scene

CLASSIC = {"region growing": region_growing, "threshold": threshold, "contours": contours}
everyone = pytest.mark.parametrize("module", CLASSIC.values(), ids=CLASSIC)


def answer(module: Any, pixels: Pixels, prompt: Prompt) -> Mask:
    segmenter = module.load("", host_of())
    return segmenter.decode(segmenter.encode(Image(pixels, "digest")), prompt)[0].mask


def centre(mask: Mask) -> tuple[float, float]:
    point = central_point(mask)
    assert point is not None
    return point


@everyone
def test_drawn_shapes_are_found_by_click_and_by_box(module: Any) -> None:
    clicked, boxed = [], []
    for seed in range(4):
        pixels, masks = drawn_scene(seed)
        for truth in masks:
            clicked.append(mask_iou(answer(module, pixels, Prompt((centre(truth),))), truth))
            boxed.append(mask_iou(answer(module, pixels, Prompt(box=mask_box(truth))), truth))
    print(f"\nby click {np.mean(clicked):.3f} (least {min(clicked):.2f}), by box {np.mean(boxed):.3f}")
    assert np.mean(clicked) >= 0.95
    assert np.mean(boxed) >= 0.95


@everyone
def test_a_large_picture_gets_a_mask_of_its_own_size(module: Any) -> None:
    truth = disc((1200, 1600), (800, 600), 300)
    pixels = np.where(truth[..., None], np.uint8([200, 90, 60]), np.uint8([40, 60, 90]))
    assert mask_iou(answer(module, pixels, Prompt(((800.0, 600.0),))), truth) > 0.96


@everyone
def test_only_the_clicked_one_of_two_equal_shapes_is_found_and_both_if_both_are(module: Any) -> None:
    pixels = np.full((100, 200, 3), 40, np.uint8)
    pixels[30:70, 20:60] = pixels[30:70, 120:160] = (200, 90, 60)
    left, right = (40.0, 50.0), (140.0, 50.0)
    one = answer(module, pixels, Prompt((left,)))
    assert one[50, 40]
    assert not one[:, 100:].any()
    both = answer(module, pixels, Prompt((left, right)))
    assert both[50, 40]
    assert both[50, 140]
    assert not both[50, 90]


@everyone
def test_a_box_keeps_the_answer_inside(module: Any) -> None:
    pixels, _ = drawn_scene(6)
    mask = answer(module, pixels, Prompt(box=(100.0, 30.0, 150.0, 220.0)))
    mask[30:220, 100:150] = False
    assert not mask.any()


@everyone
def test_a_mask_of_the_object_leads_to_the_object(module: Any) -> None:
    pixels, masks = drawn_scene(5)
    rough = cv2.erode(masks[0].view(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert mask_iou(answer(module, pixels, Prompt(mask=rough)), masks[0]) > 0.9


@everyone
def test_an_empty_mask_prompt_finds_nothing(module: Any) -> None:
    segmenter = module.load("", host_of())
    embedding = segmenter.encode(Image(drawn_scene(5)[0], "digest"))
    prediction = segmenter.decode(embedding, Prompt(mask=np.zeros(SIZE, np.bool_)))[0]
    assert not prediction.mask.any()
    assert prediction.score == 0


@pytest.mark.parametrize("module", [region_growing, threshold], ids=["region growing", "threshold"])
def test_a_hole_of_another_colour_stays_open(module: Any) -> None:
    drawn = scene()
    truth = drawn.objects["ring"]
    on_it = (0.70 * 320, 0.74 * 240 - 35)
    assert mask_iou(answer(module, drawn.pixels, Prompt((on_it,))), truth) > 0.9


def test_contours_take_in_all_that_they_enclose() -> None:
    truth = disc((120, 160), (80, 60), 40)
    pixels = np.where(truth[..., None], np.uint8([200, 90, 60]), np.uint8([40, 60, 90]))
    pixels[disc((120, 160), (70, 50), 9)] = 120
    assert mask_iou(answer(contours, pixels, Prompt(((95.0, 70.0),))), truth) > 0.93


def test_contours_close_a_gap_of_a_few_pixels() -> None:
    pixels = np.full((120, 160, 3), 90, np.uint8)
    pixels[ring((120, 160), (80, 60), 40, 36)] = 230
    pixels[18:26, 78:83] = 90
    found = answer(contours, pixels, Prompt(((80.0, 60.0),)))
    assert mask_area(found) < 1.3 * np.pi * 40**2


def test_a_threshold_finds_dark_things_on_bright_ground_by_box() -> None:
    truth = disc((90, 120), (60, 45), 25)
    pixels = np.where(truth[..., None], np.uint8([70, 70, 70]), np.uint8([200, 200, 200]))
    assert mask_iou(answer(threshold, pixels, Prompt(box=mask_box(truth))), truth) > 0.97


def test_a_threshold_uses_the_colour_that_tells_the_classes_apart() -> None:
    truth = rectangle((90, 120), (40, 30, 80, 60))
    # equal in lightness (L* 53 and 54), far apart in a*
    pixels = np.where(truth[..., None], np.uint8([205, 92, 92]), np.uint8([60, 140, 110]))
    assert mask_iou(answer(threshold, pixels, Prompt(((60.0, 45.0),))), truth) > 0.97


def test_a_part_with_clicks_of_both_kinds_is_divided_half_way() -> None:
    mask = rectangle((10, 40), (0, 2, 40, 8))
    kept = without_rejected(mask, [(5.0, 5.0)], [(25.0, 5.0)])
    assert (kept == rectangle((10, 40), (0, 2, 15, 8))).all()


def test_a_part_that_only_was_rejected_goes_and_untouched_parts_stay_without_a_click() -> None:
    left, middle, right = (rectangle((10, 40), (x, 2, x + 8, 8)) for x in (0, 12, 30))
    every = left | middle | right
    assert (without_rejected(every, [], [(15.0, 5.0)]) == left | right).all()
    assert (without_rejected(every, [(2.0, 5.0)], [(15.0, 5.0)]) == left).all()
    assert (without_rejected(every, [], []) == every).all()


def test_a_prompt_is_framed_with_the_ratios_that_the_sides_have() -> None:
    small = shrink(Image(np.zeros((101, 400, 3), np.uint8), "digest"), 100)
    assert small.size == (25, 100)
    mask = np.zeros((101, 400), np.bool_)
    mask[50, 7] = True
    framed = small.to_small(Prompt(((200.0, 50.5),), ((400.0, 101.0),), (4.0, 0.0, 8.0, 101.0), mask))
    assert framed.foreground == ((50.0, 12.5),)
    assert framed.background == ((100.0, 25.0),)
    assert framed.box == (1.0, 0.0, 2.0, 25.0)
    assert framed.mask is not None
    assert framed.mask.shape == (25, 100)
    assert framed.mask.sum() >= 1, "a single pixel is not lost"


def test_a_picture_that_is_small_already_is_not_touched() -> None:
    pixels, masks = drawn_scene(0)
    small = shrink(Image(pixels, "digest"), 320)
    assert (small.pixels == pixels).all()
    assert isinstance(small, SmallImage)
    whole = np.empty(small.whole, np.bool_)
    enlarge(masks[0], whole)
    assert (whole == masks[0]).all()
