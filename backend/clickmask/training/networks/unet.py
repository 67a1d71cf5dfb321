"""A small U-Net.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015. As
there: four poolings, two 3 x 3 convolutions per level, channels doubled on the way down, 2 x 2
up-convolutions, and skip connections. Different: 16 channels at full resolution instead of 64 (1.9 instead of
31 million weights); padded convolutions, so that the answer has the picture's size; group normalisation (Wu,
He: Group Normalization, ECCV 2018), because a step sees only a few crops, whose mean says little about other
pictures. On 63 nuclei pictures the validation mIoU after 40 steps was .82, with batch normalisation .31.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from clickmask.errors import InvalidRequest
from clickmask.training.networks._weights import group_norm

NAME = "U-Net"
BASE = 16  # channels at full resolution
LEVELS = 4  # poolings
STRIDE = 2**LEVELS


class DoubleConvolution(nn.Sequential):
    """(B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            group_norm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            group_norm(outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W); H and W are multiples of STRIDE."""

    def __init__(self, classes: int, base: int = BASE, levels: int = LEVELS) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(levels + 1)]  # 16, 32, 64, 128, 256
        rising = widths[:0:-1]  # 256, 128, 64, 32
        self.contracting = nn.ModuleList(DoubleConvolution(*pair) for pair in pairwise([3, *widths]))
        self.upsampling = nn.ModuleList(
            nn.ConvTranspose2d(width, width // 2, 2, stride=2) for width in rising
        )
        self.expanding = nn.ModuleList(DoubleConvolution(width, width // 2) for width in rising)
        self.classifier = nn.Conv2d(base, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = pixels - 0.5
        skipped: list[Tensor] = []
        for level, convolve in enumerate(self.contracting):
            if level:
                features = nn.functional.max_pool2d(features, 2)
            features = convolve(features)  # (B, 16 * 2**level, H / 2**level, W / 2**level)
            skipped.append(features)
        skipped.pop()  # the lowest level has no skip connection
        for upsample, convolve in zip(self.upsampling, self.expanding, strict=True):
            finer = upsample(features)  # (B, c / 2, 2h, 2w)
            features = convolve(torch.cat((skipped.pop(), finer), dim=1))  # (B, c, 2h, 2w) -> (B, c / 2, …)
        return self.classifier(features)


def build(classes: int, encoder: Path | None) -> UNet:
    """A U-Net with random weights. Raises InvalidRequest for any `encoder`, since it takes none."""
    if encoder is not None:
        raise InvalidRequest(f"{NAME} starts from random weights: it cannot take those of {encoder.name}")
    return UNet(classes)
