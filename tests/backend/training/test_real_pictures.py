"""Training on real pictures.

CLICKMASK_TEST_DATA names a COCO folder: the pictures of its annotation file with `train` in its name
are labelled and trained on, those of the one with `val` are new to the model.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from clickmask.training.fit import Progress, TrainingConfig
from support.beside_otsu import compare, train_on
from support.coco_projects import to_train_and_new

FOLDER = os.environ.get("CLICKMASK_TEST_DATA")
CONFIG = TrainingConfig(steps=1200, patience=30, seconds=7200)  # by steps, however busy
MOST = 90  # images to train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="CLICKMASK_TEST_DATA names no COCO folder"),
]


def test_ninety_labelled_pictures_teach_more_than_a_threshold_knows(tmp_path: Path) -> None:
    to_train, new = to_train_and_new(Path(str(FOLDER)))

    def report(progress: Progress) -> None:
        found, seconds = progress.validation_miou, progress.seconds
        print(f"step {progress.step}: validation mIoU {found:.3f}, {seconds:.0f} s", flush=True)

    trained, minutes = train_on(to_train[:MOST], tmp_path, CONFIG, report)
    assert trained.decision.promoted
    found = compare(trained, new)
    about = trained.version.provenance.report
    print(f"{minutes:.1f} minutes, {about['step']} steps ({about['stopped']}): {found}")
    assert found.model >= 0.75
    assert found.model > found.otsu
    assert found.model > found.otsu_told
