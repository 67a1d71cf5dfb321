"""The built-in segmenter with its published weights, on photographs and drawings."""

from __future__ import annotations

import importlib.util
import json
from importlib import resources

import numpy as np
import pytest

import builtin_outputs
from builtin_outputs import OUTPUTS, PROMPTS, photograph
from clickmask.disk_embeddings import Restoring, half_precision
from clickmask.errors import SegmenterNotReady
from clickmask.masks import mask_iou, rle_to_mask
from clickmask.refinement import LogitsCache, replay
from clickmask.runtimes import Runtimes
from clickmask.segmenters import builtin
from clickmask.segmenters.builtin import Builtin
from clickmask.types import Image, Prompt, Refining
from photographs import central_point, next_click, outlined_objects, tight_box
from scenes import drawn_scene

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def segmenter() -> Builtin:
    return builtin.load(runtimes=Runtimes(runtime="onnxruntime", exact=True))


def scene(seed: int) -> tuple[Image, list[np.ndarray]]:
    pixels, masks = drawn_scene(seed)
    return Image(pixels, f"scene {seed}"), masks


def test_flat_shapes_are_found_by_one_click_and_by_a_box(segmenter: Builtin) -> None:
    for seed in range(2):
        image, masks = scene(seed)
        embedding = segmenter.encode(image)
        for mask in masks:
            point = central_point(mask)
            assert point is not None
            for prompt in (Prompt((point,)), Prompt(box=tight_box(mask))):
                assert mask_iou(segmenter.decode(embedding, prompt)[0].mask, mask) > 0.9


ONE_CLICK = {  # outlines in tests/photographs that a person would say one click means
    "astronaut: mission patch": 0.85,
    "astronaut: helmet": 0.85,
    "camera: tower": 0.7,
    "coffee: cup": 0.8,
    "coins: top right coin": 0.85,
    "coins: coin with a flat foot": 0.85,
    "coins: largest coin": 0.85,
    "motorcycle_left: cardboard box": 0.7,
}


def test_clicks_and_boxes_on_photographs_select_what_a_person_would_say(segmenter: Builtin) -> None:
    boxes: list[float] = []
    seen, embedding = "", None
    for outlined in outlined_objects():
        photograph_name = outlined.name.partition(":")[0]
        if photograph_name != seen:
            seen, embedding = photograph_name, segmenter.encode(Image(outlined.pixels, outlined.name))
        assert embedding is not None
        if outlined.name in ONE_CLICK:
            point = central_point(outlined.mask)
            assert point is not None
            found = segmenter.decode(embedding, Prompt((point,)))[0].mask
            assert mask_iou(found, outlined.mask) > ONE_CLICK[outlined.name], outlined.name
        box = Prompt(box=tight_box(outlined.mask))
        boxes.append(mask_iou(segmenter.decode(embedding, box)[0].mask, outlined.mask))
    assert np.mean(boxes) > 0.82


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_are_those_that_were_published(runtime: str) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    segmenter = builtin.load(runtimes=Runtimes(runtime=runtime, exact=True))
    published = json.loads(OUTPUTS.read_text())
    assert published.keys() == PROMPTS.keys()
    for name, (picture, prompt) in PROMPTS.items():
        answer = segmenter.decode(segmenter.encode(photograph(picture)), prompt)[0]
        assert mask_iou(answer.mask, rle_to_mask(published[name]["rle"])) > 0.97, name
        assert answer.score == pytest.approx(published[name]["score"], abs=0.03), name


def test_a_lone_click_offers_a_part_and_the_whole(segmenter: Builtin) -> None:
    image = photograph("astronaut.png")
    candidates = segmenter.decode(segmenter.encode(image), Prompt(((225.0, 110.0),)))  # in the face
    areas = sorted(int(candidate.mask.sum()) for candidate in candidates)
    assert len(areas) >= 2
    assert areas[-1] > 1.3 * areas[0]


