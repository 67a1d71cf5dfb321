"""A second look at a small object, in a crop around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickmask.inference.refinement import Refinement
from clickmask.inference.second_look import (
    MAX_SHARE,
    MIN_SIDE_PX,
    SEEN_PX,
    Crop,
    crop_around,
    decode,
    look_again,
)
from clickmask.masks.controls import Controls
from clickmask.masks.regions import mask_box
from clickmask.segmenters.builtin import Builtin
from clickmask.types import Image, Mask, Prediction, Prompt
from support import drawn
from support.fakes import RADIUS, DiscSegmenter, disc_mask

SIZE = (900, 1200)
LOOK = Controls(second_look=True)
sizes = st.tuples(st.integers(20, 1500), st.integers(1025, 1500))
shares = st.floats(0, 1)


def image() -> Image:
    return Image(np.zeros((*SIZE, 3), np.uint8), "digest")


class Near(DiscSegmenter):
    """Sees at a fixed size: its discs shrink with the crop, which the answer shows."""

    def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        height, width = embedding.shape[:2]
        radius = max(height, width) * RADIUS / max(SIZE)
        y, x = np.mgrid[:height, :width] + 0.5
        mask = np.zeros((height, width), bool)
        for at in prompt.foreground:
            mask |= np.hypot(x - at[0], y - at[1]) < radius
        return [Prediction(mask, 0.5, self.name), Prediction(~mask, 0.4, self.name)]


@given(sizes, shares, shares, shares, shares)
def test_a_crop_holds_the_mask_and_the_prompt_and_lies_in_the_image(
    size: tuple[int, int], left: float, top: float, x: float, y: float
) -> None:
    height, width = size
    mask = drawn.rectangle(size, (round(left * width * 0.8), round(top * height * 0.8), width, height))
    point = x * width, y * height
    crop = crop_around(mask, Prompt((point,)))
    if crop is None:
        return
    assert 0 <= crop.x0 < crop.x1 <= width and 0 <= crop.y0 < crop.y1 <= height
    x0, y0, x1, y1 = mask_box(mask) or (*point, *point)
    assert crop.x0 <= min(x0, point[0]) and max(x1, point[0]) <= crop.x1
    assert crop.y0 <= min(y0, point[1]) and max(y1, point[1]) <= crop.y1
    assert max(crop.size) <= max(MAX_SHARE * max(size), MIN_SIDE_PX)
    crop.of_prompt(Prompt((point,)), crop.of_mask(mask)).require_inside(crop.size)


def test_a_mask_that_grows_by_some_pixels_has_the_same_crop() -> None:
    click = Prompt(((600.0, 450.0),))
    crops = {crop_around(drawn.disc(SIZE, (600 + dx, 450), 60 + dx), click) for dx in range(3)}
    assert len(crops) == 1


def test_a_large_object_has_no_crop() -> None:
    assert crop_around(drawn.disc(SIZE, (600, 450), 200), Prompt(((600.0, 450.0),))) is None
    small = Prompt(((20.0, 15.0),))
    assert crop_around(np.zeros((800, SEEN_PX), bool), small) is None  # seen in full
    assert crop_around(np.zeros((800, SEEN_PX + 1), bool), small) is not None


def test_what_the_crop_shows_of_the_prompt_moves_with_it() -> None:
    crop = Crop(100, 50, 164, 114)
    prompt = Prompt(((120.5, 60.0),), ((110.0, 55.0), (10.0, 10.0)), (105.0, 52.0, 150.0, 110.0))
    inside = crop.of_prompt(prompt, None)
    assert inside.foreground == ((20.5, 10.0),)
    assert inside.background == ((10.0, 5.0),)  # the other one is not to be seen
    assert inside.box == (5.0, 2.0, 50.0, 60.0)


def test_a_second_look_is_pasted_where_the_crop_was_and_changes_nothing_else() -> None:
    near, whole = Near(), image()
    click = Prompt(((210.0, 150.0),))
    first, second = near.decode(near.encode(whole), click)
    seen: list[Crop] = []

    def embed(crop: Crop) -> NDArray[np.uint8]:
        seen.append(crop)
        return near.encode(crop.cut(whole))

    found = look_again(near, click, first, embed)
    (crop,) = seen
    inside = near.decode(near.encode(crop.cut(whole)), crop.of_prompt(click, None))[0]
    expected = np.zeros(SIZE, bool)
    expected[crop.y0 : crop.y1, crop.x0 : crop.x1] = inside.mask
    assert np.array_equal(found.mask, expected)
    assert 0 < found.mask.sum() < first.mask.sum()
    assert (found.score, found.segmenter) == (0.5, "disc")
    answers = decode(near, Refinement(), near.encode(whole), whole, click, LOOK)
    assert np.array_equal(answers[0].mask, expected)
    assert np.array_equal(answers[1].mask, second.mask)


@pytest.mark.parametrize("looks", [False, True])
def test_without_a_small_object_or_without_the_wish_nothing_changes(looks: bool) -> None:
    disc, whole = DiscSegmenter(), image()
    large = Prompt(box=(20.0, 20.0, 1050.0, 750.0))
    small = Prompt(((210.0, 150.0),))
    embedding = disc.encode(whole)
    for prompt, controls in ((large, Controls(second_look=looks)), (small, Controls())):
        (plain,) = disc.decode(embedding, prompt)
        (found,) = decode(disc, Refinement(), embedding, whole, prompt, controls)
        assert np.array_equal(found.mask, plain.mask) and found.score == plain.score
    assert disc.encoded == ["digest"]


def test_a_segmenter_that_looks_closer_by_itself_is_not_asked_again() -> None:
    assert Builtin.looks_closer
    closer = DiscSegmenter()
    closer.looks_closer = True  # type: ignore[attr-defined]
    first = Prediction(disc_mask(SIZE, [(210, 150)]), 0.5, "disc")
    assert look_again(closer, Prompt(((210.0, 150.0),)), first, lambda crop: pytest.fail("encoded")) is first


def test_an_empty_first_mask_is_looked_for_around_the_click() -> None:
    disc, whole = DiscSegmenter(), image()
    nothing: Mask = np.zeros(SIZE, bool)
    click = Prompt(((5.0, 895.0),))
    found = look_again(
        disc, click, Prediction(nothing, 0.0, "disc"), lambda crop: disc.encode(crop.cut(whole))
    )
    assert np.array_equal(found.mask, disc_mask(SIZE, [(5.0, 895.0)]))


def test_what_was_found_stays_if_the_crop_shows_nothing() -> None:
    class Blind(DiscSegmenter):
        def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
            return [Prediction(np.zeros(embedding.shape[:2], bool), 0.9, self.name)]

    blind, whole = Blind(), image()
    first = Prediction(drawn.disc(SIZE, (600, 450), 20), 0.5, "disc")
    click = Prompt(((600.0, 450.0),))
    assert look_again(blind, click, first, lambda crop: blind.encode(crop.cut(whole))) is first


def test_the_first_mask_goes_along_with_corrections_only() -> None:
    asked: list[Prompt] = []

    class Asked(DiscSegmenter):
        def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
            asked.append(prompt)
            return super().decode(embedding, prompt)

    asking, whole = Asked(), image()
    first = Prediction(drawn.disc(SIZE, (600, 450), 20), 0.5, "disc")
    point, other, box = (600.0, 450.0), (620.0, 450.0), (580.0, 430.0, 620.0, 470.0)
    alone = Prompt((point,)), Prompt(box=box)
    correcting = Prompt((point, other)), Prompt((point,), (other,)), Prompt((point,), box=box)
    given = Prompt(mask=first.mask)
    for prompt in (*alone, *correcting, given):
        look_again(asking, prompt, first, lambda crop: asking.encode(crop.cut(whole)))
    assert [each.mask is not None for each in asked] == [False] * 2 + [True] * 4
