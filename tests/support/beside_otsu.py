"""What accepted labels of real pictures are worth, beside a threshold that needs none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from clickmask.datasets.snapshot import snapshot
from clickmask.images.archive import ImageArchive
from clickmask.metrics.confusion import Confusion, confusion_matrix, iou
from clickmask.models.labeller import Labeller, open_labeller
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.training.fit import Progress, TrainingConfig
from clickmask.training.train import Trained, train
from clickmask.types import Mask, Pixels
from support.coco_projects import CocoPicture, accept_pictures
from support.labelled import PROJECT, TOOL


@dataclass(frozen=True)
class BesideOtsu:
    """Foreground IoU of one confusion matrix over all new pictures."""

    model: float
    otsu: float  # the smaller side of the threshold is foreground, as one would do without knowing more
    otsu_told: float  # the side that the truth says is right for each picture, which nobody can know


def train_on(
    pictures: Sequence[CocoPicture], folder: Path, config: TrainingConfig, report: Callable[[Progress], None]
) -> tuple[Trained, float]:
    """A model of a new project, and the minutes that it took."""
    store = Store(folder / "store.sqlite")
    kept = ImageArchive(folder / "images", 2**32, lambda digest: True)
    accept_pictures(store, kept, list(pictures))
    dataset = snapshot(store, TOOL, PROJECT, kept)
    started = time.monotonic()
    models = ProjectModels(folder / "models").of(TOOL, PROJECT)
    trained = train(dataset, models, config, folder / "a.pt", report=report)
    store.close()
    assert trained
    return trained, (time.monotonic() - started) / 60


def compare(trained: Trained, new: Sequence[CocoPicture]) -> BesideOtsu:
    labeller = open_labeller(trained.version.network)
    model, smaller, told = (np.zeros((2, 2), np.int64) for _ in range(3))
    for picture in new:
        truth, pixels = _foreground(picture), picture.pixels
        model += _of(labeller, pixels, truth)
        for total, found in zip((smaller, told), _otsu(pixels, truth), strict=True):
            total += found
    return BesideOtsu(*(float(iou(each)[1]) for each in (model, smaller, told)))


def _foreground(picture: CocoPicture) -> Mask:
    return np.any([mask for _, mask in picture.masks()] or np.zeros((1, *picture.size)), axis=0)


def _otsu(pixels: Pixels, truth: Mask) -> tuple[Confusion, Confusion]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    bright = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
    smaller, larger = sorted((bright, 1 - bright), key=np.count_nonzero)
    both = [confusion_matrix(truth.view(np.uint8), found, 2) for found in (smaller, larger)]
    return both[0], max(both, key=lambda each: iou(each)[1])


def _of(labeller: Labeller, pixels: Pixels, truth: Mask) -> Confusion:
    found = (labeller.predict(pixels).classes > 0).astype(np.uint8)
    return confusion_matrix(truth.view(np.uint8), found, 2)
