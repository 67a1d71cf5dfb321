"""A quick score for comparing trainings: whole held-out photographs at the network's own size.

The protocol is that of `clickmask.reports.clicks`, but with octagonal distances, no second pass and half the
resolution, for batches on the device. Published numbers come from `clickmask evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from clickmask.training.click.fit import ious
from clickmask.training.click.network import ClickFPN, channels_last
from clickmask.training.click.pool import PARTS, SIDE, Pool
from clickmask.training.click.prompts import Prompts, largest_error, tight_boxes
from clickmask.training.loop import autocast

CLICKS = 5
OBJECTS = 4  # per image, drawn with the same chances as crops
BATCH = 16


@torch.no_grad()
def validate(network: ClickFPN, pool: Pool, side: int) -> Mapping[str, list[float]]:
    """Scores by group of photographs: mIoU after 1 .. CLICKS clicks and from a box, number of objects."""
    network.eval()
    found: dict[str, list[Tensor]] = {}
    noise = torch.Generator(pool.pixels.device).manual_seed(0)
    usable: list[int] = sorted(set(cast("Any", pool.owners).tolist()))
    for first in range(0, len(usable), BATCH):
        owners = torch.tensor(usable[first : first + BATCH], device=pool.owners.device)
        images, targets = _whole(pool, owners, side, noise)
        with autocast(images.device):
            embedded = network.encoder(channels_last(images))
            embedded = [each.repeat_interleave(OBJECTS, 0) for each in embedded]
            scores = _scores(network, embedded, targets.flatten(0, 1)).reshape(len(owners), OBJECTS, -1)
        for owner, rows in zip(usable[first:], scores, strict=False):
            found.setdefault(pool.photographs[owner].group, []).extend(rows)

    def means(rows: Tensor) -> list[float]:
        return [*(round(float(value), 4) for value in rows.mean(0)), float(len(rows))]

    summary = {group: means(torch.stack(rows)) for group, rows in sorted(found.items())}
    return {**summary, "mean of groups": means(torch.tensor([row[:-1] for row in summary.values()]))}


def _scores(network: ClickFPN, embedded: list[Tensor], targets: Tensor) -> Tensor:
    """IoUs (N, CLICKS + 1) after each click, then from the box alone."""
    count, height, width = targets.shape
    everywhere = torch.ones(count, dtype=torch.bool, device=targets.device)
    prompts = Prompts((height, width), targets.device, count)
    found = torch.zeros_like(targets, dtype=torch.bool)
    rows: list[Tensor] = []
    for _ in range(CLICKS):
        points, foreground, _ = largest_error(targets, found)
        prompts.click(points, foreground, everywhere)
        logits, _ = network.decoder(embedded, prompts.maps)
        rows.append(ious(logits[:, :1], targets)[:, 0])
        found = logits[:, 0] > 0
        prompts.correct(torch.sigmoid(logits[:, 0].float()), everywhere)
    prompts = Prompts((height, width), targets.device, count)
    prompts.enclose(tight_boxes(targets), everywhere)
    logits, _ = network.decoder(embedded, prompts.maps)
    return torch.stack([*rows, ious(logits[:, :1], targets)[:, 0]], 1)


def _whole(pool: Pool, owners: Tensor, side: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whole images (B, 3, S, S), and OBJECTS targets for each (B, OBJECTS, S / 2, S / 2)."""
    count = len(owners)
    scale = pool.sizes[owners].amax(1).float() / SIDE
    theta = torch.zeros((count, 2, 3), device=owners.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = (scale - 1)[:, None]
    grid = functional.affine_grid(theta, [count, 3, side, side], align_corners=False)
    images, codes = pool.crop(owners, grid)
    ids = torch.div(codes[:, 0], PARTS, rounding_mode="floor")  # (B, S, S)
    targets = torch.zeros((count, OBJECTS, side // 2, side // 2), device=owners.device)
    for number in range(count):
        own = (pool.owners == owners[number]).nonzero()[:, 0]
        picked = torch.multinomial(pool.chances[own], OBJECTS, len(own) < OBJECTS, generator=noise)
        for place, one in enumerate(own[picked]):
            wanted = ids[number] == pool.numbers[one]
            targets[number, place] = functional.avg_pool2d(wanted[None].float(), 2)[0] >= 0.5
    return images, targets
