"""What accepted labels of real pictures are worth, beside a threshold that needs none.

CLICKMASK_TEST_DATA names a COCO folder: the pictures of its annotation file with `train` in its name
are labelled and trained on, those of the one with `val` are new to the model.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from clickmask.datasets import snapshot
from clickmask.kept_images import KeptImages
from clickmask.metrics import Confusion, confusion_matrix, iou
from clickmask.store import Store
from clickmask.training.fit import Plan, Progress
from clickmask.training.serving import Labeller, ProjectModels, open_labeller
from clickmask.training.train import train
from clickmask.types import Pixels
from coco_projects import CocoPicture, accept_pictures, read_pictures
from labelled import PROJECT, TOOL

FOLDER = os.environ.get("CLICKMASK_TEST_DATA")
PLAN = Plan(steps=1200, patience=30, seconds=7200)  # by steps: a busy machine takes longer, no more
MOST = 90  # images to train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="CLICKMASK_TEST_DATA names no COCO folder"),
]


def files(folder: Path) -> tuple[str, str]:
    """The annotation files to train on and to measure on."""
    return tuple(
        next(each.name for each in sorted(folder.glob("*.json")) if kind in each.name)
        for kind in ("train", "val")
    )  # type: ignore[return-value]  # two of them


def foreground(picture: CocoPicture) -> np.ndarray:
    return np.any([mask for _, mask in picture.masks()] or np.zeros((1, *picture.size)), axis=0).astype(
        np.uint8
    )


def otsu(pixels: Pixels, truth: np.ndarray) -> tuple[Confusion, Confusion]:
    """With the smaller side of the threshold as foreground, as one would do without knowing more; and
    with the side that the truth says is right for this picture, which nobody can know."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    bright = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
    smaller, larger = sorted((bright, 1 - bright), key=np.count_nonzero)
    both = [confusion_matrix(truth, found, 2) for found in (smaller, larger)]
    return both[0], max(both, key=lambda each: iou(each)[1])


def of_the_model(labeller: Labeller, pixels: Pixels, truth: np.ndarray) -> Confusion:
    return confusion_matrix(truth, (labeller.label(pixels).classes > 0).astype(np.uint8), 2)


def test_ninety_labelled_pictures_teach_more_than_a_threshold_knows(tmp_path: Path, store: Store) -> None:
    folder = Path(str(FOLDER))
    to_train, to_measure = (read_pictures(folder, name) for name in files(folder))
    kept = KeptImages(tmp_path / "images", 2**32, lambda digest: True)
    accept_pictures(store, kept, to_train[:MOST])
    dataset = snapshot(store, TOOL, PROJECT, kept)
    started = time.monotonic()

    def report(progress: Progress) -> None:
        print(
            f"step {progress.step}: validation mIoU {progress.validation_miou:.3f}, {progress.seconds:.0f} s",
            flush=True,
        )

    trained = train(
        dataset, ProjectModels(tmp_path / "models").of(TOOL, PROJECT), PLAN, tmp_path / "a.pt", report=report
    )
    minutes = (time.monotonic() - started) / 60
    assert trained and trained.decision.promoted
    labeller = open_labeller(trained.version.network)
    ours, smaller, told = (np.zeros((2, 2), np.int64) for _ in range(3))
    for picture in to_measure:
        truth, pixels = foreground(picture), picture.pixels
        ours += of_the_model(labeller, pixels, truth)
        for total, found in zip((smaller, told), otsu(pixels, truth), strict=True):
            total += found
    model, threshold, best = (float(iou(each)[1]) for each in (ours, smaller, told))
    about = trained.version.provenance.report
    print(
        f"{len(to_train[:MOST])} images, {minutes:.1f} minutes, {about['step']} steps ({about['stopped']}): "
        f"foreground IoU {model:.3f} on {len(to_measure)} new images, Otsu's {threshold:.3f} "
        f"(told which side is right in each picture: {best:.3f}); "
        f"mIoU of the {about['split']} side {about['miou']:.3f}"
    )
    assert model >= 0.75
    assert model > best
