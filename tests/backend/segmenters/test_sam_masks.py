"""A decoder's logits at the size of the image, beside torch's `interpolate`, as SAM's reference has it."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickmask.segmenters._sam.frame import logits_to_mask, resized_size
from clickmask.types import Mask, Size


def blobs(seed: int, scale: float = 12.0) -> NDArray[np.float32]:
    """Smooth logits with a few blobs, some cut by the edge."""
    noise = np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), scale)
    return np.asarray(smooth - smooth.std() * (seed % 3 - 1), np.float32)


def reference(logits: NDArray[np.float32], side: int, resized: Size, size: Size) -> Mask:
    interpolate = functools.partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
    padded = interpolate(torch.tensor(logits)[None, None], (side, side))
    return (interpolate(padded[..., : resized[0], : resized[1]], size)[0, 0] > 0).numpy()


def require_equal(logits: NDArray[np.float32], size: Size, side: int = 1024) -> None:
    resized = resized_size(size, side)
    mask = logits_to_mask(logits, side, resized, size)
    assert mask.dtype == np.bool_ and mask.shape == size
    assert np.array_equal(mask, reference(logits, side, resized, size))


@pytest.mark.parametrize(
    "size",
    [(1024, 1024), (768, 1024), (1080, 1920), (701, 467), (97, 131), (3000, 4000), (1, 3000), (2, 3), (5, 1)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mask_is_that_of_the_reference_to_the_pixel(size: Size, seed: int) -> None:
    require_equal(blobs(seed), size)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000), st.sampled_from([1.0, 4.0, 30.0]))
def test_every_size_and_scale_is_exact(height: int, width: int, seed: int, scale: float) -> None:
    require_equal(blobs(seed, scale)[:64, :64].copy(), (height, width), side=256)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_what_is_the_same_everywhere_stays_so(value: float) -> None:
    logits = np.full((256, 256), value, np.float32)
    assert (logits_to_mask(logits, 1024, (768, 1024), (300, 400)) == (value > 0)).all()


def test_a_single_positive_pixel_of_the_padding_is_not_seen() -> None:
    logits = np.full((256, 256), -1, np.float32)
    logits[250, 10] = 9
    require_equal(logits, (300, 400))
    assert not logits_to_mask(logits, 1024, (768, 1024), (300, 400)).any()


def test_an_image_smaller_than_its_logits_may_look_past_what_is_positive() -> None:
    logits = np.full((256, 256), -1, np.float32)
    logits[:3, :3] = 1
    for size in ((1, 1), (2, 3), (1, 700)):
        require_equal(logits, size, side=256)
