"""SAM-HQ beside transformers' SamHQModel, and exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from clickmask import plugins, segmenters
from clickmask.errors import NotReady
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.segmenters import sam_hq
from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.frame import SamPrompt
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.tiny_vit import TinyViT
from clickmask.segmenters._sam.torch_networks import TorchSam
from clickmask.types import Prompt
from support.checkpoints import TINY, TINY_MOBILE_SAM, random_sam_hq, weights_of
from support.hosts import host_of
from support.scenes import scene_image

ARCHITECTURES = {"vit_tiny": TINY_MOBILE_SAM, "vit_b": TINY}
NAMES_IN_TRANSFORMERS = (  # of the published tensors
    (r"^image_encoder\.", "vision_encoder."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.blocks\.", ".layers."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"\.norm", ".layer_norm"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"point_embeddings", "point_embed"),
    (r"(mlps\.\d|head|hf_mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|head|hf_mlp)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d|head|hf_mlp)\.layers\.2\.", r"\1.proj_out."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"hf_token", "hq_token"),
    (r"hf_mlp", "hq_mask_mlp"),
    (r"compress_vit_feat\.", "compress_vit_"),
    (r"embedding_encoder\.", "encoder_"),
    (r"embedding_maskfeature\.", "mask_"),
    (r"(compress_vit|encoder|mask)_0\.", r"\1_conv1."),
    (r"(compress_vit|encoder|mask)_1\.", r"\1_norm."),
    (r"(compress_vit|encoder|mask)_3\.", r"\1_conv2."),
)


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the published format, of networks on 256 pixels."""
    monkeypatch.setattr(TinyViT, "img_size", TINY_MOBILE_SAM.side)
    path = tmp_path / f"sam_hq_{request.param}.pth"
    torch.save(random_sam_hq(ARCHITECTURES[request.param]).state_dict(), path)
    return path


def in_transformers(state: dict[str, torch.Tensor]) -> Any:
    """Their model with the weights of a published file."""
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 256, "patch_size": 16}
    config = transformers.SamHQConfig(
        vision_config={
            **sizes,
            "hidden_size": TINY.dim,
            "num_hidden_layers": TINY.depth,
            "num_attention_heads": TINY.heads,
            "mlp_dim": 4 * TINY.dim,
            "global_attn_indexes": list(TINY.everywhere),
            "window_size": 14,
        },
        prompt_encoder_config=sizes,
        mask_decoder_config={"vit_dim": TINY.dim},
    )
    named = dict(state)
    for pattern, name in NAMES_IN_TRANSFORMERS:
        named = {re.sub(pattern, name, key): each for key, each in named.items()}
    positions = named["prompt_encoder.shared_embedding.positional_embedding"]
    model = transformers.SamHQModel(config).eval()
    model.load_state_dict(named | {"shared_image_embedding.positional_embedding": positions})

    def keep_the_image(module: Any, given: Any, named: dict[str, Any], found: Any) -> None:
        """transformers 5.24 throws away what its transformer makes of the image, and swaps its axes."""
        image = named["image_embeddings"]
        image.copy_(found[1].reshape(*image.shape[2:], -1).permute(2, 1, 0)[None])

    model.mask_decoder.transformer.register_forward_hook(keep_the_image, with_kwargs=True)
    return model


