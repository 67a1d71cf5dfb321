"""Segment Anything against its reference, SamPredictor, on the same checkpoint file."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from clickmask import plugins, segmenters
from clickmask.errors import NotReady
from clickmask.inference import refinement
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.disk_cache import half_precision
from clickmask.inference.refinement import Refinement
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.segmenters import sam
from clickmask.segmenters._sam import frame, onnx_export
from clickmask.segmenters._sam.frame import (
    MASK_PROMPT_LOGIT,
    agreement,
    logits_to_mask,
    mask_to_logits,
    middle,
    resized_size,
)
from clickmask.segmenters._sam.high_quality import HqMaskDecoder
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.segmenter import Sam, SamEmbedding
from clickmask.segmenters._sam.tiny_vit import TinyViT
from clickmask.segmenters._sam.torch_networks import batched_nms, box_area, import_segment_anything
from clickmask.types import Box, Image, Point, Prediction, Prompt, Refinable, Size
from support.checkpoints import TINY, VIT_B, Architecture, random_sam, weights_of, write_checkpoint
from support.drawn import disc
from support.hosts import host_of
from support.scenes import scene_image

SHAPES: dict[str, Size] = {"landscape": (240, 320), "portrait": (701, 467), "small": (97, 131)}


@dataclass(frozen=True, eq=False)
class Pair:
    """The same checkpoint file in clickmask and in the reference."""

    ours: Sam
    reference: Any


@dataclass(frozen=True, eq=False)
class Encoded:
    pair: Pair
    image: Image
    embedding: SamEmbedding


def pair_of(checkpoint: Path, architecture: Architecture) -> Pair:
    reference = random_sam(architecture, seed=99)  # other weights, until it has those of the file
    reference.load_state_dict(torch.load(checkpoint, weights_only=True))
    predictor = import_segment_anything().SamPredictor(reference)
    return Pair(sam.load("vit_b", host_of(weights_of(checkpoint))), predictor)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth", TINY)


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> WeightsFolder:
    return weights_of(checkpoint)


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Pair:
    return pair_of(checkpoint, TINY)


@pytest.fixture(scope="module")
def tiny(pair: Pair) -> Sam:
    return pair.ours


@pytest.fixture(scope="module", params=SHAPES)
def encoded(pair: Pair, request: pytest.FixtureRequest) -> Encoded:
    return encode(pair, scene_image(SHAPES[request.param], 2))


def encode(pair: Pair, image: Image) -> Encoded:
    pair.reference.set_image(image.pixels)
    return Encoded(pair, image, pair.ours.encode(image))


def relative(size: Size, *points: Point) -> tuple[Point, ...]:
    return tuple((x * size[1], y * size[0]) for x, y in points)


def box_in(size: Size) -> Box:
    (x0, y0), (x1, y1) = relative(size, (0.3, 0.22), (0.71, 0.8))
    return x0, y0, x1, y1


def prompts(size: Size) -> dict[str, Prompt]:
    """Corners included, where a wrong half pixel is a point outside of the image."""
    points = relative(size, (0.5, 0.4), (0.21, 0.65))
    return {
        "a point": Prompt(points[:1]),
        "another point": Prompt(points[1:]),
        "a corner": Prompt(((0.0, 0.0),)),
        "points": Prompt(points, relative(size, (0.9, 0.9))),
        "a box": Prompt(box=box_in(size)),
        "a box and points": Prompt(points[:1], relative(size, (0.4, 0.7)), box_in(size)),
    }


def reference_answer(
    encoded: Encoded, prompt: Prompt, multimask: bool, logits: Any = None
) -> tuple[Any, Any, Any]:
    """SamPredictor's masks, scores and logits, best first."""
    size, side = encoded.image.size, encoded.pair.reference.model.image_encoder.img_size
    height, width = resized_size(size, side)
    half = 0.5 * size[1] / width, 0.5 * size[0] / height  # it takes whole numbers for pixel centres
    clicks = prompt.foreground + prompt.background
    masks, scores, low = encoded.pair.reference.predict(
        point_coords=np.array(clicks) - half if clicks else None,
        point_labels=np.array([1] * len(prompt.foreground) + [0] * len(prompt.background))
        if clicks
        else None,
        box=None if prompt.box is None else np.array(prompt.box) - [*half, *half],
        mask_input=logits,
        multimask_output=multimask,
    )
    order = np.argsort(-scores, kind="stable")
    return masks[order], scores[order], low[order]