def test_corrections_add_up(segmenter: Builtin) -> None:
    assert isinstance(segmenter, Refining)
    outlined = next(each for each in outlined_objects() if each.name == "camera: man")
    embedding, cache = segmenter.encode(Image(outlined.pixels, "camera")), LogitsCache()
    point = central_point(outlined.mask)
    assert point is not None
    foreground, background, ious = [point], [], []
    for _ in range(4):
        prompt = Prompt(tuple(foreground), tuple(background))
        found = replay(segmenter, embedding, prompt, cache=cache)[0].mask
        ious.append(mask_iou(found, outlined.mask))
        click = next_click(found, outlined.mask)
        assert click is not None
        (foreground if click[1] else background).append(click[0])
    assert ious[-1] > 0.85
    assert ious[-1] > ious[0]


def test_a_rough_mask_is_sharpened(segmenter: Builtin) -> None:
    image, masks = scene(1)
    rough = np.roll(masks[0], (4, -4), (0, 1))
    found = segmenter.decode(segmenter.encode(image), Prompt(mask=rough))[0].mask
    assert mask_iou(found, masks[0]) > max(0.9, mask_iou(rough, masks[0]))


def test_a_person_has_the_last_word(segmenter: Builtin) -> None:
    image, masks = scene(2)
    embedding = segmenter.encode(image)
    rows = np.flatnonzero(masks[1].any(1))
    inside, wrong = (155.0, float(rows[0] + 15)), (155.0, float(rows[-1] - 10))
    rejected = segmenter.decode(embedding, Prompt((inside,), (wrong,)))[0].mask
    assert rejected[int(inside[1]), 155]
    assert not rejected[int(wrong[1]), 155]
    added = segmenter.decode(embedding, Prompt((inside, (5.0, 5.0)), ((155.0, 100.0),)))[0].mask
    assert added[5, 5]


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_masks_are_never_empty(segmenter: Builtin, fill: int) -> None:
    for size in ((40, 90), (1, 1), (3, 200)):
        pixels = np.full((*size, 3), fill, np.uint8)
        embedding = segmenter.encode(Image(pixels, str(size)))
        height, width = size
        prompts = [
            Prompt(((width / 2, height / 2),)),
            Prompt(((0.0, 0.0),), ((0.0, 0.0), (float(width), float(height)))),
            Prompt(box=(0.0, 0.0, width / 2, height / 2)),
            Prompt(background=((width / 4, height / 4),), box=(0.0, 0.0, width / 2, height / 2)),
            Prompt(mask=np.zeros(size, np.bool_)),
        ]
        for prompt in prompts:
            assert all(each.mask.any() for each in segmenter.decode(embedding, prompt)), (size, prompt)


def test_embeddings_outlast_the_process(segmenter: Builtin) -> None:
    assert isinstance(segmenter, Restoring)
    image, masks = scene(0)
    embedding = segmenter.encode(image)
    restored = segmenter.restore(half_precision(embedding.arrays()))
    assert isinstance(restored, builtin.BuiltinEmbedding)
    assert restored.size == embedding.size
    assert restored.nbytes == embedding.nbytes
    prompt = Prompt(box=tight_box(masks[0]))
    before, after = (segmenter.decode(each, prompt)[0].mask for each in (embedding, restored))
    assert mask_iou(before, after) > 0.99


def test_damaged_weights_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "FILES", {"encoder.onnx": "0" * 64})
    with pytest.raises(SegmenterNotReady, match="damaged"):
        builtin.load()


def test_weights_come_with_their_card_and_notice() -> None:
    folder = resources.files(builtin.WEIGHTS)
    assert sum(len(folder.joinpath(name).read_bytes()) for name in builtin.FILES) < 15 * 2**20
    for name in ("MODEL_CARD.md", "NOTICE"):
        assert "EfficientNet-Lite2" in folder.joinpath(name).read_text()
    assert builtin_outputs.OUTPUTS.is_file()
