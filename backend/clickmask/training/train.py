"""One training, from a project's accepted labels to a version that is served or not."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from clickmask.datasets.snapshot import Dataset, Sample, folds
from clickmask.errors import InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits
from clickmask.labels.split import SIDES
from clickmask.metrics.report import report_to_json
from clickmask.models.labeller import LOGITS, MULTIPLE, PIXELS, open_labeller, to_input
from clickmask.models.versions import Models, ModelVersion, Provenance, UnsavedModel
from clickmask.training import networks
from clickmask.training.cross_validation import Cancelled, cross_validate
from clickmask.training.fit import TrainingConfig
from clickmask.training.loop import Heartbeat, Progress
from clickmask.training.promotion import Decision, Measuring, Part, compare, report_scores

log = logging.getLogger(__name__)

OPSET = 17
GOLDEN_SIDE = 256  # px of the picture whose answers verify that a version is what was trained


@dataclass(frozen=True)
class Trained:
    version: ModelVersion
    decision: Decision


def train(
    dataset: Dataset,
    models: Models,
    config: TrainingConfig,
    checkpoint: Path,
    *,
    network: str = "unet",
    report: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    heartbeat: Heartbeat = lambda: None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Trained | None:
    """Train on the dataset's training side, save the version, and serve it if the gate agrees.

    `network` is a module's name in `training/networks`. If the split is too small to say much, part of the
    time goes to networks trained alike on parts of the images and measured on the rest. Returns None if
    cancelled; the same call resumes from `checkpoint`. Raises InvalidRequest for too little data or an
    unknown network.
    """
    networks.load(network)
    kept = tuple(sample for sample in dataset.samples if dataset.pictures.holds(sample.image))
    if len(kept) < len(dataset.samples):
        log.warning("%d labelled images are not kept any more", len(dataset.samples) - len(kept))
    dataset = replace(dataset, samples=kept)  # its digest still covers all images
    sides = {side: dataset.split(side) for side in SIDES}
    if not dataset.categories:
        raise InvalidRequest("nothing is labelled in the project yet")
    if not sides["train"] or not sides["validation"]:
        counts = ", ".join(f"{len(samples)} {side}" for side, samples in sides.items())
        raise InvalidRequest(
            f"a training needs images to train and to validate on; of {len(kept)} labelled "
            f"images there are {counts}"
        )
    parts = folds(dataset) if dataset.too_few else []
    # Nothing stops the others early: images used for measuring must not decide anything.
    trainings = [
        (sides["train"], sides["validation"]),
        *((training, list[Sample]()) for training, _ in parts),
    ]
    names = (f"{checkpoint.name}{number or ''}" for number in range(1 + len(parts)))
    checkpoints = [checkpoint.with_name(name) for name in names]
    fits = cross_validate(
        dataset,
        trainings,
        config,
        checkpoints,
        limits,
        network=network,
        report=report,
        cancelled=cancelled,
        heartbeat=heartbeat,
    )
    try:
        trained, result = next(fits)
        others: list[Part] = [
            (open_labeller(export(other)), held_out)
            for (other, _), (_, held_out) in zip(fits, parts, strict=True)
        ]
    except Cancelled:
        return None
    exported = export(trained)
    candidate = open_labeller(exported)
    measuring = Measuring(dataset, limits, heartbeat)
    measured = measuring.measure([(candidate, sides["validation"])])
    decision = compare(measuring, measured, sides["validation"], models)
    about = {
        **report_scores(measuring, candidate, sides["test"], others),
        "validation": report_to_json(measured.report),
        "decision": decision.reason,
        "promoted": decision.promoted,
        "step": result.step,
        "stopped": result.reason,
    }
    split = {side: [sample.image for sample in samples] for side, samples in sides.items()}
    provenance = Provenance(network, dataset.categories, dataset.digest, split, about, config.seed)
    seen = to_input(measuring.pixels(sides["validation"][0])[:GOLDEN_SIDE, :GOLDEN_SIDE])
    with torch.inference_mode():
        answer = trained(torch.tensor(seen)).numpy()
    weights = {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    version = models.save(UnsavedModel(provenance, weights, exported, {PIXELS: seen}, {LOGITS: answer}))
    if decision.promoted:
        models.promote(version.id)
    models.prune()
    for path in checkpoints:
        path.unlink(missing_ok=True)
    return Trained(version, decision)


def export(network: torch.nn.Module) -> bytes:
    """ONNX for pictures of any size with sides in multiples of MULTIPLE."""
    written = io.BytesIO()
    axes = {2: "height", 3: "width"}
    arguments: dict[str, Any] = {
        "input_names": [PIXELS],
        "output_names": [LOGITS],
        "opset_version": OPSET,
        "dynamic_axes": {PIXELS: axes, LOGITS: axes},
        "dynamo": False,  # the newer exporter needs onnxscript, and takes minutes
    }
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # a deprecation
        blank = torch.zeros(1, 3, 4 * MULTIPLE, 4 * MULTIPLE)
        cast("Any", torch.onnx).export(network.cpu().eval(), (blank,), written, **arguments)
    return written.getvalue()
