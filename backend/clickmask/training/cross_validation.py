"""CrossValidation on parts of one dataset, one after the other, within one time budget."""

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
from clickmask.training.crops import crop_side, training_pictures, wide_side
from clickmask.training.fit import Progress, Trainer, TrainingConfig, TrainingResult
from clickmask.training.networks import unet

log = logging.getLogger(__name__)

MAX_WATCHED_PIXELS = 2**22  # pixels of the pictures that early stopping looks at, again and again

Heartbeat = Callable[[], None]  # called at least every few seconds of work


class Cancelled(Exception):
    """The work was stopped, and the same calls go on from there."""


class CrossValidation:
    """`fits` networks are trained, each for an equal part of the plan's time."""

    def __init__(
        self,
        dataset: Dataset,
        plan: TrainingConfig,
        checkpoint: Path,
        limits: ImageLimits,
        *,
        fits: int,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        beat: Heartbeat,
    ) -> None:
        """Crops are as large as the dataset's objects ask for, and the more the smaller they are.

        A step on twice as many pixels takes twice as long, and so many crops vary enough.
        """
        side = crop_side(dataset.samples, plan.side)
        crops = max(1, round(plan.crops * plan.side / side))
        wide = wide_side(dataset.samples, side, crops)
        self.plan = replace(plan, side=side, crops=crops, wide=wide, seconds=plan.seconds / fits)
        self._dataset, self._checkpoint, self._limits = dataset, checkpoint, limits
        self._report, self._cancelled, self._beat = report, cancelled, beat
        self._fits, self._done, self._seconds = fits, 0, 0.0

    def fit(
        self, training: Sequence[Sample], watched: Sequence[Sample]
    ) -> tuple[torch.nn.Module, TrainingResult]:
        """A network on the CPU, and how it came about. `watched` decide when to stop; none: the plan does.

        Raises Cancelled.
        """
        classes = len(self._dataset.categories) + 1
        cast("Any", torch).manual_seed(self.plan.seed)
        network = unet.build(classes)
        cast("Any", network).to(
            "cuda" if torch.cuda.is_available() else "cpu",
            memory_format=torch.channels_last,  # a tenth faster on a CPU
        )
        run = Trainer(
            network,
            unet.STRIDE,
            training_pictures(self._dataset, training, self._limits),
            training_pictures(self._dataset, list(_first(watched)), self._limits),
            classes,
            self.plan,
            self._path(self._done),
            self._dataset.digest,
        )
        started = time.perf_counter()
        fitted = run.run(self._tell, self._stops)
        log.info("fitted in %.0f s: %s", time.perf_counter() - started, fitted.reason)
        if fitted.reason == "cancelled":
            raise Cancelled
        self._done, self._seconds = self._done + 1, self._seconds + run.seconds
        best = unet.build(classes)
        best.load_state_dict(fitted.state)
        return best.cpu().eval(), fitted

    def forget(self) -> None:
        """The checkpoints: all that was to be trained is kept elsewhere."""
        for number in range(self._fits):
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._checkpoint.with_name(f"{self._checkpoint.name}{number or ''}")

    def _stops(self) -> bool:
        self._beat()
        return self._cancelled()

    def _tell(self, progress: Progress) -> None:
        """Of all fits together."""
        later = self._fits - self._done - 1
        self._report(
            replace(
                progress,
                step=self._done * self.plan.steps + progress.step,
                steps=self._fits * self.plan.steps,
                seconds=self._seconds + progress.seconds,
                seconds_left=progress.seconds_left + later * self.plan.seconds,
            )
        )


def _first(samples: Sequence[Sample]) -> Iterator[Sample]:
    """As many as MAX_WATCHED_PIXELS has pixels for, in an order that says nothing of them; one at least."""
    left = MAX_WATCHED_PIXELS
    for sample in sorted(samples, key=lambda each: each.image):
        if left < MAX_WATCHED_PIXELS and left < math.prod(working_size(sample.size)):
            return
        left -= math.prod(working_size(sample.size))
        yield sample
