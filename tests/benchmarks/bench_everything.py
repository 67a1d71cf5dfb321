""" "Segment everything" with MobileSAM's published weights: what it finds of what was outlined by hand.

CLICKMASK_TEST_REAL_WEIGHTS names the folder of the weights; without them nothing is measured, and RESULTS.md
keeps what was.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks.goals import Section
from clickmask.annotators.everything import GRID, SegmentEverything
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.masks.regions import mask_iou
from clickmask.types import GridPromptable, Image
from support.photographs import outlined_objects
from support.real_weights import load_mobile_sam

GRIDS = (GRID.points_per_side, 16)


def main() -> Section | None:
    if not os.environ.get("CLICKMASK_TEST_REAL_WEIGHTS"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        segmenter = load_mobile_sam(Path(folder))
        assert isinstance(segmenter, GridPromptable)
        rows = [row(segmenter, side) for side in GRIDS]
    return Section(
        "\n".join(
            [
                "23 outlines in 7 photographs of scikit-image (tests/support/photographs), .1 to .4 Mpx;",
                f"seconds of the processor, the encoding included, {segmenter.runs_on}.",
                "",
                "| clicks | outlines found at IoU .5 | at .75 | mIoU of the best mask | masks a picture "
                "| CPU s a picture | masks a CPU second |",
                "|---:|---:|---:|---:|---:|---:|---:|",
                *rows,
            ]
        )
    )


def row(segmenter: GridPromptable, side: int) -> str:
    best, masks, seconds, pictures = list[float](), 0, 0.0, 0
    for name, group in groupby(outlined_objects(), key=lambda each: each.photograph):
        things = list(group)
        with closing(EmbeddingCache(2**30, patience=600)) as embeddings:
            annotator = SegmentEverything(
                "everything", segmenter, embeddings, replace(GRID, points_per_side=side)
            )
            started = time.process_time()
            found = [each.mask for _, each in annotator.annotate(Image(things[0].pixels, name))]
            seconds += time.process_time() - started
        best += [max((mask_iou(mask, each.mask) for mask in found), default=0.0) for each in things]
        masks += len(found)
        pictures += 1
        print(f"{side}: {name}, {len(found)} masks, {seconds:.0f} s so far", file=sys.stderr, flush=True)
    found_at = [sum(iou >= least for iou in best) for least in (0.5, 0.75)]
    cells = [f"{side} x {side}", *(f"{count} of {len(best)}" for count in found_at), f"{np.mean(best):.2f}"]
    cells += [f"{masks / pictures:.0f}", f"{seconds / pictures:.1f}", f"{masks / seconds:.2f}"]
    return f"| {' | '.join(cells)} |"