@pytest.mark.parametrize("checkpoint", ["vit_b"], indirect=True)
def test_features_and_masks_are_those_of_transformers(checkpoint: Path) -> None:
    ours = TorchSam(checkpoint, torch.device("cpu"))
    theirs = in_transformers(torch.load(checkpoint, weights_only=True))
    pixels = onnx_export.golden_image(256)
    maps = ours.encode(pixels)
    normal = (torch.tensor(pixels).permute(2, 0, 1) - ours._mean) / ours._deviation
    padded = torch.nn.functional.pad(normal, (0, 0, 0, 256 - pixels.shape[0]))[None]
    points = np.array([[80.0, 70.0], [30.0, 150.0]], np.float32)
    labels = np.array([1, 0], np.int32)
    box = np.array([[100.0, 30.0], [200.0, 160.0]], np.float32)
    empty = SamPrompt(points[:0], labels[:0])
    prompts = {
        "a click": (SamPrompt(points[:1], labels[:1]), True),
        "clicks": (SamPrompt(points, labels), False),
        "a box": (empty._replace(box=box), False),
        "a mask": (SamPrompt(points, labels, None, np.full((1, 64, 64), 2.0, np.float32)), False),
    }
    for name, (prompt, multimask) in prompts.items():
        masks, scores = ours.decode(ours.place(maps), prompt, multimask)
        given: dict[str, Any] = {"pixel_values": padded, "multimask_output": multimask}
        if len(prompt.points):
            given["input_points"] = torch.tensor(prompt.points)[None, None]
            given["input_labels"] = torch.tensor(prompt.labels)[None, None]
        if prompt.box is not None:
            given["input_boxes"] = torch.tensor(prompt.box.reshape(1, 1, 4))
        if prompt.logits is not None:
            given["input_masks"] = torch.tensor(prompt.logits)[None]
        with torch.inference_mode():
            found = theirs(**given)
        order = np.argsort(-scores, kind="stable")  # they sort
        np.testing.assert_allclose(scores[order], found.iou_scores[0, 0].numpy(), atol=1e-5, err_msg=name)
        expected = found.pred_masks[0, 0].numpy()
        off = np.abs(masks[order] - expected).max() / np.abs(expected).max()
        assert off < 1e-4, name


@pytest.mark.parametrize("checkpoint", ARCHITECTURES, indirect=True)
def test_a_file_in_the_published_format_is_exported_and_answers_as_in_torch(
    checkpoint: Path, tmp_path: Path
) -> None:
    onnx_export.export(checkpoint, tmp_path)  # raises unless every runtime gives torch's maps and masks
    variant = checkpoint.stem.removeprefix("sam_hq_")
    name = f"sam_hq:{variant}"
    in_torch = sam_hq.load(variant, host_of(weights_of(checkpoint, name)))
    exported = Sam(name, OnnxSam(tmp_path, Runtimes("onnxruntime", exact=True)))
    image = scene_image((90, 120), 2)
    embedding = exported.encode(image)
    assert embedding.nbytes == 4 * (256 * 16 * 16 + 32 * 64 * 64)
    stored = {name: array.copy() for name, array in embedding.arrays().items()}
    for prompt, count in ((Prompt(((60.0, 40.0),)), 3), (Prompt(box=(30.0, 20.0, 90.0, 70.0)), 1)):
        expected = in_torch.decode(in_torch.encode(image), prompt)
        for found in (exported.decode(embedding, prompt), exported.decode(exported.restore(stored), prompt)):
            assert len(expected) == len(found) == count
            assert all(mask_iou(a.mask, b.mask) > 0.999 for a, b in zip(expected, found, strict=True))
    clicks = np.array([[60.0, 40.0], [20.0, 30.0]])
    one, many = (each.decode_clicks(each.encode(image), clicks) for each in (exported, in_torch))
    np.testing.assert_allclose(one[0], many[0], atol=1e-3 * np.abs(many[0]).max())


@pytest.mark.parametrize("checkpoint", ["vit_b"], indirect=True)
def test_a_file_with_a_tensor_less_is_refused(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    for name in ("mask_decoder.hf_mlp.layers.1.bias", "mask_decoder.compress_vit_feat.0.weight"):
        torch.save({key: each for key, each in state.items() if key != name}, checkpoint)
        with pytest.raises(NotReady, match="not a SAM"):
            sam_hq.load("vit_b", host_of(weights_of(checkpoint, "sam_hq:vit_b")))


def test_each_variant_says_how_to_get_its_weights(tmp_path: Path) -> None:
    weights = WeightsFolder(tmp_path, checkpoints=plugins.checkpoints(segmenters))
    reasons = {each.name: each.reason for each in Catalogue(segmenters, weights).statuses()}
    for variant in ("vit_tiny", "vit_b"):
        assert reasons[f"sam_hq:{variant}"].endswith(f"clickmask weights fetch sam_hq:{variant}")
