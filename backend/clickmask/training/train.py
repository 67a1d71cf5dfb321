"""One training, from the accepted labels to a version that is served or not. Needs torch."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from clickmask.training.cross_validation import Cancelled, CrossValidation, Heartbeat
from clickmask.training.fit import Progress, TrainingConfig
from clickmask.training.promotion import Decision, Measuring, Part, compare, report_scores
from clickmask.types import Pixels

log = logging.getLogger(__name__)
NETWORK = "unet"
OPSET = 17
GOLDEN_SIDE = 256  # px of the picture by which a version is known to be what was trained


@dataclass(frozen=True)
class Trained:
    version: ModelVersion
    decision: Decision


def train(
    dataset: Dataset,
    models: Models,
    plan: TrainingConfig,
    checkpoint: Path,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    beat: Heartbeat = lambda: None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Trained | None:
    """Train on the dataset's training side, keep the version, and serve it if the gate lets it.

    Where a split says too little, a part of the time goes to networks that are trained alike on parts
    of the images and measured on the rest. None if it was cancelled; the same call then goes on from
    `checkpoint`. Raises InvalidRequest where there is too little to learn from.
    """
    dataset = _at_hand(dataset)
    sides = {side: dataset.split(side) for side in SIDES}
    _require_enough(dataset, sides)
    parts = folds(dataset) if dataset.too_few else []
    fitting = CrossValidation(
        dataset, plan, checkpoint, limits, fits=1 + len(parts), report=report, cancelled=cancelled, beat=beat
    )
    measuring = Measuring(dataset, limits, beat)
    try:
        network, fitted = fitting.fit(sides["train"], sides["validation"])
        others = list(_cross_validated(fitting, parts))
    except Cancelled:
        return None
    exported = export(network)
    candidate = open_labeller(exported)
    measured = measuring.measure([(candidate, sides["validation"])])
    decision = compare(measuring, measured, sides["validation"], models)
    about = {
        **report_scores(measuring, candidate, sides["test"], others),
        "validation": report_to_json(measured.report),
        "decision": decision.reason,
        "promoted": decision.promoted,
        "step": fitted.step,
        "stopped": fitted.reason,
    }
    split = {side: [sample.image for sample in samples] for side, samples in sides.items()}
    provenance = Provenance(NETWORK, dataset.categories, dataset.digest, split, about, plan.seed)
    version = models.save(_draft(provenance, network, exported, measuring.pixels(sides["validation"][0])))
    if decision.promoted:
        models.promote(version.id)
    models.prune()
    fitting.forget()
    return Trained(version, decision)


def export(network: torch.nn.Module) -> bytes:
    """ONNX for pictures of any size whose sides are multiples of MULTIPLE."""
    written = io.BytesIO()
    axes = {2: "height", 3: "width"}
    arguments: dict[str, Any] = {
        "input_names": [PIXELS],
        "output_names": [LOGITS],
        "opset_version": OPSET,
        "dynamic_axes": {PIXELS: axes, LOGITS: axes},
        "dynamo": False,  # the newer exporter needs onnxscript, and minutes
    }
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # a deprecation
        blank = torch.zeros(1, 3, 4 * MULTIPLE, 4 * MULTIPLE)
        cast("Any", torch.onnx).export(network.cpu().eval(), (blank,), written, **arguments)
    return written.getvalue()


def _cross_validated(
    fitting: CrossValidation, parts: Sequence[tuple[list[Sample], list[Sample]]]
) -> Iterator[Part]:
    """Nothing stops these early: what is measured on must decide nothing."""
    for training, held_out in parts:
        network, _ = fitting.fit(training, [])
        yield open_labeller(export(network)), held_out


def _draft(provenance: Provenance, network: torch.nn.Module, exported: bytes, shown: Pixels) -> UnsavedModel:
    """Its golden picture is a corner of a picture, answered by torch."""
    seen = to_input(shown[:GOLDEN_SIDE, :GOLDEN_SIDE])
    with torch.inference_mode():
        answer = network(torch.tensor(seen)).numpy()
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return UnsavedModel(provenance, weights, exported, {PIXELS: seen}, {LOGITS: answer})


def _at_hand(dataset: Dataset) -> Dataset:
    """Without the images that are not kept; the digest is that of all."""
    here = tuple(sample for sample in dataset.samples if dataset.pictures.holds(sample.image))
    if len(here) < len(dataset.samples):
        log.warning("%d labelled images are not kept any more", len(dataset.samples) - len(here))
    return replace(dataset, samples=here)


def _require_enough(dataset: Dataset, sides: Mapping[str, Sequence[Sample]]) -> None:
    if not dataset.categories:
        raise InvalidRequest("nothing is labelled in the project yet")
    if not sides["train"] or not sides["validation"]:
        counts = ", ".join(f"{len(samples)} {side}" for side, samples in sides.items())
        raise InvalidRequest(
            f"a training needs images to train and to validate on; of {len(dataset.samples)} labelled "
            f"images there are {counts}"
        )
