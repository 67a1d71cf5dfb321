from __future__ import annotations

from collections.abc import Callable

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from clickmask.types import Mask
from clickmask_adapters.tools.cvat import mask_points
from clickmask_adapters.tools.cvat.mask_points import mask_to_dense_reply, mask_to_flat
from support.drawn import MASKS

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))


@settings(deadline=None)
@given(masks)
def test_a_dense_reply_is_json_of_every_row(mask: Mask) -> None:
    assert orjson.loads(mask_to_dense_reply(mask)) == {"mask": mask.astype(int).tolist()}


@settings(deadline=None)
@given(masks, st.lists(st.integers(0, 10**6), max_size=4))
def test_a_flat_mask_is_json_of_every_pixel_and_what_comes_after(mask: Mask, after: list[int]) -> None:
    assert orjson.loads(mask_to_flat(mask, tuple(after))) == [*mask.astype(int).ravel().tolist(), *after]


@pytest.mark.parametrize("draw", MASKS.values(), ids=MASKS)
def test_drawn_masks_are_written_as_they_are(draw: Callable[[], Mask]) -> None:
    mask = draw()
    assert orjson.loads(mask_to_dense_reply(mask)) == {"mask": mask.astype(int).tolist()}


@pytest.mark.parametrize("at_once", [1, 5, 12, 13, 64])
def test_rows_are_whole_however_many_are_written_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_points, "PIXELS_AT_ONCE", at_once)
    mask = np.random.default_rng(at_once).random((7, 6)) > 0.5
    assert orjson.loads(mask_to_dense_reply(mask)) == {"mask": mask.astype(int).tolist()}


def test_a_photo_is_written_in_two_characters_a_pixel() -> None:
    mask = np.random.default_rng(0).random((3000, 4000)) > 0.5
    text = mask_to_dense_reply(mask)
    assert len(text) == 2 * mask.size + 2 * len(mask) + len('{"mask":[') + len("]}") - 1
    assert orjson.loads(text)["mask"][2999] == mask[2999].astype(int).tolist()


def test_views_are_written_as_they_look() -> None:
    mask = np.random.default_rng(1).random((9, 8)) > 0.5
    for view in (mask.T, mask[::-1], mask[:, ::2], mask[2:5, 1:]):
        assert orjson.loads(mask_to_dense_reply(view)) == {"mask": view.astype(int).tolist()}
        assert orjson.loads(mask_to_flat(view)) == view.astype(int).ravel().tolist()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_what_has_no_rows_of_pixels_is_refused(shape: tuple[int, ...]) -> None:
    for write in (mask_to_dense_reply, mask_to_flat):
        with pytest.raises(ValueError, match="no pixels"):
            write(np.ones(shape, bool))
