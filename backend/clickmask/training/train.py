"""One training, from the accepted labels to a version that is served or not. Needs torch."""

from __future__ import annotations

import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from clickmask.datasets import Dataset, Sample, class_map
from clickmask.errors import InvalidRequest, ModelDamaged, SegmenterNotReady
from clickmask.images import DEFAULT_LIMITS, ImageLimits, decode_image
from clickmask.metrics import LabelMap
from clickmask.reports import Measured, measure
from clickmask.sides import SIDES
from clickmask.training.augmentation import IGNORED, Labels
from clickmask.training.fit import Fit, Fitted, Plan, Progress
from clickmask.training.gate import Decision, decide
from clickmask.training.models import Draft, Models, ModelVersion, Provenance
from clickmask.training.networks import unet
from clickmask.training.serving import (
    LOGITS,
    MULTIPLE,
    PIXELS,
    Labeller,
    open_labeller,
    to_input,
    working_size,
)
from clickmask.types import Pixels

log = logging.getLogger(__name__)

NETWORK = "unet"
OPSET = 17
IN_MEMORY = 2**30  # bytes of decoded pictures; where there are more, they are read at each use
GOLDEN_SIDE = 256  # px of the picture by which a version is known to be what was trained

Beat = Callable[[], None]  # called at least every few seconds of work


@dataclass(frozen=True)
class Trained:
    version: ModelVersion
    decision: Decision