def require_parity(encoded: Encoded, prompt: Prompt, multimask: bool, logits: Any = None) -> Any:
    masks, scores, low = reference_answer(encoded, prompt, multimask, logits)
    networks, raw = encoded.pair.ours._networks, list[Any]()
    decode = networks.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "decode", lambda *given: raw.append(decode(*given)) or raw[-1])
        predictions, candidates = encoded.pair.ours.decode_from(encoded.embedding, prompt, logits)
    ((_, raw_scores),) = raw
    assert len(predictions) == (3 if multimask else 1)
    for prediction, mask, score in zip(predictions, masks, scores, strict=True):
        assert 0.05 < mask.mean() < 0.95, f"the weights are too wild: {mask.mean():.3f} of the image"
        assert np.array_equal(prediction.mask, mask)
        assert prediction.score == np.clip(score, 0, 1)
    assert np.array_equal(np.sort(raw_scores)[::-1], scores)
    assert np.array_equal(candidates, low)
    return low


def test_the_encoder_sees_what_the_reference_sees(encoded: Encoded) -> None:
    theirs = encoded.pair.reference.get_image_embedding()[0].numpy()
    assert np.array_equal(encoded.embedding.features, theirs)


@pytest.mark.parametrize("name", prompts((1, 1)))
def test_every_prompt_has_the_reference_answer(encoded: Encoded, name: str) -> None:
    require_parity(
        encoded, prompts(encoded.image.size)[name], multimask="point" in name.split() or "corner" in name
    )


@pytest.mark.parametrize("name", ["points", "a box", "a box and points", "a point"])
def test_every_prompt_with_the_mask_before_it_has_the_reference_answer(encoded: Encoded, name: str) -> None:
    size = encoded.image.size
    _, _, low = reference_answer(encoded, prompts(size)["another point"], multimask=True)
    for candidate in range(3):
        require_parity(encoded, prompts(size)[name], False, low[candidate : candidate + 1])


