"""The training loop: seeded, logged, and going on from its last checkpoint when it was stopped.

What training minimises, for each mask: how wrong it is, and how wrong it thinks it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clickmask.training.click.crops import Crops, Sampler
from clickmask.training.click.network import ClickFPN
from clickmask.training.click.prompts import begin, correct
from clickmask.training.loop import read_checkpoint, write_checkpoint

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"
ROUNDS = (1, 2, 2, 3, 4)  # of prompts and corrections; one of these numbers, each step
GUESS_SHOWN = 0.3  # of the lone clicks, the best guess is corrected instead of the answer


@dataclass(frozen=True)
class TrainingConfig:
    """What a training is; two with the same plan and seed differ by a device's rounding only."""

    steps: int = 10_000
    crops: int = 48  # a step
    objects: int = 4  # a crop
    sides: tuple[int, ...] = (256, 320, 320, 384)  # px of the crops; one of these, each step
    rate: float = 1.5e-3  # of the decoder, at its peak
    encoder_rate: float = 0.3  # of that
    decay: float = 0.02
    warm_up: int = 200  # steps
    last_rate: float = 0.01  # of the peak
    average: float = 0.998  # of the weights, from one step to the next
    clip: float = 1.0  # of the gradient's norm
    save_every: int = 500  # steps
    seed: int = 0


class Trainer:
    """One run in `folder`, which holds its log and its checkpoint."""

    def __init__(
        self, plan: TrainingConfig, network: ClickFPN, sampler: Sampler, noise: torch.Generator, folder: Path
    ):
        self.plan, self.network, self.folder = plan, network, folder
        self._sampler, self._noise = sampler, noise
        self.device = next(network.parameters()).device
        self.average = ClickFPN().to(self.device)
        self.average.load_state_dict(network.state_dict())
        self.average.requires_grad_(False).eval()
        self._optimiser: Any = _optimiser(network, plan)
        self.step = 0

    def run(self) -> None:
        """Train to the end of the plan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network.train()
        started, losses = time.perf_counter(), torch.zeros((), device=self.device)
        first = self.step
        while self.step < self.plan.steps:
            losses += self.one_step()
            if self.step % 50 == 0 or self.step == self.plan.steps:
                seconds = (time.perf_counter() - started) / (self.step - first)
                row = {"step": self.step, "loss": float(losses) / 50, "seconds": round(seconds, 4)}
                log.info("step %(step)d: loss %(loss).4f, %(seconds).3f s a step", row)
                with (self.folder / "log.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                losses.zero_()
            if self.step % self.plan.save_every == 0 or self.step == self.plan.steps:
                self.save()

    def one_step(self) -> torch.Tensor:
        """Teach one batch; its loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * _schedule(self.plan, self.step)
        chance = random.Random(f"{self.plan.seed} {self.step}")  # noqa: S311 - to be repeated
        side, rounds = chance.choice(self.plan.sides), chance.choice(ROUNDS)
        with torch.no_grad():
            crops = self._sampler.sample(self.plan.crops, side, self.plan.objects)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._learn(crops, rounds)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
        self._optimiser.step()
        self.step += 1
        self._follow()
        return loss

    def _learn(self, crops: Crops, rounds: int) -> torch.Tensor:
        """Leave gradients of the rounds' mean loss, and give it.

        An image is encoded once for all of its objects. Each round is forgotten before the next,
        and only what it wants of the features is kept: four rounds at once would not fit.
        """
        objects = crops.targets.shape[1]
        targets = crops.targets.flatten(0, 1)  # (B * P, h, w)
        with _half(self.device):
            encoded = self.network.encoder(_laid_out(crops.images))
        features = [each.detach().requires_grad_() for each in encoded]
        with torch.no_grad():
            prompts = begin(targets, self._noise)
        total = torch.zeros((), device=self.device)
        for number in range(rounds):
            ambiguous = prompts.ambiguous() if number == 0 else torch.zeros_like(prompts.clicks)
            with _half(self.device):
                embedded = [_laid_out(each.repeat_interleave(objects, 0)) for each in features]
                logits, worth = self.network.decoder(embedded, _laid_out(prompts.maps))
            loss = total_loss(logits.float(), worth, targets, ambiguous) / rounds
            torch.autograd.backward(loss)
            total += loss.detach()
            with torch.no_grad():
                shown = self._shown(logits.detach().float(), worth.detach(), ambiguous)
                prompts = correct(prompts, targets, torch.sigmoid(shown), self._noise)
        torch.autograd.backward(encoded, [each.grad for each in features])
        return total

    def _shown(self, logits: torch.Tensor, worth: torch.Tensor, ambiguous: torch.Tensor) -> torch.Tensor:
        """The mask (N, h, w) that the annotator goes on from."""
        lottery = torch.rand(len(logits), generator=self._noise, device=self.device)
        best = 1 + worth[:, 1:].argmax(1)
        channel = torch.where((ambiguous > 0) & (lottery < GUESS_SHOWN), best, torch.zeros_like(best))
        return logits[torch.arange(len(logits), device=self.device), channel]

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights a little; more at first, when they are still those of the start."""
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
        ours, theirs = self.average.state_dict(), self.network.state_dict()
        for name, tensor in ours.items():
            if tensor.is_floating_point():
                tensor.lerp_(theirs[name], 1 - keep)

    def save(self) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {
            "plan": asdict(self.plan),
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "noise": self._noise.get_state(),
        }
        write_checkpoint(self.folder / CHECKPOINT, state)

    def resume(self) -> bool:
        """Go on from the checkpoint of the folder, if there is one."""
        state = read_checkpoint(self.folder / CHECKPOINT, self.device)
        if state is None:
            return False
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._noise.set_state(state["noise"].cpu())
        self.step = int(state["step"])
        log.info("going on from step %d", self.step)
        return True


def _optimiser(network: ClickFPN, plan: TrainingConfig) -> torch.optim.AdamW:
    """Norms and biases are not decayed; the encoder, which has seen ImageNet, learns slower."""
    groups: list[dict[str, Any]] = []
    for of_backbone in (True, False):
        for decayed in (True, False):
            peak = plan.rate * (plan.encoder_rate if of_backbone else 1.0)
            parameters = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith("encoder.backbone.") == of_backbone and (parameter.ndim > 1) == decayed
            ]
            decay = plan.decay if decayed else 0.0
            groups.append({"params": parameters, "weight_decay": decay, "lr": peak, "peak": peak})
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


def _schedule(plan: TrainingConfig, step: int) -> float:
    """A line up, then a cosine down to `last_rate`."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    progress = (step - plan.warm_up) / max(1, plan.steps - plan.warm_up)
    return plan.last_rate + (1 - plan.last_rate) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """With its channels side by side, which is twice as fast; repeating and adding forget that."""
    return x.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def _half(device: torch.device) -> Generator[None]:
    """bfloat16 where it is fast."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        yield


GAMMA = 2.0
IOU_LOSS_WEIGHT = 1.0  # weight of the estimated IoUs
GUESSES = 0.5  # weight of the best of the guesses


def mask_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, M): normalised focal loss + Dice of logits (B, M, h, w) against targets (B, h, w) of 0 and 1.

    Sofiiuk et al., "Reviving Iterative Trainer with Mask Guidance", ICIP 2022, after
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
    return (
        (losses[:, 0] + GUESSES * guesses + IOU_LOSS_WEIGHT * estimated) * known
    ).sum() / known.sum().clamp(min=1)
