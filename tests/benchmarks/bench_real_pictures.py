"""What 90 labelled real pictures teach, beside Otsu's threshold.

CLICKMASK_TEST_DATA names a COCO folder with files of train and val images; without it nothing is
measured, and RESULTS.md keeps what was.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.goals import Goal, Section
from beside_otsu import compare, foreground, train_on
from clickmask import annotators, segmenters
from clickmask.catalogue import AnnotatorCatalogue, Catalogue
from clickmask.embeddings import EmbeddingCache
from clickmask.metrics import confusion_matrix, iou
from clickmask.training.fit import Plan
from clickmask.training.serving import ProjectModels, folder_name
from clickmask.types import Image
from clickmask.weights import WeightsFolder
from coco_projects import CocoPicture, to_train_and_new
from labelled import PROJECT, TOOL

FOLDER = os.environ.get("CLICKMASK_TEST_DATA")
LABELLED = 90
SEEDS = (0, 1, 2)
REFINER = "builtin"


def main() -> Section | None:
    if FOLDER is None:
        return None
    labelled, new = to_train_and_new(Path(FOLDER))
    rows, founds = list[str](), list[float]()
    for seed in SEEDS:
        plan = Plan(steps=1200, patience=30, seconds=7200, seed=seed)
        with tempfile.TemporaryDirectory() as name:
            trained, minutes = train_on(labelled[:LABELLED], Path(name), plan, lambda _: None)
            found = compare(trained, new)
            drawn, refined = (_drawn(Path(name) / "models", new, refiner) for refiner in (None, REFINER))
        about = trained.version.provenance.report
        rows.append(
            f"| {seed} | {minutes:.1f} | {about['step']} | {about['miou']:.3f} | {found.model:.3f} "
            f"| {found.otsu:.3f} | {found.otsu_told:.3f} | {drawn:.3f} | {refined:.3f} |"
        )
        founds.append(found.model)
        print(rows[-1], file=sys.stderr, flush=True)
    text = [
        f"{Path(FOLDER).name}: {LABELLED} labelled pictures, of which the project's split trains on 70 %;",
        f"foreground IoU of one confusion matrix over {len(new)} new pictures. Otsu's smaller side is",
        "foreground; told: whichever side the truth says is right for each picture, which nobody can know.",
        f"Drawn: by what the model pre-annotates with; refined: by what {REFINER} made of that.",
        "",
        "| seed | minutes | step | mIoU, own test side | IoU, new | Otsu | Otsu, told | drawn | refined |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]
    return Section(
        "\n".join(text),
        [
            Goal(
                "90 real pictures labelled: IoU, the least of 3 seeds",
                min(founds),
                0.75,
                found.otsu_told,
                at_least=True,
            )
        ],
    )


def _drawn(models: Path, new: Sequence[CocoPicture], refiner: str | None) -> float:
    """Foreground IoU of the objects that the project's annotator finds."""
    embeddings = EmbeddingCache(2**28)
    catalogue = Catalogue(segmenters, WeightsFolder(models / "no weights"))
    kept = ProjectModels(models)
    found = AnnotatorCatalogue(annotators, catalogue, embeddings, kept, refiner=refiner)
    annotator = found.get(f"unet:{folder_name(TOOL, PROJECT)}")
    total = np.zeros((2, 2), np.int64)
    for picture in new:
        truth = foreground(picture)
        objects = annotator.annotate(Image(picture.pixels, picture.name))
        masks = [truth & False, *(prediction.mask for _, prediction in objects)]
        total += confusion_matrix(truth.view(np.uint8), np.any(masks, axis=0).view(np.uint8), 2)
    embeddings.close()
    return float(iou(total)[1])