def test_a_mask_is_answered_with_the_references_candidates_that_are_near_it(encoded: Encoded) -> None:
    size, side = encoded.image.size, encoded.pair.reference.model.image_encoder.img_size
    mask = disc(size, (size[1] * 0.4, size[0] * 0.5), min(size) * 0.4)
    logits, point = mask_to_logits(mask, side), relative(size, (0.5, 0.4))
    answers = [reference_answer(encoded, Prompt(point), True, given) for given in (None, logits)]
    masks, scores, low = (np.concatenate(each) for each in zip(*answers, strict=True))
    height, width = (-(-length // 4) for length in resized_size(size, side))
    shown = low[:, :height, :width] > 0
    order = np.argsort(-scores - agreement(shown, logits[0, :height, :width] > 0), kind="stable")[:3]
    found = encoded.pair.ours.decode(encoded.embedding, Prompt(point, mask=mask))
    assert [each.score for each in found] == np.clip(scores[order], 0, 1).tolist()
    for each, index in zip(found, order, strict=True):
        assert np.array_equal(each.mask, masks[index])


@pytest.mark.parametrize("thin", [False, True])
def test_a_mask_without_a_prompt_is_clicked_in_its_middle(encoded: Encoded, thin: bool) -> None:
    size, side = encoded.image.size, encoded.pair.reference.model.image_encoder.img_size
    mask = disc(size, (size[1] * 0.4, size[0] * 0.5), min(size) * 0.3)
    if thin:
        mask = np.zeros(size, bool)
        mask[size[0] // 3, size[1] // 4 : size[1] // 2] = True
    ((x, y),) = middle(mask_to_logits(mask, side)) + 0.5
    height, width = resized_size(size, side)
    click = (float(x * size[1] / width), float(y * size[0] / height))
    assert mask[max(0, int(click[1]) - 2) : int(click[1]) + 3, int(click[0])].any()
    alone, clicked = (
        encoded.pair.ours.decode(encoded.embedding, Prompt(points, mask=mask)) for points in ((), (click,))
    )
    for each, same in zip(alone, clicked, strict=True):
        assert np.array_equal(each.mask, same.mask) and each.score == same.score


def test_a_conversation_is_that_of_the_reference_fed_with_its_own_logits(encoded: Encoded) -> None:
    size = encoded.image.size
    first, second, third = relative(size, (0.5, 0.4), (0.21, 0.65), (0.9, 0.9))
    _, _, low = reference_answer(encoded, Prompt((first,)), True)
    for repeats in (0, 1, 2):
        logits = low[repeats : repeats + 1]
        _, _, logits = reference_answer(encoded, Prompt((first, second)), False, logits)
        masks, _, _ = reference_answer(encoded, Prompt((first, second), (third,)), False, logits)
        prompt = Prompt((first,) * (1 + repeats) + (second,), (third,))
        with pytest.MonkeyPatch.context() as patched:
            # Random weights give masks that need not cover their click, which a repeated click asks for.
            patched.setattr(refinement, "_covers", lambda prediction, point: True)
            answer = Refinement().decode(encoded.pair.ours, encoded.embedding, prompt, "", size)
        assert np.array_equal(answer[0].mask, masks[0])


def test_only_masks_that_are_looked_at_are_made_at_full_size(
    tiny: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Size] = []

    def counted(logits: Any, side: int, resized: Size, size: Size) -> Any:
        made.append(size)
        return logits_to_mask(logits, side, resized, size)

    monkeypatch.setattr(frame, "logits_to_mask", counted)
    image = scene_image((240, 320), 2)
    embedding = tiny.encode(image)
    first, second, third = relative(image.size, (0.5, 0.4), (0.21, 0.65), (0.9, 0.9))
    candidates = tiny.decode(embedding, Prompt((first,)))
    assert (len(candidates), made) == (3, [])
    assert all(candidate.mask.shape == image.size for candidate in candidates)
    assert made == [image.size] * 3
    made.clear()
    (answer,) = tiny.decode(embedding, Prompt((first, second), (third,)))  # two steps are replayed
    assert answer.mask is answer.mask
    assert len(made) == 1


def test_two_threads_on_two_images_get_the_reference_answers(pair: Pair) -> None:
    images = [scene_image(SHAPES["landscape"], seed) for seed in (4, 5)]
    expected: list[dict[str, Any]] = []
    for image in images:
        both = encode(pair, image)
        expected.append(
            {
                name: reference_answer(both, prompt, multimask=name == "a point")[0]
                for name, prompt in prompts(image.size).items()
                if name in ("a point", "a box")
            }
        )

    def annotate(number: int) -> list[tuple[str, Prediction]]:
        embedding = pair.ours.encode(images[number])
        given = prompts(images[number].size)
        return [(name, pair.ours.decode(embedding, given[name])[0]) for name in expected[number]] * 2

    with ThreadPoolExecutor(2) as pool:
        for number, answers in enumerate(pool.map(annotate, [0, 1])):
            for name, prediction in answers:
                assert np.array_equal(prediction.mask, expected[number][name][0])
    assert not np.array_equal(expected[0]["a box"], expected[1]["a box"])


def test_sam_refines_and_is_named_as_users_write_it(tiny: Sam) -> None:
    assert isinstance(tiny, Refinable)
    assert tiny.name == "sam:vit_b"


def test_a_stored_embedding_gives_the_same_masks(tiny: Sam) -> None:
    image = scene_image((240, 320), 2)
    embedding = tiny.encode(image)
    arrays = {name: array.copy() for name, array in embedding.arrays().items()}
    restored = tiny.restore(arrays)
    assert restored.size == embedding.size
    assert np.array_equal(restored.features, embedding.features)
    assert restored.nbytes == embedding.nbytes == 256 * 16 * 16 * 4
    halved = tiny.restore(half_precision(arrays))
    for prompt in prompts(image.size).values():
        exact, rounded = (tiny.decode(each, prompt)[0].mask for each in (embedding, halved))
        assert mask_iou(exact, rounded) > 0.98


def test_features_of_another_size_are_not_restored(tiny: Sam) -> None:
    with pytest.raises(ValueError, match="are not of sam:vit_b"):
        tiny.restore({"features": np.zeros((256, 64, 64), np.float32), "size": np.array([240, 320])})


@pytest.mark.parametrize("size", [(240, 320), (701, 467), (97, 1300), (2000, 3000), (1024, 1024), (30, 20)])
def test_a_mask_and_its_logits_have_the_same_outline(tiny: Sam, size: Size) -> None:
    """To less than a pixel of SAM's grid of 256; half a pixel of it off, the IoU is below 0.96."""
    mask = disc(size, (size[1] * 0.6, size[0] * 0.5), min(size) * 0.45)
    logits = mask_to_logits(mask, 1024)
    assert logits.shape == (1, 256, 256) and logits.dtype == np.float32
    assert (logits.min(), logits.max()) == pytest.approx((-MASK_PROMPT_LOGIT, MASK_PROMPT_LOGIT))
    padded = cv2.resize(logits[0], (1024, 1024), interpolation=cv2.INTER_LINEAR)
    height, width = resized_size(size, 1024)
    back = cv2.resize(padded[:height, :width], size[::-1], interpolation=cv2.INTER_LINEAR) > 0
    assert mask_iou(back, mask) > 0.975


@pytest.mark.parametrize(
    ("size", "resized"),
    [((240, 320), (768, 1024)), ((701, 467), (1024, 682)), ((1, 3000), (1, 1024)), ((5, 5), (1024, 1024))],
)
def test_an_image_is_scaled_to_the_long_side(size: Size, resized: Size) -> None:
    assert resized_size(size, 1024) == resized


def test_attention_is_equal_to_the_bit_on_a_cpu_and_all_heads_at_once_elsewhere() -> None:
    from clickmask.segmenters._sam.attention import AttentionByHead

    ours = AttentionByHead(96, 6, use_rel_pos=True, input_size=(16, 16))
    theirs = import_segment_anything().modeling.image_encoder.Attention(
        96, 6, True, True, input_size=(16, 16)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
        ours.load_state_dict(theirs.state_dict())
        places = torch.randn(1, 16, 16, 96)
        assert torch.equal(ours(places), theirs(places))
        assert ours.to("meta")(places.to("meta")).shape == places.shape


# What a file may hold instead of a SAM.


class Dangerous:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("the file was executed",)


def truncated() -> bytes:
    raw = saved({"weight": torch.zeros(1000)})
    return raw[: len(raw) // 2]


def saved(content: object) -> bytes:
    raw = io.BytesIO()
    torch.save(content, raw)
    return raw.getvalue()


def zipped() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as file:
        file.writestr("readme.txt", "not weights")
    return raw.getvalue()


NOT_SAM: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"<html>404</html>",
    "a zip of something else": zipped,
    "half a file": truncated,
    "an object": lambda: saved(Dangerous()),
    "an object among tensors": lambda: saved({"weight": torch.zeros(1), "other": Dangerous()}),
    "a list": lambda: saved([torch.zeros(1)]),
    "one tensor": lambda: saved(torch.zeros(1)),
    "a training checkpoint": lambda: saved({"model": {"weight": torch.zeros(1)}, "epoch": 3}),
    "another network": lambda: saved({"encoder.weight": torch.zeros(1)}),
    "a SAM with a tensor less": lambda: saved(
        {name: tensor for name, tensor in random_sam(TINY).state_dict().items() if "iou_token" not in name}
    ),
    "a SAM with a shape changed": lambda: saved(
        {
            name: tensor[:, :-1] if name == "image_encoder.pos_embed" else tensor
            for name, tensor in random_sam(TINY).state_dict().items()
        }
    ),
}


@pytest.mark.parametrize("content", NOT_SAM.values(), ids=NOT_SAM)
def test_a_file_that_is_no_sam_is_refused_and_never_executed(
    content: Callable[[], bytes], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "sam.pth"
    checkpoint.write_bytes(content())
    with pytest.raises(NotReady, match=r"not a (SAM|file of plain tensors)"):
        sam.load("vit_b", host_of(weights_of(checkpoint)))


# Where it is installed, and where it is not.


def test_without_its_weights_it_says_how_to_get_them(tmp_path: Path) -> None:
    weights = WeightsFolder(tmp_path, checkpoints=plugins.checkpoints(segmenters))
    catalogue = Catalogue(segmenters, weights)
    statuses = {status.name: status for status in catalogue.statuses()}
    for variant in ("vit_b", "vit_l", "vit_h"):
        status = statuses[f"sam:{variant}"]
        assert (status.ready, "clickmask weights fetch sam:" + variant in status.reason) == (False, True)
    with pytest.raises(NotReady, match="clickmask weights fetch sam:vit_b"):
        sam.load("vit_b", host_of(weights))


@pytest.mark.parametrize("package", ["torch", "segment-anything"])
def test_without_a_package_it_names_the_package(
    package: str, weights: WeightsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name == package.replace("-", "_") else find_spec(name),
    )
    assert sam.missing("vit_b", host_of(weights)) == (
        f"it needs the package {package}: make install, or pip install 'clickmask[torch]'"
    )


def test_with_all_that_it_needs_nothing_is_missing(weights: WeightsFolder) -> None:
    assert sam.missing("vit_b", host_of(weights)) == ""


def test_torch_is_imported_by_loading_and_not_before() -> None:
    code = "import sys, clickmask.segmenters.sam; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(sam.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


TORCHVISION_IS_THERE = find_spec("torchvision") is not None


@pytest.mark.skipif(TORCHVISION_IS_THERE, reason="torchvision is installed, so nothing stands in for it")
def test_the_stand_in_for_torchvision_is_gone_after_the_import(tiny: Sam) -> None:
    assert find_spec("torchvision") is None
    assert not any(name.split(".")[0] == "torchvision" for name in sys.modules)
    transforms = sys.modules["segment_anything.utils.transforms"]
    assert vars(transforms)["resize"].__module__ == "clickmask.segmenters._sam.torch_networks"


@pytest.mark.skipif(TORCHVISION_IS_THERE, reason="torchvision is installed, so nothing stands in for it")
def test_the_stand_in_for_torchvision_goes_even_if_the_import_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segment_anything.modeling", None)
    with pytest.raises(ImportError):
        import_segment_anything()
    assert find_spec("torchvision") is None


def test_overlapping_boxes_leave_the_best_of_their_category() -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 10], [0, 0, 10, 4.9], [0, 0, 10, 5.1]]
    )
    scores = torch.tensor([0.5, 0.9, 0.1, 0.8, 0.4, 0.3])
    categories = torch.tensor([0, 0, 0, 1, 1, 1])
    assert box_area(boxes).tolist() == pytest.approx([100, 100, 100, 100, 49, 51])
    assert batched_nms(boxes, scores, categories, 0.5).tolist() == [1, 3, 4, 2]
    assert batched_nms(boxes[:0], scores[:0], categories[:0], 0.5).tolist() == []


def test_the_parameters_that_are_said_are_those_of_the_networks() -> None:
    modeling = import_segment_anything().modeling
    variants = Catalogue(segmenters, WeightsFolder(Path())).variants()
    said = {name: variant.about.parameters for name, variant in variants.items()}

    def count(*networks: Any) -> int:
        return sum(each.numel() for network in networks for each in network.parameters())

    with torch.device("meta"):  # shapes without numbers
        transformer = modeling.TwoWayTransformer(2, 256, 8, 2048)
        prompts = modeling.PromptEncoder(256, (64, 64), (1024, 1024), 16)
        masks = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
        fine = {
            width: HqMaskDecoder(width, transformer_dim=256, transformer=transformer) for width in (160, 768)
        }
        vits = {
            name: modeling.ImageEncoderViT(
                1024, 16, 3, *sizes, use_rel_pos=True, window_size=14, global_attn_indexes=whole
            )
            for name, sizes, whole in (
                ("b", (768, 12, 12), (2, 5, 8, 11)),
                ("l", (1024, 24, 16), (5, 11, 17, 23)),
                ("h", (1280, 32, 16), (7, 15, 23, 31)),
            )
        }
        for name, encoder in vits.items():
            assert said[f"sam:vit_{name}"] == count(encoder, prompts, masks)
        assert said["sam_hq:vit_b"] == count(vits["b"], prompts, fine[768])
        assert said["mobile_sam:vit_t"] == count(TinyViT(), prompts, masks)
        assert said["sam_hq:vit_tiny"] == count(TinyViT(), prompts, fine[160])


# The real size.


@pytest.mark.slow
def test_vit_b_answers_as_the_reference_and_is_exported(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "sam_vit_b.pth", VIT_B)
    assert abs(checkpoint.stat().st_size - 375_042_383) < 100_000  # of the official file
    model = import_segment_anything().sam_model_registry["vit_b"](checkpoint=checkpoint)
    in_torch = sam.load("vit_b", host_of(weights_of(checkpoint)))
    encoded = encode(
        Pair(in_torch, import_segment_anything().SamPredictor(model)), scene_image(SHAPES["portrait"], 2)
    )
    test_the_encoder_sees_what_the_reference_sees(encoded)
    for name in prompts(encoded.image.size):
        test_every_prompt_has_the_reference_answer(encoded, name)
    test_a_mask_is_answered_with_the_references_candidates_that_are_near_it(encoded)
    test_a_conversation_is_that_of_the_reference_fed_with_its_own_logits(encoded)
    onnx_export.export(checkpoint, tmp_path)  # raises unless every runtime gives torch's maps and masks
    runtimes = Runtimes("openvino" if find_spec("openvino") else "onnxruntime")
    served = Sam("sam:vit_b", OnnxSam(tmp_path, runtimes)).encode(encoded.image).features
    theirs = encoded.embedding.features
    assert np.abs(served - theirs).max() < 0.05 * np.abs(theirs).max()  # bf16, where there is any: .012


def test_agreement_is_the_iou_with_the_mask_as_it_is_or_grown_or_shrunk_by_some_cells() -> None:
    small, large, far = (
        disc((64, 64), at, radius) for at, radius in (((30, 30), 8), ((30, 30), 13), ((8, 8), 5))
    )
    found = agreement(np.stack([small, large, far]), small)
    assert found[0] == 1
    assert found[1] > 0.85 > 0.5 > mask_iou(small, large)  # five cells larger all around
    assert found[2] == 0
    assert agreement(np.stack([large]), large) == 1
    assert not agreement(np.stack([small, far]), np.zeros((64, 64), bool)).any()
