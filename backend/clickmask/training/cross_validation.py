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


class CrossValidation:
    """`fits` trainings of the network named `network`, with equal shares of the config's time."""

    def __init__(
        self,
        dataset: Dataset,
        config: TrainingConfig,
        checkpoint: Path,
        limits: ImageLimits,
        *,
        network: str,
        fits: int,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        heartbeat: Heartbeat,
    ) -> None:
        """Make crops as large as the dataset's objects need. If they are smaller, a step takes more of them.

        A step on twice as many pixels would take twice as long, and these crops vary enough.
        """
        side = crop_side(dataset.samples, config.side)
        crops = max(1, round(config.crops * config.side / side))
        wide = wide_side(dataset.samples, side, crops)
        self.config = replace(config, side=side, crops=crops, wide=wide, seconds=config.seconds / fits)
        self._dataset, self._limits, self._network = dataset, limits, network
        self._report, self._cancelled, self._heartbeat = report, cancelled, heartbeat
        names = [f"{checkpoint.name}{number or ''}" for number in range(fits)]
        self._checkpoints = [checkpoint.with_name(name) for name in names]
        self._done, self._seconds = 0, 0.0

    def fit(
        self, training: Sequence[Sample], watched: Sequence[Sample]
    ) -> tuple[torch.nn.Module, TrainingResult]:
        """The network, on the CPU in evaluation mode, and the result of its training.

        `watched` decides when to stop; if it is empty, the config does. Raises Cancelled.
        """
        classes = len(self._dataset.categories) + 1
        cast("Any", torch).manual_seed(self.config.seed)
        network = networks.build(self._network, classes)
        cast("Any", network).to(
            "cuda" if torch.cuda.is_available() else "cpu",
            memory_format=torch.channels_last,  # a tenth faster on a CPU
        )
        trainer = Trainer(
            network,
            networks.load(self._network).STRIDE,
            training_pictures(self._dataset, training, self._limits),
            training_pictures(self._dataset, list(_first(watched)), self._limits),
            classes,
            self.config,
            self._checkpoints[self._done],
            self._dataset.digest,
        )
        started = time.perf_counter()
        result = trainer.run(self._report_all, self._cancelled, self._heartbeat)
        log.info("trained in %.0f s: %s", time.perf_counter() - started, result.reason)
        if result.reason == "cancelled":
            raise Cancelled
        self._done, self._seconds = self._done + 1, self._seconds + trainer.seconds
        best = networks.build(self._network, classes)
        best.load_state_dict(result.state)
        return best.cpu().eval(), result

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints. Call it once all results are saved elsewhere."""
        for path in self._checkpoints:
            path.unlink(missing_ok=True)

    def _report_all(self, progress: Progress) -> None:
        """Report the joint progress of all trainings."""
        fits, config = len(self._checkpoints), self.config
        self._report(
            replace(
                progress,
                step=self._done * config.steps + progress.step,
                steps=fits * config.steps,
                seconds=self._seconds + progress.seconds,
                seconds_left=progress.seconds_left + (fits - self._done - 1) * config.seconds,
            )
        )


def _first(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples that fit into MAX_WATCHED_PIXELS, at least one, in an order unrelated to their content."""
    left = MAX_WATCHED_PIXELS
    for sample in sorted(samples, key=lambda each: each.image):
        if left < MAX_WATCHED_PIXELS and left < math.prod(working_size(sample.size)):
            return
        left -= math.prod(working_size(sample.size))
        yield sample
