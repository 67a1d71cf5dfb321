"""What training minimises, for each mask: how wrong it is, and how wrong it thinks it is."""

from __future__ import annotations

import torch
from torch.nn import functional

GAMMA = 2.0
WORTH = 1.0  # weight of the estimated IoUs
GUESSES = 0.5  # weight of the best of the guesses


def mask_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, M): normalised focal loss + Dice of logits (B, M, h, w) against targets (B, h, w) of 0 and 1.

    Sofiiuk et al., "Reviving Iterative Training with Mask Guidance", ICIP 2022, after
    Lin et al., "Focal Loss", ICCV 2017: the focal weights of a mask add up to its pixels.
    """
    logits, wanted = logits.float(), targets[:, None].float()
    probabilities = torch.sigmoid(logits)
    right = probabilities * wanted + (1 - probabilities) * (1 - wanted)
    weights = (1 - right) ** GAMMA
    scale = (weights.shape[2] * weights.shape[3] / (weights.sum((2, 3), keepdim=True) + 1e-4)).detach()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted.expand_as(logits), reduction="none")
    focal = (scale.clamp(max=100) * weights * entropy).mean((2, 3))
    shared = (probabilities * wanted).sum((2, 3))
    dice = 1 - (2 * shared + 1) / (probabilities.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    return focal + dice


def ious(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, M) of the masks logits > 0 (B, M, h, w) with targets (B, h, w); 1 for two empty ones."""
    found, wanted = logits > 0, targets[:, None] > 0.5
    shared, either = (found & wanted).sum((2, 3)), (found | wanted).sum((2, 3))
    return torch.where(either > 0, shared / either.clamp(min=1), torch.ones_like(shared, dtype=torch.float32))


def total_loss(
    logits: torch.Tensor, worth: torch.Tensor, targets: torch.Tensor, ambiguous: torch.Tensor
) -> torch.Tensor:
    """One number. The guesses count where the prompt is `ambiguous` (B,), and of them the best."""
    losses = mask_losses(logits, targets)
    guesses = (losses[:, 1:].min(1).values + 0.05 * losses[:, 1:].mean(1)) * ambiguous
    estimates = (worth - ious(logits.detach(), targets)) ** 2
    estimated = estimates[:, 0] + estimates[:, 1:].mean(1) * ambiguous
    known = (targets.sum((1, 2)) > 0).float()  # a crop may have nothing labelled in it
    return ((losses[:, 0] + GUESSES * guesses + WORTH * estimated) * known).sum() / known.sum().clamp(min=1)
