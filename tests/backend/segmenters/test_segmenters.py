"""What every installed segmenter owes: a new file in clickmask/segmenters/ is under test at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask import plugins, segmenters
from clickmask.errors import NotReady
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.weights import WeightsFolder
from clickmask.types import GridPromptable, Image, Pixels, Prediction, Prompt, Segmenter
from support.foreground_networks import write_salient, write_selfie
from support.scenes import drawn_scene

NAMES = plugins.names(segmenters)
RANDOM = {"sam", "mobile_sam", "sam_hq", "efficient_sam"}  # those whose weights are random here


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    """What is installed, and small networks with random weights as if they were the official files."""
    folder = tmp_path_factory.mktemp("weights")
    known = {
        name: write(folder)
        for package, name, write in (
            ("onnx", "salient", write_salient),
            ("ai_edge_litert", "selfie", write_selfie),
        )
        if importlib.util.find_spec(package) is not None
    }
    if importlib.util.find_spec("torch") is None:
        weights = WeightsFolder(folder, checkpoints=known)
        weights.verify_new()
        yield Catalogue(segmenters, weights)
        return
    from clickmask.segmenters._sam.tiny_vit import TinyViT
    from support import checkpoints
    from support.efficient_sam_networks import write_efficient_sam

    small = checkpoints.TINY_MOBILE_SAM
    known["efficient_sam:vit_t"] = write_efficient_sam(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TinyViT, "img_size", small.side)
        for name, network in (
            ("sam:vit_b", checkpoints.random_sam(checkpoints.TINY)),
            ("mobile_sam:vit_t", checkpoints.random_sam(small)),
            ("sam_hq:vit_tiny", checkpoints.random_sam_hq(small)),
        ):
            path = checkpoints.save(network, folder / f"{name.replace(':', '-')}.pth")
            known |= checkpoints.weights_of(path, name).checkpoints
        weights = WeightsFolder(folder, checkpoints=known)
        weights.verify_new()
        yield Catalogue(segmenters, weights)


@pytest.fixture(params=NAMES, scope="module")
def segmenter(request: pytest.FixtureRequest, catalogue: Catalogue) -> Segmenter[Any]:
    names = (name for name in catalogue.variants() if name.split(":")[0] == request.param)
    try:
        return catalogue.get(next(names, request.param))
    except NotReady as error:
        pytest.skip(str(error))


def image(pixels: Pixels) -> Image:
    pixels.flags.writeable = False
    return Image(pixels, f"digest of {pixels.shape}")


@pytest.fixture(scope="module")
def scene() -> Image:
    return image(drawn_scene(1)[0])


def test_every_segmenter_says_what_it_runs_on(segmenter: Segmenter[Any]) -> None:
    runtime, _, device = str(getattr(segmenter, "runs_on", "")).partition(" on ")
    assert runtime in {"OpenCV", "openvino", "onnxruntime", "litert", "torch"}
    assert device.split(",")[0] in {"the CPU", "cpu", "cuda", "mps"}


def test_what_is_said_of_it_is_what_it_does(
    segmenter: Segmenter[Any], catalogue: Catalogue, scene: Image
) -> None:
    variant = catalogue.variants()[segmenter.name]
    embedding = segmenter.encode(scene)
    clicks = [(float(x), y) for x in range(20, 320, 60) for y in (60.0, 150.0)]
    counts = [len(segmenter.decode(embedding, Prompt((click,)))) for click in clicks]
    assert max(counts) <= variant.about.candidates
    assert (max(counts) > 1) == (variant.about.candidates > 1)
    box = np.zeros(scene.size, np.bool_)
    box[40:160, 110:200] = True
    frame = box.copy()
    frame[50:150, 120:190] = False
    of_box, of_frame = (segmenter.decode(embedding, Prompt(mask=mask))[0] for mask in (box, frame))
    differ = bool((of_box.mask != of_frame.mask).any()) or of_box.score != of_frame.score
    assert differ == ("mask" in variant.about.prompts)
    assert isinstance(segmenter, GridPromptable) == variant.sweeps


PROMPTS = {
    "a click": Prompt(foreground=((155.0, 90.0),)),
    "three clicks": Prompt(foreground=((155.0, 90.0), (150.5, 80.5), (160.0, 100.0))),
    "a click and a negative": Prompt(foreground=((155.0, 90.0),), background=((20.0, 20.0),)),
    "a box": Prompt(box=(110.0, 20.0, 200.0, 200.0)),
    "a box and a click": Prompt(foreground=((155.0, 90.0),), box=(110.0, 20.0, 200.0, 200.0)),
    "a box and a negative": Prompt(background=((112.0, 22.0),), box=(110.0, 20.0, 200.0, 200.0)),
    "the whole image": Prompt(box=(0.0, 0.0, 320.0, 240.0)),
    "the corners": Prompt(foreground=((0.0, 0.0),), background=((320.0, 240.0),)),
    "the far corner": Prompt(foreground=((320.0, 240.0),)),
    "one place, both ways": Prompt(foreground=((155.0, 90.0),), background=((155.0, 90.0),)),
    "a speck of a box": Prompt(box=(100.2, 100.2, 100.4, 100.4)),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_answers_are_whole_image_masks_best_first(
    segmenter: Segmenter[Any], scene: Image, prompt: Prompt
) -> None:
    predictions = segmenter.decode(segmenter.encode(scene), prompt)
    assert predictions
    for prediction in predictions:
        assert prediction.mask.shape == scene.size
        assert prediction.mask.dtype == np.bool_
        assert prediction.segmenter == segmenter.name
    scores = [prediction.score for prediction in predictions]
    assert scores == sorted(scores, reverse=True)


def test_the_size_of_an_embedding_is_known(segmenter: Segmenter[Any], scene: Image) -> None:
    assert 0 < segmenter.encode(scene).nbytes < 100 * 2**20


def test_neither_half_writes_into_what_it_is_given(segmenter: Segmenter[Any], scene: Image) -> None:
    before = scene.pixels.copy()
    embedding = segmenter.encode(scene)  # read-only pixels: writing would raise
    given_mask = np.zeros(scene.size, np.bool_)
    given_mask[40:160, 120:190] = True
    given_mask.flags.writeable = False
    first = segmenter.decode(embedding, Prompt(foreground=((155.0, 90.0),), mask=given_mask))
    assert (scene.pixels == before).all()
    first[0].mask[:] = False  # the caller owns it
    again = segmenter.decode(embedding, Prompt(foreground=((155.0, 90.0),), mask=given_mask))
    assert again[0].mask.any()


def test_a_prompt_never_depends_on_the_one_before(segmenter: Segmenter[Any], scene: Image) -> None:
    embedding = segmenter.encode(scene)
    prompts = [PROMPTS[name] for name in ("a click", "a box", "a click and a negative", "three clicks")]
    alone = [segmenter.decode(embedding, prompt)[0].mask for prompt in prompts]
    backwards = [segmenter.decode(embedding, prompt)[0].mask for prompt in reversed(prompts)]
    for mask, other in zip(alone, reversed(backwards), strict=True):
        assert (mask == other).all()


def test_a_background_click_is_not_in_the_answer(segmenter: Segmenter[Any]) -> None:
    if segmenter.name.partition(":")[0] in RANDOM:
        pytest.skip("its weights are random here")
    pixels, masks = drawn_scene(2)
    rectangle = masks[1]
    rows = np.flatnonzero(rectangle.any(1))
    inside, wrong = (155.0, float(rows[0] + 15)), (155.0, float(rows[-1] - 10))
    embedding = segmenter.encode(image(pixels))
    assert segmenter.decode(embedding, Prompt((inside,)))[0].mask[int(wrong[1]), 155]
    mask = segmenter.decode(embedding, Prompt((inside,), (wrong,)))[0].mask
    assert mask[int(inside[1]), 155]
    assert not mask[int(wrong[1]), 155]


def test_eight_threads_on_two_images_get_the_serial_answers(segmenter: Segmenter[Any]) -> None:
    images = [image(drawn_scene(seed)[0]) for seed in (3, 4)]
    prompts = [PROMPTS[name] for name in ("a click", "a click and a negative", "a box", "three clicks")]
    embeddings = [segmenter.encode(each) for each in images]
    jobs = [(number, prompt) for prompt in prompts for number in (0, 1)]

    def answer(job: tuple[int, Prompt]) -> Prediction:
        return segmenter.decode(embeddings[job[0]], job[1])[0]

    def encode_and_answer(job: tuple[int, Prompt]) -> Prediction:
        return segmenter.decode(segmenter.encode(images[job[0]]), job[1])[0]

    serial = [answer(job) for job in jobs]
    assert any((a.mask != b.mask).any() for a, b in zip(serial[::2], serial[1::2], strict=True))
    with ThreadPoolExecutor(8) as pool:
        for work in (answer, encode_and_answer):
            for expected, got in zip(serial, pool.map(work, jobs), strict=True):
                assert (expected.mask == got.mask).all()
                assert expected.score == got.score


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 9),
    levels=st.sampled_from([1, 2, 256]),
    data=st.data(),
)
def test_any_small_image_takes_any_prompt(
    segmenter: Segmenter[Any], height: int, width: int, seed: int, levels: int, data: st.DataObject
) -> None:
    pixels = np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)
    point = st.tuples(st.floats(0, width), st.floats(0, height))
    foreground = data.draw(st.lists(point, min_size=1, max_size=3))
    background = data.draw(st.lists(point, max_size=2))
    box = data.draw(
        st.sampled_from([None, (0.0, 0.0, float(width), float(height)), (0.25, 0.25, 0.75, 0.75)])
    )
    mask = data.draw(
        st.sampled_from([None, np.zeros((height, width), np.bool_), pixels[..., 0] > levels // 2])
    )
    prompt = Prompt(tuple(foreground), tuple(background), box, mask)
    prompt.require_inside((height, width))
    for prediction in segmenter.decode(segmenter.encode(image(pixels)), prompt):
        assert prediction.mask.shape == (height, width)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3), (1, 3000), (2000, 3000)])
@pytest.mark.parametrize("colour", [0, 128, 255])
def test_one_colour_is_answered_at_any_size(
    segmenter: Segmenter[Any], size: tuple[int, int], colour: int
) -> None:
    embedding = segmenter.encode(image(np.full((*size, 3), colour, np.uint8)))
    height, width = size
    for prompt in (
        Prompt(foreground=((width / 2, height / 2),)),
        Prompt(box=(0.0, 0.0, float(width), float(height))),
    ):
        assert segmenter.decode(embedding, prompt)[0].mask.shape == size
