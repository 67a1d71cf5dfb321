"""One training, from a project's accepted labels to a version that is served or not."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from clickmask.datasets.snapshot import Dataset, Sample, folds
from clickmask.errors import InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits
from clickmask.labels.split import SIDES
from clickmask.metrics.report import report_to_json
from clickmask.models.labeller import LOGITS, PIXELS, open_labeller, to_input, working_size
from clickmask.models.versions import Models, ModelVersion, Provenance, UnsavedModel
from clickmask.training import networks
from clickmask.training.crops import crop_side, training_pictures, wide_side
from clickmask.training.fit import Trainer, TrainingConfig, TrainingResult
from clickmask.training.loop import Heartbeat, Progress, choose_device
from clickmask.training.promotion import Decision, Measuring, compare, report_scores
from clickmask.training.segmentation import SegmentationNetwork, build, export

log = logging.getLogger(__name__)

GOLDEN_SIDE = 256  # px of the picture whose answers verify that a version is what was trained
MAX_WATCHED_PIXELS = 2**22  # pixels of the pictures that early stopping measures repeatedly


@dataclass(frozen=True)
class Trained:
    version: ModelVersion
    decision: Decision  # its reason also says if the machine was busy, and what to do next


def train(
    dataset: Dataset,
    models: Models,
    config: TrainingConfig,
    checkpoint: Path,
    *,
    network: str = "unet",
    encoder: Path | None = None,
    device: str = "auto",
    report: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    heartbeat: Heartbeat = lambda: None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Trained | None:
    """Train on the dataset's training side, save the version, and serve it if the gate agrees.

    `network` is a module's name in `training/networks`, `encoder` a file of weights that it starts from,
    `device` auto, cpu, cuda or mps. If the split is too small to say much, part of the
    time goes to networks trained alike on parts of the images and measured on the rest. Returns None if
    cancelled; the same call resumes from `checkpoint`. Raises InvalidRequest for too little data, an unknown
    network or weights that do not fit it, and NotReady if a package or the device is missing.
    """
    networks.require_name(network)
    on = choose_device(device)
    kept = tuple(sample for sample in dataset.samples if dataset.pictures.holds(sample.image))
    if len(kept) < len(dataset.samples):
        log.warning("%d labelled images are not kept any more", len(dataset.samples) - len(kept))
    dataset = replace(dataset, samples=kept)  # its digest still covers all images
    sides = {side: dataset.split(side) for side in SIDES}
    if not dataset.categories:
        raise InvalidRequest("nothing is labelled in the project yet")
    if not sides["train"] or not sides["validation"]:
        counts = ", ".join(f"{len(samples)} {side}" for side, samples in sides.items())
        said = f"a training needs images to train and to validate on; of {len(kept)} labelled images"
        raise InvalidRequest(f"{said} there are {counts}")
    parts = folds(dataset) if dataset.too_few else []
    # Nothing stops the others early: images used for measuring must not decide anything.
    trainings = [(sides["train"], sides["validation"]), *((most, list[Sample]()) for most, _ in parts)]
    names = (f"{checkpoint.name}{number or ''}" for number in range(len(trainings)))
    checkpoints = [checkpoint.with_name(name) for name in names]
    busy = ""

    def watch(progress: Progress) -> None:
        nonlocal busy
        busy = progress.busy
        report(progress)

    made = partial(build, network, len(dataset.categories) + 1, encoder)
    fits = fit_all(dataset, trainings, config, checkpoints, made, on, limits, watch, cancelled, heartbeat)
    if fits is None:
        return None
    exported = [export(each) for each, _ in fits]
    candidate, *others = map(open_labeller, exported)
    measuring = Measuring(dataset, limits, heartbeat)
    measured = measuring.measure([(candidate, sides["validation"])])
    trained, result = fits[0]
    decision = compare(measuring, measured, sides["validation"], models, result.step)
    said = ". ".join(filter(None, (decision.reason, busy, decision.advice)))
    held_out = [(other, samples) for other, (_, samples) in zip(others, parts, strict=True)]
    about = {
        **report_scores(measuring, candidate, sides["test"], held_out),
        "validation": report_to_json(measured.report),
        "decision": said,
        "promoted": decision.promoted,
        "step": result.step,
        "stopped": result.reason,
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "started_from": trained.started_from,
        "device": on.type,
    }
    split = {side: [sample.image for sample in samples] for side, samples in sides.items()}
    provenance = Provenance(network, dataset.categories, dataset.digest, split, about, config.seed)
    seen = to_input(measuring.pixels(sides["validation"][0])[:GOLDEN_SIDE, :GOLDEN_SIDE])
    with torch.inference_mode():
        answer = trained(torch.tensor(seen)).numpy()
    weights = {name: tensor.numpy() for name, tensor in trained.network.state_dict().items()}
    version = models.save(UnsavedModel(provenance, weights, exported[0], {PIXELS: seen}, {LOGITS: answer}))
    if decision.promoted:
        models.promote(version.id)
    models.prune()
    for path in checkpoints:
        path.unlink(missing_ok=True)
    return Trained(version, replace(decision, reason=said))


def fit_all(
    dataset: Dataset,
    trainings: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
    config: TrainingConfig,
    checkpoints: Sequence[Path],
    made: Callable[[], SegmentationNetwork],
    device: torch.device,
    limits: ImageLimits,
    report: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    heartbeat: Heartbeat,
) -> list[tuple[SegmentationNetwork, TrainingResult]] | None:
    """Fit one network after the other, each `made` alike, to pairs of (training, watched) images, in equal
    shares of the time.

    Networks are on the CPU and in evaluation mode. `watched` decides when to stop; if it is empty, the
    config does. Returns None if cancelled; the same call resumes.

    Crops are as large as the dataset's objects need. If they are smaller, a step takes more of them: on twice
    as many pixels it would take twice as long, and these crops vary enough.
    """
    fits: list[tuple[SegmentationNetwork, TrainingResult]] = []
    count, seconds, waited = len(trainings), 0.0, 0.0
    side = crop_side(dataset.samples, config.side)
    crops = max(1, round(config.crops * config.side / side))
    wide = wide_side(dataset.samples, side, crops)
    config = replace(config, side=side, crops=crops, wide=wide, seconds=config.seconds / count)
    classes = len(dataset.categories) + 1

    def report_all(progress: Progress) -> None:
        step, steps = len(fits) * config.steps + progress.step, count * config.steps
        left = (count - len(fits) - 1) * config.seconds + progress.seconds_left
        times = {"seconds": seconds + progress.seconds, "seconds_left": left}
        report(replace(progress, step=step, steps=steps, **times, waited=waited + progress.waited))

    for path, (training, watched) in zip(checkpoints, trainings, strict=True):
        cast("Any", torch).manual_seed(config.seed)
        network = made()
        cast("Any", network).to(device, memory_format=torch.channels_last)  # a tenth faster on a CPU
        if not fits:
            log.info("training on %s, from %s", device, network.started_from)
        pictures = training_pictures(dataset, training, limits)
        watching = training_pictures(dataset, list(_first(watched)), limits)
        trainer = Trainer(network, pictures, watching, classes, config, path, dataset.digest)
        started = time.perf_counter()
        result = trainer.run(report_all, cancelled, heartbeat)
        log.info("trained in %.0f s: %s", time.perf_counter() - started, result.reason)
        if result.reason == "cancelled":
            return None
        seconds, waited = seconds + trainer.seconds, waited + trainer.waited
        del trainer, pictures, watching  # free the memory of decoded pictures before the next training
        network.load_state_dict(result.state)
        cast("Any", network).to("cpu", memory_format=torch.contiguous_format)
        fits.append((network.eval(), result))
    return fits


def _first(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples that fit into MAX_WATCHED_PIXELS, at least one, in an order unrelated to their content."""
    left = MAX_WATCHED_PIXELS
    for sample in sorted(samples, key=lambda each: each.image):
        if left < MAX_WATCHED_PIXELS and left < math.prod(working_size(sample.size)):
            return
        left -= math.prod(working_size(sample.size))
        yield sample
