"""The loss of networks that bring none of their own."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from clickmask.datasets.snapshot import IGNORED

MAX_CLASS_WEIGHT = 5.0  # relative to the most frequent category


def class_weights(pixels: NDArray[np.int64]) -> Tensor:
    """Weights (K,) from the number of pixels of each class; 1 for the background.

    The most frequent category weighs 1, others the inverse fourth root of their pixels relative to it, at
    most MAX_CLASS_WEIGHT; one without pixels 1. Higher weights are too much: crops already favour rare
    categories, Dice counts all equally, and a class that outweighs the background grows beyond its outline.
    """
    counts = torch.as_tensor(pixels, dtype=torch.float32)
    weights = ((counts[1:].max() / counts.clamp(min=1)) ** 0.25).clamp(1, MAX_CLASS_WEIGHT)
    weights[0] = 1
    return torch.where(counts > 0, weights, torch.ones_like(weights))


def segmentation_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy + Dice of logits (B, K, H, W) against labels (B, H, W) with IGNORED. The Dice
    loss is the mean of 1 - Dice (Milletari, Navab, Ahmadi: V-Net, 3DV 2016) over the categories in the batch,
    computed over all of its pixels. Without any category, the loss is cross-entropy alone."""
    logits = logits.float()  # sums over all pixels need more than 16 bits
    known = labels != IGNORED
    if not known.any():
        return logits.sum() * 0.0
    entropy = functional.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORED)
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1) * known[:, None]  # (B, K, H, W)
    truth = functional.one_hot(torch.where(known, labels, 0), classes).permute(0, 3, 1, 2) * known[:, None]
    both = (probabilities * truth).sum(dim=(0, 2, 3))  # (K,)
    each = probabilities.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    present[0] = False
    if not present.any():
        return entropy
    return entropy + (1 - 2 * both[present] / each[present]).mean()
