"""Mask2Former on a ResNet-18, of the package transformers.

Cheng, Misra, Schwing, Kirillov, Girdhar: Masked-attention Mask Transformer for Universal Image Segmentation,
CVPR 2022. The network and its loss are the package's own: each query answers with a class, or none, and with
a mask. Here the background is a class like the others, and a pixel's score for a class is the sum over all
queries of class probability times mask probability (the paper's semantic inference, from Cheng et al.:
MaskFormer, NeurIPS 2021). Different: 128 channels, three layers of the pixel decoder and four of the
transformer decoder (12.9 million weights); group instead of batch normalisation if it starts at random.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clickmask.datasets.snapshot import IGNORED
from clickmask.training import networks
from clickmask.training.networks._weights import (
    load_weights,
    normalise,
    read_weights,
    replace_batch_norms,
)

NAME = "Mask2Former"
STRIDE = 32
RATE = 0.25  # its transformer diverges at the convolutions' rate
QUERIES = 50
AT_ONCE = 10  # queries whose masks are enlarged together, to save memory
CHANNELS = 128
TRAIN_POINTS = 4096  # of a crop that the loss looks at; the paper's 12,544 are for 1024 px
POINTS = 4  # that a deformable attention samples per head and level; the package's number
MIN_SCORE = 1e-3  # of a class: the logarithm of a smaller one would enlarge rounding errors
SURELY_NOT = -20.0  # logit of a mask where nothing is known: no loss, and no gradient


class Mask2Former(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W); H and W are multiples of STRIDE."""

    def __init__(self, classes: int, encoder: Path | None) -> None:
        super().__init__()
        networks.require_packages(NAME, "transformers", "transformers", "scipy")
        transformers: Any = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()  # it warns that a ResNet is no Swin
        stages = [f"stage{number}" for number in range(1, 5)]
        backbone = transformers.ResNetConfig(
            depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=stages
        )
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=classes,
            num_queries=QUERIES,
            feature_size=CHANNELS,
            mask_feature_size=CHANNELS,
            hidden_dim=CHANNELS,
            encoder_feedforward_dim=4 * CHANNELS,
            dim_feedforward=4 * CHANNELS,
            num_attention_heads=4,
            encoder_layers=3,
            decoder_layers=4,
            train_num_points=TRAIN_POINTS,
        )
        self.model: Any = transformers.Mask2FormerForUniversalSegmentation(config)
        self.model.model.pixel_level_module.decoder.encoder.get_reference_points = reference_points
        self.started_from = networks.RANDOM
        if encoder is not None:
            self.started_from = load_weights(self.encoder, encoder, read_weights(encoder), "resnet.")
        replace_batch_norms(self.encoder, frozen=encoder is not None)

    @property
    def encoder(self) -> nn.Module:
        """The ResNet; its names are those of the package's ResNets without their `resnet.`."""
        return self.model.model.pixel_level_module.encoder

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.model(normalise(pixels))
        classes = found.class_queries_logits.softmax(-1)[..., :-1]  # (B, Q, K), without "none"
        masks = found.masks_queries_logits  # (B, Q, H / 4, W / 4)
        scores: Any = 0.0
        for some, theirs in zip(classes.split(AT_ONCE, 1), masks.split(AT_ONCE, 1), strict=True):
            # Enlarged before the sigmoid: after it, outlines were worth .92 of mIoU instead of .98.
            finer = functional.interpolate(theirs, scale_factor=4, mode="bilinear").sigmoid()
            scores = scores + torch.einsum("bqk,bqhw->bkhw", some, finer)  # (B, K, H, W)
        # Logarithms, since a softmax over them gives the classes' shares of the score.
        return scores.clamp(min=MIN_SCORE).log()

    def loss(self, pixels: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The package's loss, after matching queries with the classes that are there, in all layers. Pixels
        that are IGNORED take no part; `weights` are not used, since each class is one mask, however large."""
        found = self.model(normalise(pixels), output_auxiliary_logits=True)
        present: list[Tensor] = [cast("Any", each).unique() for each in labels]
        here = [classes[classes != IGNORED] for classes in present]
        known = [number for number, classes in enumerate(here) if len(classes)]
        if not known:
            return found.masks_queries_logits.sum() * 0.0
        unknown = (labels[known] == IGNORED)[:, None].float()  # (B, 1, H, W)
        unknown = functional.max_pool2d(unknown, 4) > 0  # (B, 1, H / 4, W / 4)

        def outputs(layer: Any) -> dict[str, Tensor]:
            masks = layer["masks_queries_logits"][known].float().masked_fill(unknown, SURELY_NOT)
            classes = layer["class_queries_logits"][known].float()
            return {"masks_queries_logits": masks, "class_queries_logits": classes}

        losses = self.model.get_loss_dict(
            **outputs(found),
            mask_labels=[(labels[each] == here[each][:, None, None]).float() for each in known],  # (N, H, W)
            class_labels=[here[each] for each in known],
            auxiliary_predictions=[outputs(layer) for layer in found.auxiliary_logits],
        )
        return self.model.get_loss(losses)


def reference_points(
    spatial_shapes_list: Sequence[tuple[int, int]], valid_ratios: Tensor, device: torch.device
) -> Tensor:
    """Where the queries of the pixel decoder look in each level: (B, queries, levels, 4), each a centre and
    the width and height that offsets are relative to.

    The package's own function gives centres alone, and it and what uses them fix the picture's size when
    they are exported. With widths and heights of 2 * POINTS pixels, the package computes the same places.
    """
    centres, sizes = list[Tensor](), list[Tensor]()
    for shape in spatial_shapes_list:
        height, width = (torch.as_tensor(side, device=device).to(valid_ratios.dtype) for side in shape)
        rows, columns = (
            (torch.arange(side, device=device).to(valid_ratios.dtype) + 0.5) / side for side in shape
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres.append(torch.stack((x, y), -1).reshape(-1, 2))  # (h w, 2)
        sizes.append(2 * POINTS / torch.stack((width, height)))  # (2,)
    places, levels = torch.cat(centres)[:, None], torch.stack(sizes)[None]
    both = (places.expand(-1, len(sizes), -1), levels.expand(places.shape[0], -1, -1))
    return torch.cat(both, -1).expand(valid_ratios.shape[0], -1, -1, -1)


def build(classes: int, encoder: Path | None) -> Mask2Former:
    """A Mask2Former with random weights, but for a ResNet-18's in the file `encoder`. Raises NotReady."""
    return Mask2Former(classes, encoder)
