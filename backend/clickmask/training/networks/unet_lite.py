"""A U-Net whose contracting path is EfficientNet-Lite0.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, has the expanding path: 2 x 2 up-convolutions, skip
connections, two 3 x 3 convolutions per level. Different: the contracting path is one that has learnt on
ImageNet (see `_efficientnet_lite`), fewer channels, and, since its features begin at stride 2, the picture
itself is what the last level is connected to.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from clickmask.training.networks._efficientnet_lite import LITE0_CHANNELS, lite0
from clickmask.training.networks.unet import DoubleConvolution

NAME = "U-Net on EfficientNet-Lite0"
STRIDE = 32
SKIPPED = {16: LITE0_CHANNELS[16], 8: LITE0_CHANNELS[8], 4: LITE0_CHANNELS[4], 2: LITE0_CHANNELS[2], 1: 3}
WIDTHS = (LITE0_CHANNELS[32], 128, 64, 48, 32, 16)  # at strides 32, 16, 8, 4, 2, 1


class UNetLite(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W); H and W are multiples of STRIDE."""

    def __init__(self, classes: int, encoder: Path | None) -> None:
        super().__init__()
        self.encoder, self.started_from = lite0(encoder)
        self.upsampling = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in pairwise(WIDTHS))
        self.expanding = nn.ModuleList(
            DoubleConvolution(width + skipped, width)
            for width, skipped in zip(WIDTHS[1:], SKIPPED.values(), strict=True)
        )
        self.classifier = nn.Conv2d(WIDTHS[-1], classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        centred = 2 * pixels - 1
        features = {1: centred, **self.encoder(centred)}
        rising = features[32]  # (B, 320, H / 32, W / 32)
        for stride, upsample, convolve in zip(SKIPPED, self.upsampling, self.expanding, strict=True):
            rising = convolve(torch.cat((features[stride], upsample(rising)), dim=1))
        return self.classifier(rising)


def build(classes: int, encoder: Path | None) -> UNetLite:
    """A U-Net. `encoder` is a file of EfficientNet-Lite0's weights; see `lite0` for the default."""
    return UNetLite(classes, encoder)
