"""A network's answer for a whole picture, and how good its answers are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from clickmask.metrics import Confusion, confusion_matrix
from clickmask.training.augmentation import IGNORED, LabelledPixels, Labels
from clickmask.types import Pixels


def to_tensor(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].float() / 255


def predict(network: nn.Module, pixels: Pixels, stride: int) -> Labels:
    """The class of each pixel. Sides are padded to multiples of `stride` by the outermost pixels."""
    height, width = pixels.shape[:2]
    device = next(network.parameters()).device
    with torch.inference_mode():
        padding = (0, -width % stride, 0, -height % stride)
        logits = network(functional.pad(to_tensor(pixels, device), padding, mode="replicate"))
        best = logits[0, :, :height, :width].argmax(dim=0).to(torch.uint8)  # (H, W)
    return best.cpu().numpy()


def confusion_matrices(
    network: nn.Module, samples: Iterable[LabelledPixels], classes: int, stride: int
) -> Confusion:
    """(images, classes, classes), one for each sample; the network is left in evaluation mode."""
    network.eval()
    matrices = [
        confusion_matrix(sample.labels, predict(network, sample.pixels, stride), classes, IGNORED)
        for sample in samples
    ]
    return np.stack(matrices) if matrices else np.zeros((0, classes, classes), np.int64)
