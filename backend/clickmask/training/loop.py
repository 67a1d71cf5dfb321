"""The training loop that all networks share. Batches depend only on the seed and the step, so a stopped
training resumes as if it had never stopped. If the time budget ends it early, the learning rate follows the
clock, and two trainings differ as their clocks do."""

import copy
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from clickmask import files
from clickmask.errors import NotReady

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
LAST_RATE = 0.01  # of the peak learning rate, at the end of the cosine
BUSY_SHARE = 0.5  # of the elapsed time that a training waited for the processor
MIN_WAITED_S = 10.0  # seconds; a shorter wait is not worth a sentence

State = Mapping[str, Tensor]
Heartbeat = Callable[[], None]  # called at least every few seconds
Reason = Literal["all steps done", "out of time", "no longer improving", "cancelled"]


@dataclass(frozen=True)
class Schedule:
    """The duration of a training, and the course of its learning rate and averaged weights."""

    steps: int
    check_every: int  # steps between validations and reports
    save_every: int  # steps between checkpoints
    warm_up: int  # steps in which the learning rate rises to its peak
    average: float  # share of themselves that the averaged weights keep per step,
    average_start: tuple[int, int]  # but at first (a + step) / (b + step): early weights are worth little
    cosine_from: int = 0  # step from which the learning rate falls
    tail: int = 0  # steps in which the rate falls to its end, once validation no longer improves
    seconds: float = math.inf  # as `Progress` counts them


@dataclass(frozen=True)
class Progress:
    """A training's progress. `seconds` count training and validation over all of its runs: processor time of
    the thread that trains on a CPU, so that a busy machine costs no steps, and elapsed time on a GPU."""

    step: int
    steps: int
    loss: float  # mean since the previous report
    validation_miou: float  # NaN before the first validation, and if there is nothing to validate on
    seconds: float
    seconds_left: float  # at most: training may stop earlier
    waited: float = 0.0  # elapsed time beyond `seconds`: other processes had the processor

    @property
    def busy(self) -> str:
        """A sentence on the machine if it kept the training waiting for most of the time; else empty."""
        elapsed = self.seconds + self.waited
        if self.waited < max(MIN_WAITED_S, BUSY_SHARE * elapsed):
            return ""
        got = f"{self.seconds:.1f} s of processor time in {elapsed:.0f} s"
        return f"The machine was busy: the training got {got}"


