"""DeepLabv3+, on EfficientNet-Lite0.

Chen, Zhu, Papandreou, Schroff, Adam: Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation, ECCV 2018. As there: the encoder's output stride is 16, by atrous convolutions in its last
stage; atrous spatial pyramid pooling with rates 6, 12 and 18, a 1 x 1 convolution and the image's mean;
low-level features of stride 4 in 48 channels; two 3 x 3 convolutions of 256 channels; depthwise separable
convolutions throughout. Different: EfficientNet-Lite0 instead of Xception, and group instead of batch
normalisation, because a step sees only a few crops.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from clickmask.training.networks._efficientnet_lite import LITE0_CHANNELS, lite0
from clickmask.training.networks._weights import group_norm

NAME = "DeepLabv3+"
STRIDE = 32  # the encoder's, before its last stage is dilated
OUTPUT_STRIDE = 16
RATES = (6, 12, 18)
CHANNELS = 256
LOW_LEVEL = 48  # channels of the features at stride 4


class AtrousSeparableConvolution(nn.Sequential):
    """(B, inputs, h, w) -> (B, CHANNELS, h, w), each channel by itself, then each place by itself."""

    def __init__(self, inputs: int, rate: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False),
            group_norm(inputs),
            nn.ReLU(),
            *_pointwise(inputs, CHANNELS),
        )


class AtrousSpatialPyramidPooling(nn.Module):
    """(B, inputs, h, w) -> (B, CHANNELS, h, w), from surroundings of several sizes."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        atrous = (AtrousSeparableConvolution(inputs, rate) for rate in RATES)
        self.branches = nn.ModuleList([_pointwise(inputs, CHANNELS), *atrous])
        self.image_pooling = _pointwise(inputs, CHANNELS)
        self.projection = _pointwise((len(self.branches) + 1) * CHANNELS, CHANNELS)

    def forward(self, features: Tensor) -> Tensor:
        image = self.image_pooling(features.mean((2, 3), keepdim=True))  # (B, C, 1, 1)
        found = [*(branch(features) for branch in self.branches)]
        return self.projection(torch.cat([*found, image.expand_as(found[0])], dim=1))  # (B, 5 C, h, w)


class DeepLabV3Plus(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W); H and W are multiples of STRIDE."""

    def __init__(self, classes: int, encoder: Path | None) -> None:
        super().__init__()
        self.encoder, self.started_from = lite0(encoder, OUTPUT_STRIDE)
        self.aspp = AtrousSpatialPyramidPooling(LITE0_CHANNELS[32])  # the last stage's, now at stride 16
        self.low_level = _pointwise(LITE0_CHANNELS[4], LOW_LEVEL)
        self.decoder = nn.Sequential(
            AtrousSeparableConvolution(CHANNELS + LOW_LEVEL), AtrousSeparableConvolution(CHANNELS)
        )
        self.classifier = nn.Conv2d(CHANNELS, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.encoder(2 * pixels - 1)
        rich = self.aspp(features[OUTPUT_STRIDE])  # (B, 256, H / 16, W / 16)
        rich = functional.interpolate(rich, scale_factor=4, mode="bilinear")
        fine = self.low_level(features[4])  # (B, 48, H / 4, W / 4)
        logits = self.classifier(self.decoder(torch.cat((rich, fine), dim=1)))  # (B, K, H / 4, W / 4)
        return functional.interpolate(logits, scale_factor=4, mode="bilinear")


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), group_norm(outputs), nn.ReLU())


def build(classes: int, encoder: Path | None) -> DeepLabV3Plus:
    """DeepLabv3+. `encoder` is a file of EfficientNet-Lite0's weights; see `lite0` for the default."""
    return DeepLabV3Plus(classes, encoder)
