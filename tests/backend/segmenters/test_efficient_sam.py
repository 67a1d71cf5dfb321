"""EfficientSAM on networks of its signature: prompts in, masks out, in every runtime."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from clickmask import plugins, segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.disk_cache import half_precision
from clickmask.inference.sessions import RUNTIMES, Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_box, mask_iou
from clickmask.segmenters import efficient_sam
from clickmask.segmenters.efficient_sam import EfficientSam
from clickmask.types import Box, Image, Prompt, Size
from support.drawn import disc, rectangle
from support.efficient_sam_networks import Encoder, write_efficient_sam
from support.hosts import host_of
from support.scenes import scene_image

NAME = "efficient_sam:vit_t"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsFolder:
    folder = tmp_path_factory.mktemp("weights")
    found = WeightsFolder(folder, checkpoints={NAME: write_efficient_sam(folder)})
    found.verify(NAME)
    return found


@pytest.fixture(scope="module", params=RUNTIMES)
def segmenter(weights: WeightsFolder, request: pytest.FixtureRequest) -> EfficientSam:
    return efficient_sam.load("vit_t", host_of(weights, Runtimes(request.param, exact=True)))


def ellipse(size: Size, at: tuple[float, float], radius: float) -> np.ndarray:
    """A disc of the stretched image."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.hypot((x - at[0]) * 1024 / size[1], (y - at[1]) * 1024 / size[0]) < radius


@pytest.mark.parametrize("size", [(300, 400), (1200, 900), (97, 1300)])
def test_a_click_and_a_box_are_where_they_were_asked_for(segmenter: EfficientSam, size: Size) -> None:
    embedding = segmenter.encode(scene_image(size, 2))
    at = (0.55 * size[1], 0.6 * size[0])
    found = segmenter.decode(embedding, Prompt((at,)))
    assert [each.score for each in found] == pytest.approx([1.0, 0.8, 0.5])  # best first, clipped
    for each, radius in zip(found, (120.0, 180.0, 60.0), strict=True):
        assert mask_iou(each.mask, ellipse(size, at, radius)) > 0.97
    box: Box = (0.25 * size[1], 0.5 * size[0], 0.75 * size[1], 0.875 * size[0])
    whole = rectangle(size, (round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    for prompt in (Prompt(box=box), Prompt(mask=whole)):
        found_box = mask_box(segmenter.decode(embedding, prompt)[0].mask)
        assert found_box == pytest.approx(box, abs=max(size) / 256)


def test_the_encoder_sees_the_stretched_image_in_floats(segmenter: EfficientSam) -> None:
    image = scene_image((300, 400), 3)
    raw = torch.tensor(image.pixels).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = Encoder()(raw).numpy()
    found = segmenter.encode(image).features
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_large_image_is_stretched_in_little_memory(segmenter: EfficientSam) -> None:
    pixels = np.broadcast_to(np.uint8(7), (8000, 9000, 3))
    tracemalloc.start()
    try:
        stretched = efficient_sam.stretched(pixels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * stretched.nbytes < pixels.size  # in float it would be four times that


def test_background_points_choose_among_the_candidates(segmenter: EfficientSam) -> None:
    size = (512, 512)
    embedding = segmenter.encode(scene_image(size, 2))
    centre, beside, inside = (256.0, 256.0), (256.0 + 75, 256.0), (256.0 + 45, 256.0)
    radius = {0: 60.0, 1: 30.0, 2: 30.0}  # the best one; the one without the points
    for count, background in enumerate(((), (inside,), (inside, beside))):
        first = segmenter.decode(embedding, Prompt((centre,), background))[0]
        assert mask_iou(first.mask, disc(size, centre, radius[count])) > 0.97
    assert len(segmenter.decode(embedding, Prompt((centre,), ((512.0, 512.0),)))) == 3  # a corner


def test_more_than_six_points_are_its_last_six(segmenter: EfficientSam) -> None:
    size = (1024, 1024)
    embedding = segmenter.encode(scene_image(size, 2))
    clicks = tuple((100.0 + 120 * number, 500.0) for number in range(8))
    everything = segmenter.decode(embedding, Prompt(clicks))[2].mask
    assert not everything[500, 100] and not everything[500, 220]
    assert all(everything[500, int(x)] for x, _ in clicks[2:])
    boxed = segmenter.decode(embedding, Prompt(clicks, box=(300.0, 400.0, 1000.0, 600.0)))[2].mask
    assert not boxed[500, 460] and boxed[500, 580]


def test_an_empty_mask_alone_finds_nothing(segmenter: EfficientSam) -> None:
    embedding = segmenter.encode(scene_image((60, 80), 2))
    (found,) = segmenter.decode(embedding, Prompt(mask=np.zeros((60, 80), np.bool_)))
    assert (found.mask.any(), found.score) == (False, 0.0)


def test_a_stored_embedding_gives_the_same_masks(segmenter: EfficientSam) -> None:
    embedding = segmenter.encode(scene_image((60, 80), 2))
    arrays = {name: array.copy() for name, array in embedding.arrays().items()}
    restored = segmenter.restore(half_precision(arrays))
    np.testing.assert_allclose(restored.features, embedding.features, atol=1e-2)
    assert (restored.size, restored.nbytes) == (embedding.size, 256 * 64 * 64 * 4)
    with pytest.raises(ValueError, match=f"are not of {NAME}"):
        segmenter.restore({"features": np.zeros((1, 256, 16, 16)), "size": np.array([60, 80])})


def test_it_is_loaded_without_torch_and_says_how_to_get_its_weights(
    weights: WeightsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = WeightsFolder(tmp_path, checkpoints=plugins.checkpoints(segmenters))
    reasons = {each.name: each.reason for each in Catalogue(segmenters, official).statuses()}
    for variant in efficient_sam.VARIANTS:
        name = f"efficient_sam:{variant}"
        assert reasons[name] == f"its weights are not here: clickmask weights fetch {name}"
    Catalogue(segmenters, official).require_all_but_weights(NAME)
    loaded = Catalogue(segmenters, weights, Runtimes("onnxruntime")).get(NAME)
    image = Image(np.zeros((60, 80, 3), np.uint8), "blank")
    assert loaded.decode(loaded.encode(image), Prompt(((40.0, 30.0),)))[0].mask.shape == (60, 80)
