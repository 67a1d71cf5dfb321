"""SegFormer-B0, of the package transformers.

Xie, Wang, Yu, Anandkumar, Alvarez, Luo: SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, NeurIPS 2021. The network is the package's own. Different: its head normalises groups of
channels instead of the batch, because a step sees only a few crops.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from clickmask.training import networks
from clickmask.training.networks._weights import (
    load_weights,
    normalise,
    read_weights,
    replace_batch_norms,
)

NAME = "SegFormer-B0"
STRIDE = 32
RATE = 0.5  # random weights of a transformer diverge at the convolutions' rate
# Names in published files -> names in the network, as transformers 5 renames them.
PUBLISHED = (
    (r"^segformer\.", ""),
    (r"^encoder\.patch_embeddings\.(\d)", r"stages.\1.patch_embeddings"),
    (r"^encoder\.block\.(\d)", r"stages.\1.blocks"),
    (r"^encoder\.layer_norm\.(\d)", r"stages.\1.layer_norm"),
    (r"attention\.self\.(q|k|v)[a-z]+", r"attention.\1_proj"),
    (r"attention\.self\.sr", "attention.sequence_reduction.sequence_reduction"),
    (r"attention\.self\.layer_norm", "attention.sequence_reduction.layer_norm"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.dense", "mlp.fc"),
    (r"layer_norm_1", "layernorm_before"),
    (r"layer_norm_2", "layernorm_after"),
)


class SegFormer(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W); H and W are multiples of STRIDE."""

    def __init__(self, classes: int, encoder: Path | None) -> None:
        super().__init__()
        networks.require_packages(NAME, "transformers", "transformers")
        transformers: Any = importlib.import_module("transformers")

        # the configuration's defaults are B0's
        config = transformers.SegformerConfig(num_labels=classes)
        self.model: Any = transformers.SegformerForSemanticSegmentation(config)
        replace_batch_norms(self.model.decode_head, frozen=False)
        self.started_from = networks.RANDOM
        if encoder is not None:
            named = read_weights(encoder)
            for published, ours in PUBLISHED:
                named = {re.sub(published, ours, name): tensor for name, tensor in named.items()}
            self.started_from = load_weights(self.encoder, encoder, named)

    @property
    def encoder(self) -> nn.Module:
        """The Mix Transformer."""
        return self.model.segformer

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.model(normalise(pixels)).logits  # (B, K, H / 4, W / 4)
        return functional.interpolate(logits, scale_factor=4, mode="bilinear")


def build(classes: int, encoder: Path | None) -> SegFormer:
    """A SegFormer with random weights, but for an encoder's in the file `encoder`. Raises NotReady."""
    return SegFormer(classes, encoder)
