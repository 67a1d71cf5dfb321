"""Flat shapes on noise and gradients: the scenes that tests and drawings are made of."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from clickmask.training.promptable.pool import PARTS

SHAPES = 4  # of a scene, the later over the earlier
FIRST = 60010  # number of the first
CORNERS = (3, 4, 4, 5, 6, 0)  # 0: an ellipse


class Draw(Protocol):
    """Numbers between 0 and 1."""

    def __call__(self, *shape: int) -> torch.Tensor: ...


def drawn_scenes(
    count: int, side: int, noise: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, S, S) in [-1, 1] and the codes (B, 1, S, S) of what was drawn."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=noise, device=device)

    axis = torch.linspace(-1, 1, side, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    slope = (draw(count, 3, 2, 1, 1) - 0.5) * (draw(count, 1, 1, 1, 1) < 0.5)
    images = draw(count, 3, 1, 1) * 2 - 1 + slope[:, :, 0] * x + slope[:, :, 1] * y
    codes = torch.zeros((count, 1, side, side), device=device)
    corners = torch.tensor(CORNERS, device=device)
    for number in range(SHAPES):
        inside = _polygons(x, y, corners[(draw(count) * len(CORNERS)).long()], draw)
        inside &= (draw(count) < (1.0 if number == 0 else 0.7))[:, None, None, None]
        colour = (draw(count, 3, 1, 1) * 2 - 1).expand_as(images)
        images = torch.where(inside, colour, images)
        codes = torch.where(inside, torch.full_like(codes, float((FIRST + number) * PARTS + 1)), codes)
    speckled = torch.randn(images.shape, generator=noise, device=device)
    return (images + speckled * 0.2 * draw(count, 1, 1, 1)).clamp(-1, 1), codes


def _polygons(x: torch.Tensor, y: torch.Tensor, corners: torch.Tensor, draw: Draw) -> torch.Tensor:
    """(B, 1, S, S): regular polygons of so many `corners` (B,), stretched, turned and moved."""
    count = len(corners)
    centres, angle = (draw(count, 2) - 0.5) * 1.6, draw(count) * (2 * math.pi)
    upright = draw(count) < 0.4
    angle = torch.where(upright, torch.zeros_like(angle), angle)
    sizes = 0.06 + 0.5 * draw(count, 2) ** 1.5
    across, down = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u = (across * cosine + down * sine) / sizes[:, 0, None, None]
    v = (down * cosine - across * sine) / sizes[:, 1, None, None]
    furthest = torch.full_like(u, -9.0)
    for number in range(int(corners.max())):
        turn = number * 2 * math.pi / corners.clamp(min=1)
        edge = u * turn.cos()[:, None, None] + v * turn.sin()[:, None, None]
        furthest = torch.where((number < corners)[:, None, None], torch.maximum(furthest, edge), furthest)
    inside = torch.where((corners == 0)[:, None, None], u**2 + v**2 < 1, furthest < 1)
    return inside[:, None]
