"""Checkpoints of Segment Anything in the genuine format, with seeded random weights.

A file is what `torch.save(sam.state_dict(), path)` of segment-anything's own `Sam` writes. Plain
random weights answer every prompt with noise, or with all or nothing, on which parity says
little. So the mask decoder's last layers are damped: an upscaling that is constant over each of
its pixels' children, and hypernetworks whose masks average to zero over a drawn scene.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage

from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint
from clickmask.segmenters._sam.high_quality import HqMaskDecoder
from clickmask.segmenters._sam.tiny_vit import TinyViT
from clickmask.segmenters._sam.torch_networks import import_segment_anything
from support.scenes import drawn_scene


@dataclass(frozen=True)
class Architecture:
    dim: int
    depth: int
    heads: int
    everywhere: tuple[int, ...]  # blocks with attention over the whole image
    side: int = 1024


@dataclass(frozen=True)
class TinyArchitecture:
    """MobileSAM's, or one like it; `side` is the input's if it is not that of TinyViT."""

    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (0, 4, 5, 10)
    windows: tuple[int, ...] = (0, 7, 14, 7)
    side: int = 1024


VIT_B = Architecture(768, 12, 12, (2, 5, 8, 11))
VIT_L = Architecture(1024, 24, 16, (5, 11, 17, 23))
VIT_H = Architecture(1280, 32, 16, (7, 15, 23, 31))
MOBILE_SAM = TinyArchitecture()
TINY_MOBILE_SAM = TinyArchitecture((8, 16, 20, 40), (1, 1, 2, 1), (0, 4, 5, 10), (0, 7, 14, 7), side=256)
SMALL = Architecture(
    192, 4, 6, (1, 3)
)  # ViT-B's side, padded windows and attention, in a fiftieth of the work
TINY = Architecture(64, 2, 2, (1,), side=256)  # hundredths of a second for both halves


def random_sam(architecture: Architecture | TinyArchitecture, seed: int = 0, damped: bool = True) -> Any:
    """A `segment_anything.modeling.Sam` in evaluation mode. Damping encodes two images."""
    modeling = import_segment_anything().modeling
    side, grid = architecture.side, architecture.side // 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = modeling.Sam(
            _vit(architecture, modeling) if isinstance(architecture, Architecture) else _tiny(architecture),
            modeling.PromptEncoder(256, (grid, grid), (side, side), 16),
            modeling.MaskDecoder(
                transformer_dim=256, transformer=modeling.TwoWayTransformer(2, 256, 8, 2048)
            ),
        ).eval()
        if damped:
            with torch.no_grad():
                _damp(sam, seed)
    return sam


def random_sam_hq(architecture: Architecture | TinyArchitecture, seed: int = 0) -> Any:
    """The same with SAM-HQ's mask decoder."""
    sam = random_sam(architecture, seed)
    tiny = isinstance(architecture, TinyArchitecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = HqMaskDecoder(
            architecture.widths[2] if tiny else architecture.dim,
            transformer_dim=256,
            transformer=sam.mask_decoder.transformer,
        )
    decoder.load_state_dict(sam.mask_decoder.state_dict(), strict=False)
    sam.mask_decoder = decoder.eval()
    return sam


def _vit(architecture: Architecture, modeling: Any) -> Any:
    network = modeling.ImageEncoderViT(
        img_size=architecture.side,
        embed_dim=architecture.dim,
        depth=architecture.depth,
        num_heads=architecture.heads,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=architecture.everywhere,
        window_size=14,
        out_chans=256,
    )
    for name, parameter in network.named_parameters():
        if "pos_embed" in name or "rel_pos" in name:  # zeros, until training
            torch.nn.init.normal_(parameter, 0, 0.02)
    return network


def _tiny(architecture: TinyArchitecture) -> Any:
    """With the classifier that the published file still has, and normalisations that have seen something."""
    network = TinyViT(architecture.widths, architecture.depths, architecture.heads, architecture.windows)
    network.img_size = architecture.side
    for name, parameter in network.named_parameters():
        if "attention_biases" in name:  # zeros, until training
            torch.nn.init.normal_(parameter, 0, 0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.norm_head = torch.nn.LayerNorm(architecture.widths[-1])
    network.head = torch.nn.Linear(architecture.widths[-1], 1000)
    return network.eval()


def write_checkpoint(
    path: Path, architecture: Architecture | TinyArchitecture, seed: int = 0, damped: bool = True
) -> Path:
    return save(random_sam(architecture, seed, damped), path)


def save(sam: Any, path: Path) -> Path:
    torch.save(sam.state_dict(), path)
    return path


def weights_of(checkpoint: Path, segmenter: str = "sam:vit_b") -> WeightsFolder:
    """The weights that hold just this file, as if it were the official one of `segmenter`."""
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    entry = Checkpoint(f"https://127.0.0.1/{checkpoint.name}", checkpoint.stat().st_size, sha256, "none")
    weights = WeightsFolder(checkpoint.parent, checkpoints={segmenter: entry})
    weights.verify(segmenter)
    return weights


def _damp(sam: Any, seed: int) -> None:
    upscaling = sam.mask_decoder.output_upscaling
    for convolution in (upscaling[0], upscaling[3]):
        convolution.weight.copy_(convolution.weight.mean((2, 3), keepdim=True).expand_as(convolution.weight))
    # (32, n): what the hypernetworks' (32,) are multiplied with, averaged over an image each time
    averages, _ = torch.linalg.qr(torch.stack(_average_upscaled(sam, seed), dim=1))
    for hypernetwork in sam.mask_decoder.output_hypernetworks_mlps:
        last = hypernetwork.layers[-1]
        last.weight.sub_(averages @ (averages.T @ last.weight))
        last.bias.sub_(averages @ (averages.T @ last.bias))


def _average_upscaled(sam: Any, seed: int) -> list[torch.Tensor]:
    side, seen = sam.image_encoder.img_size, list[torch.Tensor]()
    hook = sam.mask_decoder.output_upscaling.register_forward_hook(
        lambda module, given, out: seen.append(out.mean((0, 2, 3)))
    )
    centre = torch.full((1, 1, 2), side / 2), torch.ones(1, 1)
    box = torch.tensor([[side / 4, side / 4, side / 2, side / 2]])
    mask = torch.full((1, 1, side // 4, side // 4), -8.0)
    mask[..., side // 16 : side // 8, side // 16 : side // 8] = 8.0
    for scene in (seed + 100, seed + 101):
        small = PillowImage.fromarray(drawn_scene(scene)[0]).resize((side, side))
        pixels = torch.tensor(np.asarray(small)).permute(2, 0, 1)
        features = sam.image_encoder(sam.preprocess(pixels)[None])
        for prompt in ((centre, None, None), (None, box, None), (centre, None, mask)):
            sparse, dense = sam.prompt_encoder(*prompt)
            sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    hook.remove()
    return seen