class TrainingLoop:
    """Training of `network` in place, on its own device, with a moving average of its weights. A subclass
    defines a step (`backward`), and optionally how to measure the average (`validate`) and what else a
    checkpoint holds (`extra_state`, `load_extra_state`). Call `loop` once, in one thread."""

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        checkpoint: Path,
        identity: Mapping[str, Any],
    ) -> None:
        """`optimiser`'s groups hold their peak rates. Checkpoints with another `identity` are ignored."""
        self.network, self.schedule = network, schedule
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.device = next(network.parameters()).device
        self.step, self.seconds, self.waited = 0, 0.0, 0.0
        self.heartbeat: Heartbeat = lambda: None
        self._clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        self.validation_miou = math.nan  # from the latest validation
        self._optimiser: Any = optimiser
        self._parts: Any = {"network": network, "average": self.average, "optimiser": optimiser}
        self._peaks = [group["lr"] for group in self._optimiser.param_groups]
        self._tail: tuple[int, float] | None = None  # its first step, and the rate factor there
        self._checkpoint, self._identity = checkpoint, dict(identity)

    def backward(self) -> Tensor:
        """Leave this step's gradients in the network, and return the detached loss."""
        raise NotImplementedError

    def validate(self) -> bool:
        """Measure `average`. False begins the tail, because training no longer improves it."""
        return True

    def extra_state(self) -> dict[str, Any]:
        """Tensors and plain values that a checkpoint holds besides the loop's own."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Resume from the result of `extra_state`."""

    def loop(
        self,
        report: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        heartbeat: Heartbeat = lambda: None,
    ) -> Reason:
        """Train until the schedule ends or `cancelled`. Calls `report` after each validation."""
        schedule, losses, self.heartbeat = self.schedule, list[Tensor](), heartbeat
        while (reason := self._reason_to_stop(cancelled)) is None:
            heartbeat()
            began, started = time.perf_counter(), self._clock()
            self.network.train()
            for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
                group["lr"] = peak * self.rate_factor()
            self._optimiser.zero_grad(set_to_none=True)
            losses.append(self.backward())
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
            self._optimiser.step()
            current, (first, second) = self.network.state_dict(), schedule.average_start
            keep = min(schedule.average, (first + self.step) / (second + self.step))
            for name, averaged in self.average.state_dict().items():
                if averaged.is_floating_point():
                    averaged.lerp_(current[name], 1 - keep)
                else:
                    averaged.copy_(current[name])
            self.step += 1
            last = self.step == schedule.steps
            checking = last or self.step % schedule.check_every == 0
            if checking:
                self._check()
            took = self._clock() - started
            self.seconds += took
            self.waited += max(0.0, time.perf_counter() - began - took)
            if last or self.step % schedule.save_every == 0:
                self.save()
            if checking:
                report(self._progress(losses))
                losses.clear()
        if losses and reason == "cancelled":
            self.save()  # at once: the process may be about to end, and a validation can take minutes
        elif losses:  # steps without a validation; not saved, because a resumed training repeats them
            self._check()
            report(self._progress(losses))
        log.info("training ended at step %d: %s", self.step, reason)
        return reason

    def rate_factor(self) -> float:
        """Learning-rate factor in [0, 1]: linear warm-up, cosine decay, then a short cosine tail."""
        schedule = self.schedule
        if self._tail:
            since, factor = self._tail
            return _cosine(factor, (self.step - since) / schedule.tail)
        by_steps = (self.step - schedule.cosine_from) / max(1, schedule.steps - schedule.cosine_from)
        done = max(0.0, by_steps, self.seconds / schedule.seconds)
        return min(1.0, (self.step + 1) / schedule.warm_up) * _cosine(1.0, done)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        progress = {"of": self._identity, "step": self.step, "seconds": self.seconds, "waited": self.waited}
        parts = {part: module.state_dict() for part, module in self._parts.items()}
        written = io.BytesIO()
        torch.save({**progress, "ending": self._tail, **parts, **self.extra_state()}, written)
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        files.write(self._checkpoint, written.getvalue())

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one with the same identity."""
        name = self._checkpoint.name
        if not self._checkpoint.exists():
            return
        try:  # weights_only: nothing in the file is executed
            raw = io.BytesIO(files.read(self._checkpoint))
            content: Any = torch.load(raw, map_location=self.device, weights_only=True)
        except Exception:  # noqa: BLE001 - torch raises anything for a damaged file
            log.warning("%s is not a checkpoint: training starts at the first step", name)
            return
        kept: dict[str, Any] = cast("Any", content) if isinstance(content, dict) else {}
        if kept.get("of") != self._identity:
            log.info("%s is of another training: this one starts at the first step", name)
            return
        self.step, self.seconds, self._tail = kept["step"], kept["seconds"], kept["ending"]
        self.waited = kept.get("waited", 0.0)  # checkpoints of earlier versions do not have it
        for part, module in self._parts.items():
            module.load_state_dict(kept[part])
        self.load_extra_state(kept)
        log.info("training continues from step %d", self.step)

    def _reason_to_stop(self, cancelled: Callable[[], bool]) -> Reason | None:
        if cancelled():
            return "cancelled"
        if self.step >= self.schedule.steps:
            return "all steps done"
        if self.seconds >= self.schedule.seconds:
            return "out of time"
        ended = self._tail is not None and self.step >= self._tail[0] + self.schedule.tail
        return "no longer improving" if ended else None

    def _check(self) -> None:
        if not self.validate() and self._tail is None:
            self._tail = self.step, self.rate_factor()

    def _progress(self, losses: Sequence[Tensor]) -> Progress:
        steps = self.schedule.steps
        by_steps = self.seconds / self.step * (steps - self.step)
        left = max(0.0, min(by_steps, self.schedule.seconds - self.seconds))
        loss = sum(map(float, losses)) / len(losses)
        return Progress(self.step, steps, loss, self.validation_miou, self.seconds, left, self.waited)


def choose_device(name: str) -> torch.device:
    """cuda, mps or cpu; the best there is for auto. Raises NotReady if torch cannot use it here."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(each for each, is_here in usable.items() if is_here)
    if not usable.get(name):
        there = " and ".join(each for each, is_here in usable.items() if is_here)
        raise NotReady(f"torch finds no device {name} here, only {there}: change CLICKMASK_DEVICE")
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; on a CPU it would gain nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _cosine(first: float, done: float) -> float:
    """A cosine from `first` to LAST_RATE as `done` goes from 0 to 1."""
    return LAST_RATE + (first - LAST_RATE) * (1 + math.cos(math.pi * min(1.0, done))) / 2
