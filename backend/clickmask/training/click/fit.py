"""Training of the promptable network: simulated annotators correct its masks round by round."""

import hashlib
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clickmask.training.click.crops import Sampler
from clickmask.training.click.network import ClickFPN, calibrate, channels_last
from clickmask.training.click.prompts import begin, correct
from clickmask.training.loop import Progress, Schedule, TrainingLoop, autocast

log = logging.getLogger(__name__)

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
RECIPE = 1  # version of this file's arithmetic; checkpoints of other versions are ignored
REPORT_EVERY = 50  # steps
ROUNDS = (1, 2, 2, 3, 4)  # numbers of rounds of prompts and corrections; each step draws one
GUESS_SHOWN = 0.3  # share of lone clicks whose best guess, not the answer, is corrected
GAMMA = 2.0
IOU_LOSS_WEIGHT = 1.0
BEST_GUESS_WEIGHT = 0.5  # of the best guess's loss
MEAN_GUESS_WEIGHT = 0.05  # of the guesses' mean relative to it, so that each gets a gradient


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training. Two with the same config differ only by a device's rounding."""

    steps: int = 10_000
    crops: int = 48  # per step
    objects: int = 4  # per crop
    sides: tuple[int, ...] = (256, 320, 320, 384)  # px, of the crops; each step draws one
    rate: float = 1.5e-3  # peak learning rate of the decoder
    encoder_rate: float = 0.3  # the encoder's share of that rate
    decay: float = 0.02
    warm_up: int = 200  # steps
    average: float = 0.998  # share of themselves that the averaged weights keep per step
    save_every: int = 500  # steps
    seed: int = 0


class Trainer(TrainingLoop):
    """One training in `folder`, which holds its log and the checkpoint it resumes from."""

    network: ClickFPN
    average: ClickFPN

    def __init__(self, config: TrainingConfig, network: ClickFPN, sampler: Sampler, folder: Path) -> None:
        # AdamW without decay of norms and biases. The encoder, trained on ImageNet, learns more slowly.
        groups: list[dict[str, Any]] = []
        for of_backbone, decayed in product((True, False), repeat=2):
            parameters = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith("encoder.backbone.") == of_backbone and (parameter.ndim > 1) == decayed
            ]
            rate = config.rate * (config.encoder_rate if of_backbone else 1.0)
            groups.append({"params": parameters, "weight_decay": config.decay * decayed, "lr": rate})
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        schedule = Schedule(
            config.steps,
            check_every=REPORT_EVERY,
            save_every=config.save_every,
            warm_up=config.warm_up,
            cosine_from=config.warm_up,
            average=config.average,
            average_start=(2, 11),
        )
        images = "\n".join(photograph.name for photograph in sampler.pool.photographs)
        digest = hashlib.sha256(images.encode()).hexdigest()
        identity = {"recipe": RECIPE, "images": digest, **asdict(config)}
        super().__init__(network, optimiser, schedule, folder / CHECKPOINT, identity)
        self.config = config
        self._sampler, self._noise, self._log = sampler, sampler.noise, folder / LOG
        self.resume()

    def calibrate(self, batches: int = 8) -> None:
        """Measure normalisation statistics before training, as a network read from ONNX files needs."""
        calibrate(self.network, lambda: [self.backward() for _ in range(batches)])
        self.average.load_state_dict(self.network.state_dict())

    def run(self) -> None:
        """Train to the end of the config."""

        def report(progress: Progress) -> None:
            seconds = round(progress.seconds / progress.step, 4)
            row = {"step": progress.step, "loss": progress.loss, "seconds": seconds}
            log.info("step %(step)d: loss %(loss).4f, %(seconds).3f s a step", row)
            with self._log.open("a") as file:
                file.write(json.dumps(row) + "\n")

        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.loop(report)

    def backward(self) -> Tensor:
        """Leave the gradients of the rounds' mean loss. All objects of an image share one encoding. Each
        round's graph is freed before the next one, keeping only its gradients for the features: four rounds
        at once would not fit."""
        config = self.config
        chance = random.Random(f"{config.seed} {self.step}")  # noqa: S311 - must be repeatable
        side, rounds = chance.choice(config.sides), chance.choice(ROUNDS)
        with torch.no_grad():
            images, targets = self._sampler.sample(config.crops, side, config.objects)
            targets = targets.flatten(0, 1)  # (B * P, h, w)
            prompts = begin(targets, self._noise)
        with autocast(self.device):
            encoded = self.network.encoder(channels_last(images))
        features = [each.detach().requires_grad_() for each in encoded]
        total = torch.zeros((), device=self.device)
        for number in range(rounds):
            ambiguous = prompts.ambiguous() if number == 0 else torch.zeros_like(prompts.clicks)
            with autocast(self.device):
                embedded = [channels_last(each.repeat_interleave(config.objects, 0)) for each in features]
                logits, worth = self.network.decoder(embedded, channels_last(prompts.maps))
            loss = total_loss(logits.float(), worth, targets, ambiguous) / rounds
            torch.autograd.backward(loss)
            total += loss.detach()
            with torch.no_grad():
                # correct the answer, or for some lone clicks the best guess
                lottery = torch.rand(len(logits), generator=self._noise, device=self.device)
                guessing = (ambiguous > 0) & (lottery < GUESS_SHOWN)
                channel = torch.where(guessing, 1 + worth[:, 1:].argmax(1), 0)
                shown = logits[torch.arange(len(logits), device=self.device), channel].float()
                prompts = correct(prompts, targets, torch.sigmoid(shown), self._noise)
        torch.autograd.backward(encoded, [each.grad for each in features])
        return total

    def extra_state(self) -> dict[str, Any]:
        return {"noise": self._noise.get_state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self._noise.set_state(state["noise"].cpu())


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Normalised focal loss + Dice, (B, M), of logits (B, M, h, w) against targets (B, h, w) of 0 and 1.
    Sofiiuk et al., "Reviving Iterative Training with Mask Guidance", ICIP 2022, after Lin et al., "Focal
    Loss", ICCV 2017: the focal weights of a mask add up to its number of pixels."""
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


def ious(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU (B, M) of the masks `logits` > 0 (B, M, h, w) with `targets` (B, h, w); 1 if both are empty."""
    found, wanted = logits > 0, targets[:, None] > 0.5
    shared, either = (found & wanted).sum((2, 3)), (found | wanted).sum((2, 3))
    return torch.where(either > 0, shared / either.clamp(min=1), torch.ones_like(shared, dtype=torch.float32))


def total_loss(logits: Tensor, worth: Tensor, targets: Tensor, ambiguous: Tensor) -> Tensor:
    """Mean loss of masks, logits (B, M, h, w) against targets (B, h, w), and of their estimated IoUs, worth
    (B, M). Objects without pixels are left out. The guesses, channels 1 and up, count only for `ambiguous`
    (B,) prompts, and the best one counts most."""
    losses = mask_losses(logits, targets)
    guesses = (losses[:, 1:].min(1).values + MEAN_GUESS_WEIGHT * losses[:, 1:].mean(1)) * ambiguous
    estimates = (worth - ious(logits.detach(), targets)) ** 2
    estimated = estimates[:, 0] + estimates[:, 1:].mean(1) * ambiguous
    known = (targets.sum((1, 2)) > 0).float()  # a crop may contain nothing labelled
    each = losses[:, 0] + BEST_GUESS_WEIGHT * guesses + IOU_LOSS_WEIGHT * estimated
    return (each * known).sum() / known.sum().clamp(min=1)
