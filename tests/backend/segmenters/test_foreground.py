"""Prompts that pick parts of what a network found by itself, and how the two networks see pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask import plugins, segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.disk_cache import half_precision
from clickmask.inference.sessions import RUNTIMES, Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import draw_above, mask_iou
from clickmask.segmenters import _foreground, salient, selfie
from clickmask.segmenters._foreground import ForegroundMap, ForegroundSegmenter
from clickmask.types import Image, Mask, Pixels, Prompt, Size
from support.drawn import disc, rectangle
from support.foreground_networks import CHANNELS, MIDDLE, STEEPNESS, write_salient, write_selfie
from support.hosts import host_of
from support.scenes import scene_image

SIZE = (300, 400)
LEFT, RIGHT = (0, 0, 200, 300), (240, 100, 400, 300)  # two people, of whom the left one is larger
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed"
)
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")


class Given:
    """A network that always answers with the same map."""

    runtime = "none"

    def __init__(self, probabilities: np.ndarray) -> None:
        self._given = probabilities.astype(np.float32)

    def probabilities(self, pixels: Pixels) -> np.ndarray:
        return self._given.copy()


def mapped(probabilities: np.ndarray, is_one: bool = False) -> tuple[ForegroundSegmenter, ForegroundMap]:
    segmenter = ForegroundSegmenter("given", "thing", Given(probabilities), is_one)
    return segmenter, segmenter.encode(scene_image(SIZE, 1))


def people(*boxes: tuple[int, int, int, int], probability: float = 0.9) -> np.ndarray:
    """A map at half the size."""
    found = np.zeros(SIZE, bool)
    for box in boxes:
        found |= rectangle(SIZE, box)
    return probability * found[::2, ::2]


def best(probabilities: np.ndarray, prompt: Prompt) -> Mask:
    segmenter, embedding = mapped(probabilities)
    return segmenter.decode(embedding, prompt)[0].mask


def test_a_click_on_a_person_is_that_person_alone() -> None:
    both = people(LEFT, RIGHT)
    assert mask_iou(best(both, Prompt(((300.0, 200.0),))), rectangle(SIZE, RIGHT)) > 0.98
    assert mask_iou(best(both, Prompt(((5.0, 5.0),))), rectangle(SIZE, LEFT)) > 0.98
    clicked = best(both, Prompt(((5.0, 5.0), (399.0, 299.0))))
    assert mask_iou(clicked, rectangle(SIZE, LEFT) | rectangle(SIZE, RIGHT)) > 0.98


def test_a_click_beside_everybody_finds_nothing() -> None:
    segmenter, embedding = mapped(people(LEFT, RIGHT))
    for found in segmenter.decode(embedding, Prompt(((300.0, 20.0),))):
        assert (found.mask.any(), found.mask.shape, found.score) == (False, SIZE, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_the_parts_are_all_of_what_was_found_and_share_no_pixel(seed: int, size: Size) -> None:
    coarse = np.random.default_rng(seed).random((9, 9)).astype(np.float32)
    values = np.asarray(cv2.resize(coarse, (24, 20), interpolation=cv2.INTER_CUBIC), np.float32).clip(0, 1)
    everything = np.empty(size, np.bool_)
    draw_above(values, 0.5, everything)
    segmenter, embedding = (
        ForegroundSegmenter("given", "thing", Given(values), False),
        ForegroundMap(values, size),
    )
    _, parts = cv2.connectedComponents((values > 0.5).view(np.uint8), connectivity=8)
    seen = np.zeros(size, np.int64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_foreground, "THRESHOLDS", (0.5,))
        for part in range(1, parts.max() + 1):
            row, column = np.argwhere(parts == part)[0] + 0.5
            (found,) = segmenter.decode(embedding, Prompt(((column * size[1] / 24, row * size[0] / 20),)))
            assert 0 < found.score <= 1
            seen += found.mask
    assert (seen == everything).all()


def test_a_box_takes_whom_it_holds_and_not_the_elbows_of_others() -> None:
    both = people(LEFT, RIGHT)
    found = best(both, Prompt(box=(180.0, 90.0, 400.0, 300.0)))
    assert mask_iou(found, rectangle(SIZE, RIGHT)) > 0.98
    assert not found[:, :200].any()


def test_a_box_cuts_people_who_touch() -> None:
    together = people((0, 0, 200, 300), (200, 0, 400, 300))
    found = best(together, Prompt(box=(200.0, 0.0, 400.0, 300.0)))
    assert (found == rectangle(SIZE, (200, 0, 400, 300))).all()
    found = best(together, Prompt(box=(250.4, 10.6, 300.5, 20.5)))  # pixels whose centre is inside
    assert (found == rectangle(SIZE, (250, 11, 300, 20))).all()


def test_a_click_in_a_box_takes_the_part_it_is_on() -> None:
    first, second = (20, 20, 100, 280), (140, 20, 220, 280)
    three = people(first, second, RIGHT)
    boxed = Prompt(box=(0.0, 0.0, 230.0, 300.0))
    assert (
        mask_iou(
            best(three, boxed), rectangle(SIZE, (20, 20, 100, 280)) | rectangle(SIZE, (140, 20, 220, 280))
        )
        > 0.97
    )
    clicked = Prompt(((150.0, 100.0),), box=boxed.box)
    assert mask_iou(best(three, clicked), rectangle(SIZE, second)) > 0.97
    rejected = Prompt(background=((150.0, 100.0),), box=boxed.box)
    assert mask_iou(best(three, rejected), rectangle(SIZE, first)) > 0.97


def test_a_region_means_the_people_it_covers() -> None:
    both = people(LEFT, RIGHT)
    region = rectangle(SIZE, (250, 110, 390, 290))
    assert mask_iou(best(both, Prompt(mask=region)), rectangle(SIZE, RIGHT)) > 0.98
    stroke = rectangle(SIZE, (300, 200, 320, 204))
    assert mask_iou(best(both, Prompt(mask=stroke)), rectangle(SIZE, RIGHT)) > 0.98
    assert not best(both, Prompt(mask=np.zeros(SIZE, bool))).any()


def test_a_background_click_on_the_same_part_divides_it_between_the_clicks() -> None:
    wide = people((0, 0, 400, 300))
    found = best(wide, Prompt(((100.0, 150.0),), ((300.0, 150.0),)))
    assert mask_iou(found, rectangle(SIZE, (0, 0, 200, 300))) > 0.98
    segmenter, embedding = mapped(wide)
    found = segmenter.decode(embedding, Prompt(((100.0, 150.0),), ((300.0, 150.0),)))
    assert len(found) == 3


def test_background_points_leave_the_candidates_that_avoid_them() -> None:
    shade = people((100, 100, 300, 200), probability=0.65)  # in one candidate alone
    sure = people((100, 100, 200, 200))
    segmenter, embedding = mapped(np.maximum(shade, sure))
    click = ((150.0, 150.0),)
    areas = [np.count_nonzero(each.mask) for each in segmenter.decode(embedding, Prompt(click))]
    assert len(areas) == 3
    (only,) = segmenter.decode(embedding, Prompt(click, background=((250.0, 150.0),)))
    assert mask_iou(only.mask, rectangle(SIZE, (100, 100, 200, 200))) > 0.95
    assert len(segmenter.decode(embedding, Prompt(click, background=click))) == 3  # contradicts all alike


def test_the_score_is_the_iou_that_the_probabilities_expect() -> None:
    halves = people(LEFT, RIGHT, probability=0.8)
    segmenter, embedding = mapped(halves)
    for found in segmenter.decode(embedding, Prompt(((10.0, 10.0),))):
        assert found.score == pytest.approx(0.8)
    fringe = np.maximum(halves, people((0, 0, 200, 300), (50, 50, 60, 60), probability=0.8))
    fringe[50:60, 20:40] = 0.25  # a hole that is not quite one
    segmenter, embedding = mapped(fringe)
    inside, beside = 15_000 - 200, 0.25 * 200
    expected = 0.8 * inside / (inside + beside)
    assert segmenter.decode(embedding, Prompt(((10.0, 10.0),)))[0].score == pytest.approx(expected)


def test_without_a_prompt_people_are_apart_and_an_object_is_whole() -> None:
    speck = (300, 20, 304, 24)
    both = people(LEFT, RIGHT, speck)
    segmenter, embedding = mapped(both)
    found = segmenter.find(embedding)
    assert [label for label, _ in found] == ["thing", "thing"]
    for box in (LEFT, RIGHT):
        assert max(mask_iou(each.mask, rectangle(SIZE, box)) for _, each in found) > 0.98
    segmenter, embedding = mapped(both, is_one=True)
    ((_, whole),) = segmenter.find(embedding)
    assert mask_iou(whole.mask, rectangle(SIZE, LEFT) | rectangle(SIZE, RIGHT)) > 0.98
    for is_one in (True, False):
        segmenter, embedding = mapped(people(speck), is_one)
        assert segmenter.find(embedding) == []


def test_a_stored_map_gives_the_same_masks() -> None:
    segmenter, embedding = mapped(people(LEFT, RIGHT))
    arrays = {name: each.copy() for name, each in embedding.arrays().items()}
    restored = segmenter.restore(half_precision(arrays))
    np.testing.assert_allclose(restored.probabilities, embedding.probabilities, atol=1e-3)
    assert (restored.size, restored.nbytes) == (embedding.size, 150 * 200 * 4)
    assert not restored.probabilities.flags.writeable
    with pytest.raises(ValueError, match="are not of given"):
        segmenter.restore({"probabilities": np.zeros(3), "size": np.array([60, 80])})


def blue_disc(size: Size, centre: tuple[float, float], radius: float) -> Image:
    pixels = np.full((*size, 3), 40, np.uint8)
    pixels[disc(size, centre, radius)] = (30, 90, 220)
    pixels.flags.writeable = False
    return Image(pixels, "blue")


@needs_litert
@pytest.mark.parametrize("size", [(300, 400), (900, 1200), (97, 1300), (40, 30)])
def test_a_selfie_s_mask_lies_where_the_person_is(tmp_path: Path, size: Size) -> None:
    weights = WeightsFolder(tmp_path, checkpoints={"selfie": write_selfie(tmp_path)})
    segmenter = selfie.load("", host_of(weights))
    assert segmenter.runs_on == "litert on the CPU, f32"
    person = blue_disc(size, (0.4 * size[1], 0.6 * size[0]), 0.3 * min(size))
    embedding = segmenter.encode(person)
    truth = disc(size, (0.4 * size[1], 0.6 * size[0]), 0.3 * min(size))
    ((label, found),) = segmenter.find(embedding)
    assert label == "person"
    cell = max(size) / 128
    assert mask_iou(found.mask, truth) > 1 - cell / (0.3 * min(size))
    centres = [np.argwhere(mask).mean(0) for mask in (found.mask, truth)]
    np.testing.assert_allclose(*centres, atol=0.25 * cell)


@needs_litert
def test_a_selfie_s_network_sees_the_picture_between_0_and_1(tmp_path: Path) -> None:
    weights = WeightsFolder(tmp_path, checkpoints={"selfie": write_selfie(tmp_path)})
    image = scene_image((256, 256), 3)
    cool = (image.pixels / 255 @ CHANNELS).reshape(128, 2, 128, 2).mean((1, 3))
    logits = STEEPNESS * (cool - MIDDLE)
    expected = 1 / (1 + np.exp(-logits)).repeat(2, 0).repeat(2, 1)
    found = selfie.load("", host_of(weights)).encode(image).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_salient_map_is_that_of_the_pictures_as_rembg_prepares_them(tmp_path: Path, runtime: str) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    weights = WeightsFolder(tmp_path, checkpoints={"salient": write_salient(tmp_path)})
    segmenter = salient.load("", host_of(weights, Runtimes(runtime)))
    assert segmenter.runs_on == f"{runtime} on the CPU, f32"  # nor in bf16 where it may
    dark = Image(scene_image((211, 403), 3).pixels // 2, "dark")  # its brightest value becomes 1
    small = np.array(PIL.Image.fromarray(dark.pixels).resize((320, 320), PIL.Image.Resampling.LANCZOS))
    bright = (small / small.max() - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = 1 / (1 + np.exp(-bright @ CHANNELS))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = segmenter.encode(dark).probabilities
    assert (found.min(), found.max()) == (0.0, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_onnx
def test_nothing_stands_out_of_one_colour(tmp_path: Path) -> None:
    weights = WeightsFolder(tmp_path, checkpoints={"salient": write_salient(tmp_path)})
    segmenter = salient.load("", host_of(weights))
    for shade in (0, 255):
        embedding = segmenter.encode(Image(np.full((50, 60, 3), shade, np.uint8), "plain"))
        assert segmenter.find(embedding) == []
        assert not segmenter.decode(embedding, Prompt(((30.0, 20.0),)))[0].mask.any()


def test_they_name_what_they_lack_and_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = WeightsFolder(tmp_path, checkpoints=plugins.checkpoints(segmenters))
    statuses = {each.name: each.reason for each in Catalogue(segmenters, weights).statuses()}
    lacks = "its weights are not here: clickmask weights fetch"
    assert statuses["salient"] == f"{lacks} salient"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert selfie.missing("", host_of(weights)) == (
        "it needs the package ai-edge-litert: make install, or pip install 'clickmask[selfie]'"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert selfie.missing("", host_of(weights)) == f"{lacks} selfie"