class TrainingPicture:
    """A sample's picture and classes, at the size at which networks work."""

    def __init__(self, dataset: Dataset, sample: Sample, limits: ImageLimits, keep: bool) -> None:
        self._dataset, self._sample, self._limits, self._keep = dataset, sample, limits, keep

    @property
    def pixels(self) -> Pixels:
        return self._pixels if self._keep else self._read()

    @property
    def labels(self) -> Labels:
        return self._labels if self._keep else self._draw()

    @cached_property
    def _pixels(self) -> Pixels:
        return self._read()

    @cached_property
    def _labels(self) -> Labels:
        return self._draw()

    def _read(self) -> Pixels:
        pixels = decode_image(self._dataset.pictures.read(self._sample.image), self._limits).pixels
        height, width = working_size(self._sample.size)
        if pixels.shape[:2] == (height, width):
            return pixels
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def _draw(self) -> Labels:
        classes = class_map(self._sample, self._dataset.categories, self._dataset.unlabelled)
        height, width = working_size(self._sample.size)
        if classes.shape == (height, width):
            return classes
        return np.asarray(cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def train(
    dataset: Dataset,
    models: Models,
    plan: Plan,
    checkpoint: Path,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    beat: Beat = lambda: None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Trained | None:
    """Train on the dataset's training side, keep the version, and serve it if the gate lets it.

    None if it was cancelled; the same call then goes on from `checkpoint`. The crops are made no
    larger than the pictures need. Raises InvalidRequest where there is too little to learn from.
    """
    sides = {side: _at_hand(dataset, dataset.split(side)) for side in SIDES}
    _require_enough(dataset, sides)
    plan = replace(plan, side=min(plan.side, _largest_side(dataset.samples)))
    fitted = _fit(dataset, sides, plan, checkpoint, report, cancelled, limits, beat)
    if fitted.reason == "cancelled":
        return None
    network = _network(dataset, fitted)
    exported = export(network)
    candidate = open_labeller(exported)
    measured = _measure(dataset, sides["validation"], candidate, limits, beat)
    served, shared = _measure_served(dataset, sides["validation"], models, limits, beat)
    decision = decide(
        measured.matrices, served.matrices if served else None, dataset.categories, sorted(shared)
    )
    log.info("%s", decision.reason)
    tested = _measure(dataset, sides["test"], candidate, limits, beat) if sides["test"] else None
    about = {
        "split": "test" if tested else "validation",
        **as_json(tested or measured),
        "validation": as_json(measured),
        "decision": decision.reason,
        "promoted": decision.promoted,
        "step": fitted.step,
        "stopped": fitted.reason,
    }
    split = {side: [sample.image for sample in samples] for side, samples in sides.items()}
    provenance = Provenance(NETWORK, dataset.categories, dataset.digest, split, about, plan.seed)
    version = models.save(_draft(provenance, network, exported, dataset, sides["validation"][0], limits))
    if decision.promoted:
        models.promote(version.id)
    models.prune()
    checkpoint.unlink(missing_ok=True)
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


def as_json(measured: Measured) -> dict[str, Any]:
    """The report in plain values; what is not a number is null."""
    return cast("dict[str, Any]", _plain(asdict(measured.report)))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in cast("Mapping[str, object]", value).items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _fit(
    dataset: Dataset,
    sides: Mapping[str, Sequence[Sample]],
    plan: Plan,
    checkpoint: Path,
    report: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    limits: ImageLimits,
    beat: Beat,
) -> Fitted:
    samples = [*sides["train"], *sides["validation"]]
    keep = 4 * sum(math.prod(working_size(sample.size)) for sample in samples) <= IN_MEMORY
    training, validation = (
        [TrainingPicture(dataset, sample, limits, keep) for sample in sides[side]]
        for side in ("train", "validation")
    )
    classes = len(dataset.categories) + 1
    cast("Any", torch).manual_seed(plan.seed)
    network = unet.build(classes).to("cuda" if torch.cuda.is_available() else "cpu")
    run = Fit(network, unet.STRIDE, training, validation, classes, plan, checkpoint, dataset.digest)

    def stops() -> bool:
        beat()
        return cancelled()

    started = time.perf_counter()
    fitted = run.run(report, stops)
    log.info("fitted in %.0f s: %s", time.perf_counter() - started, fitted.reason)
    return fitted


def _network(dataset: Dataset, fitted: Fitted) -> torch.nn.Module:
    network = unet.build(len(dataset.categories) + 1)
    network.load_state_dict(fitted.state)
    return network.cpu().eval()


def _measure(
    dataset: Dataset,
    samples: Sequence[Sample],
    labeller: Labeller,
    limits: ImageLimits,
    beat: Beat,
    numbers: NDArray[np.uint8] | None = None,
) -> Measured:
    """At the pictures' full size; `numbers` are the dataset's classes for those of another model."""

    def pairs() -> Iterator[tuple[LabelMap, LabelMap]]:
        for sample in samples:
            beat()
            pixels = decode_image(dataset.pictures.read(sample.image), limits).pixels
            found = labeller.label(pixels).classes
            truth = class_map(sample, dataset.categories, dataset.unlabelled)
            yield truth, found if numbers is None else numbers[found]

    return measure(pairs(), dataset.categories, ignore=IGNORED)


def _measure_served(
    dataset: Dataset, samples: Sequence[Sample], models: Models, limits: ImageLimits, beat: Beat
) -> tuple[Measured | None, set[str]]:
    """Of the model in service, and the categories that it knows too; what else it finds is background."""
    try:
        with models.opening() as served:
            if served is None:
                return None, set()
            labeller = open_labeller(served.network)
    except (ModelDamaged, SegmenterNotReady) as error:  # any model is better than one that cannot run
        log.error("%s", error)
        return None, set()
    theirs = served.provenance.categories
    places = {category: number for number, category in enumerate(dataset.categories, 1)}
    numbers = np.array([0, *(places.get(category, 0) for category in theirs)], np.uint8)
    measured = _measure(dataset, samples, labeller, limits, beat, numbers)
    return measured, set(theirs) & set(dataset.categories)


def _draft(
    provenance: Provenance,
    network: torch.nn.Module,
    exported: bytes,
    dataset: Dataset,
    shown: Sample,
    limits: ImageLimits,
) -> Draft:
    """Its golden picture is a corner of a validation image, answered by torch."""
    picture = decode_image(dataset.pictures.read(shown.image), limits).pixels[:GOLDEN_SIDE, :GOLDEN_SIDE]
    seen = to_input(picture)
    with torch.inference_mode():
        answer = network(torch.tensor(seen)).numpy()
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return Draft(provenance, weights, exported, {PIXELS: seen}, {LOGITS: answer})


def _at_hand(dataset: Dataset, samples: Sequence[Sample]) -> list[Sample]:
    here = [sample for sample in samples if dataset.pictures.holds(sample.image)]
    if len(here) < len(samples):
        log.warning("%d labelled images are not kept any more", len(samples) - len(here))
    return here


def _require_enough(dataset: Dataset, sides: Mapping[str, Sequence[Sample]]) -> None:
    if not dataset.categories:
        raise InvalidRequest("nothing is labelled in the project yet")
    if not sides["train"] or not sides["validation"]:
        counts = ", ".join(f"{len(samples)} {side}" for side, samples in sides.items())
        raise InvalidRequest(
            f"a training needs images to train and to validate on; of {len(dataset.samples)} labelled "
            f"images there are {counts}"
        )


def _largest_side(samples: Sequence[Sample]) -> int:
    """Of the pictures, rounded up to what a network takes."""
    largest = max(max(working_size(sample.size)) for sample in samples)
    return math.ceil(largest / MULTIPLE) * MULTIPLE
