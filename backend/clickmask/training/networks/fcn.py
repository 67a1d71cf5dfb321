"""FCN-8s, on EfficientNet-Lite0.

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015. As there: a
classifier made convolutional scores each class at stride 32; its scores are upsampled by two and added to
those of the features at stride 16, then at stride 8; the upsamplings learn and begin as bilinear, the scores
of finer strides begin as zero, and the last upsampling, by eight, is bilinear. Different: EfficientNet-Lite0
instead of VGG-16 (4 instead of 134 million weights), and fc6 and fc7 have 256 channels instead of 4096.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from clickmask.training.networks._efficientnet_lite import LITE0_CHANNELS, lite0
from clickmask.training.networks._weights import group_norm

NAME = "FCN-8s"
STRIDE = 32
CHANNELS = 256  # of fc6 and fc7


class FCN8s(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W); H and W are multiples of STRIDE."""

    def __init__(self, classes: int, encoder: Path | None) -> None:
        super().__init__()
        self.encoder, self.started_from = lite0(encoder)
        self.fc6 = _fully_connected(LITE0_CHANNELS[32], 3)
        self.fc7 = _fully_connected(CHANNELS, 1)
        self.score_fr = nn.Conv2d(CHANNELS, classes, 1)
        self.score_pool4 = _zeroed(nn.Conv2d(LITE0_CHANNELS[16], classes, 1))
        self.score_pool3 = _zeroed(nn.Conv2d(LITE0_CHANNELS[8], classes, 1))
        self.upscore2 = _bilinear(classes)
        self.upscore_pool4 = _bilinear(classes)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.encoder(2 * pixels - 1)
        pool3, pool4, pool5 = features[8], features[16], features[32]  # (B, 40 | 112 | 320, H / s, W / s)
        scores = self.score_fr(self.fc7(self.fc6(pool5)))  # (B, K, H / 32, W / 32)
        scores = self.upscore2(scores) + self.score_pool4(pool4)  # (B, K, H / 16, W / 16)
        scores = self.upscore_pool4(scores) + self.score_pool3(pool3)  # (B, K, H / 8, W / 8)
        return functional.interpolate(scores, scale_factor=8, mode="bilinear")  # upscore8


def _fully_connected(inputs: int, kernel: int) -> nn.Sequential:
    """A fully connected layer as a convolution: (B, inputs, h, w) -> (B, CHANNELS, h, w)."""
    convolution = nn.Conv2d(inputs, CHANNELS, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, group_norm(CHANNELS), nn.ReLU())


def _zeroed(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(convolution.weight)
    return convolution


def _bilinear(classes: int) -> nn.ConvTranspose2d:
    """(B, K, h, w) -> (B, K, 2h, 2w): an upsampling of each class by itself, which begins as bilinear."""
    upsampling = nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, groups=classes, bias=False)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        upsampling.weight.copy_(ramp[:, None] * ramp)  # (K, 1, 4, 4)
    return upsampling


def build(classes: int, encoder: Path | None) -> FCN8s:
    """FCN-8s. `encoder` is a file of EfficientNet-Lite0's weights; see `lite0` for the default."""
    return FCN8s(classes, encoder)
