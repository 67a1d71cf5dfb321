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

from clickmask.datasets.snapshot import Dataset, folds
from clickmask.errors import InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits
from clickmask.labels.split import SIDES
from clickmask.metrics.report import report_to_json
from clickmask.models.labeller import LOGITS, MULTIPLE, PIXELS, open_labeller, to_input
from clickmask.models.versions import Models, ModelVersion, Provenance, UnsavedModel
from clickmask.training import networks
from clickmask.training.cross_validation import Cancelled, CrossValidation
from clickmask.training.fit import TrainingConfig
from clickmask.training.loop import Heartbeat, Progress
from clickmask.training.promotion import Decision, Measuring, Part, compare, report_scores
from clickmask.types import Pixels

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
    cross_validation = CrossValidation(
        dataset,
        config,
        checkpoint,
        limits,
        network=network,
        fits=1 + len(parts),
        report=report,
        cancelled=cancelled,
        heartbeat=heartbeat,
    )
    others: list[Part] = []
    try:
        trained, result = cross_validation.fit(sides["train"], sides["validation"])
        for training, held_out in parts:
            # Nothing stops these early: images used for measuring must not decide anything.
            other, _ = cross_validation.fit(training, [])
            others.append((open_labeller(export(other)), held_out))
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
    golden = measuring.pixels(sides["validation"][0])
    version = models.save(_unsaved_model(provenance, trained, exported, golden))
    if decision.promoted:
        models.promote(version.id)
    models.prune()
    cross_validation.remove_checkpoints()
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


def _unsaved_model(
    provenance: Provenance, network: torch.nn.Module, exported: bytes, pixels: Pixels
) -> UnsavedModel:
    """The model with torch's golden answer for the top left corner of `pixels`."""
    seen = to_input(pixels[:GOLDEN_SIDE, :GOLDEN_SIDE])
    with torch.inference_mode():
        answer = network(torch.tensor(seen)).numpy()
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return UnsavedModel(provenance, weights, exported, {PIXELS: seen}, {LOGITS: answer})
