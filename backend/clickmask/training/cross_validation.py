"""Several trainings on parts of one dataset, one after the other, within one time budget."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.images.decode import ImageLimits
from clickmask.models.labeller import working_size
from clickmask.training import networks
from clickmask.training.crops import crop_side, training_pictures, wide_side
from clickmask.training.fit import Trainer, TrainingConfig, TrainingResult
from clickmask.training.loop import Heartbeat, Progress

log = logging.getLogger(__name__)

MAX_WATCHED_PIXELS = 2**22  # pixels of the pictures that early stopping measures repeatedly


class Cancelled(Exception):
    """The training was stopped. The same calls resume it."""


def cross_validate(
    dataset: Dataset,
    parts: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
    config: TrainingConfig,
    checkpoints: Sequence[Path],
    limits: ImageLimits,
    *,
    network: str,
    report: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    heartbeat: Heartbeat,
) -> Iterator[tuple[torch.nn.Module, TrainingResult]]:
    """Train a network for each of `parts`, (training, watched), with equal shares of the config's time.

    Networks are on the CPU and in evaluation mode. `watched` decides when to stop; if it is empty, the
    config does. Raises Cancelled.

    Crops are as large as the dataset's objects need. If they are smaller, a step takes more of them: on twice
    as many pixels it would take twice as long, and these crops vary enough.
    """
    fits, done, seconds = len(parts), 0, 0.0
    side = crop_side(dataset.samples, config.side)
    crops = max(1, round(config.crops * config.side / side))
    wide = wide_side(dataset.samples, side, crops)
    config = replace(config, side=side, crops=crops, wide=wide, seconds=config.seconds / fits)
    classes, stride = len(dataset.categories) + 1, networks.load(network).STRIDE

    def report_all(progress: Progress) -> None:
        joint = replace(
            progress,
            step=done * config.steps + progress.step,
            steps=fits * config.steps,
            seconds=seconds + progress.seconds,
            seconds_left=progress.seconds_left + (fits - done - 1) * config.seconds,
        )
        report(joint)

    for path, (training, watched) in zip(checkpoints, parts, strict=True):
        cast("Any", torch).manual_seed(config.seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trained: Any = networks.build(network, classes)
        trained.to(device, memory_format=torch.channels_last)  # a tenth faster on a CPU
        pictures = training_pictures(dataset, training, limits)
        watching = training_pictures(dataset, list(_first(watched)), limits)
        trainer = Trainer(trained, stride, pictures, watching, classes, config, path, dataset.digest)
        started = time.perf_counter()
        result = trainer.run(report_all, cancelled, heartbeat)
        log.info("trained in %.0f s: %s", time.perf_counter() - started, result.reason)
        if result.reason == "cancelled":
            raise Cancelled
        done, seconds = done + 1, seconds + trainer.seconds
        del trainer, pictures, watching  # free the memory of decoded pictures before the next training
        best = networks.build(network, classes)
        best.load_state_dict(result.state)
        yield best.cpu().eval(), result


def _first(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples that fit into MAX_WATCHED_PIXELS, at least one, in an order unrelated to their content."""
    left = MAX_WATCHED_PIXELS
    for sample in sorted(samples, key=lambda each: each.image):
        if left < MAX_WATCHED_PIXELS and left < math.prod(working_size(sample.size)):
            return
        left -= math.prod(working_size(sample.size))
        yield sample
