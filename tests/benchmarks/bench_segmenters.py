"""The segmenters' times and quality, as `clickmask segmenters` and the pages say them.

Everything that can run here, or those that CLICKMASK_BENCH_SEGMENTERS names (comma separated); of the others,
what was measured before stays. SAMs without published weights have random ones, which say nothing of quality.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.goals import Section
from clickmask import plugins, segmenters
from clickmask.datasets.coco_reader import sample_objects
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import load
from clickmask.reports.clicks import central_point, evaluate, intervals, summarise
from clickmask.types import Image, Prompt
from clickmask_adapters.commands.segmenters import MEASURED
from support.checkpoints import MOBILE_SAM, VIT_B, random_sam, random_sam_hq, save, weights_of
from support.coco_folders import write_dataset
from support.hosts import host_of
from support.photographs import outlined_objects
from support.real_weights import load_mobile_sam, require_real_weights

CLICKS = 5
CLASSIC = ("grabcut", "region_growing", "threshold", "contours")
RANDOM = {
    "sam:vit_b": lambda: random_sam(VIT_B),
    "sam_hq:vit_tiny": lambda: random_sam_hq(MOBILE_SAM),
    "sam_hq:vit_b": lambda: random_sam_hq(VIT_B),
}
FOREGROUND = ("selfie", "salient")
ALL = ("builtin", *CLASSIC, *FOREGROUND, "mobile_sam:vit_t", *RANDOM)


def main() -> Section:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    kept = json.loads(MEASURED.read_text())["segmenters"]
    for name in os.environ.get("CLICKMASK_BENCH_SEGMENTERS", ",".join(ALL)).split(","):
        with tempfile.TemporaryDirectory() as folder:
            kept[name] = measure(opened(name, Path(folder)), Path(folder), name not in RANDOM)
        print(f"{name}: {kept[name]}", file=sys.stderr, flush=True)
        text = json.dumps({"segmenters": dict(sorted(kept.items()))}, indent=1)
        Path(str(MEASURED)).write_text(text + "\n")
    head = "| segmenter | image, CPU s | click, CPU ms | on | objects | mIoU |\n|---|---:|---:|---|---:|---|"
    return Section("\n".join([head, *rows(kept)]))


def rows(kept: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, each in sorted(kept.items()):
        cells = [name, f"{each['encode_s']:.3f}", f"{each['click_ms']:.0f}", each["runs_on"]]
        cells += [str(each.get("objects", "")), ", ".join(f"{miou:.3f}" for miou in each.get("miou", ()))]
        found.append(f"| {' | '.join(cells)} |")
    return found


def opened(name: str, folder: Path) -> Any:
    """The segmenter on one thread, exported into `folder` if it is a SAM, as it is served."""
    family, _, variant = name.partition(":")
    runtimes = Runtimes(exact=True, threads=1, folder=folder)
    if name == "mobile_sam:vit_t":
        return load_mobile_sam(folder, runtimes=runtimes)
    if name in FOREGROUND:
        official = WeightsFolder(folder, str(require_real_weights()), plugins.checkpoints(segmenters))
        official.fetch(name)
        return load(segmenters, family).load(variant, host_of(official, runtimes))
    if name not in RANDOM:
        return load(segmenters, family).load(variant, host_of(runtimes=runtimes))
    weights = weights_of(save(RANDOM[name](), folder / f"{family}.pth"), name)
    return load(segmenters, family).load(variant, host_of(weights, runtimes))


def measure(segmenter: Any, folder: Path, genuine: bool) -> dict[str, Any]:
    """Medians over the photographs and over the first clicks on what is outlined in them, masks included."""
    encodes, clicks, dataset = list[float](), list[float](), []
    for name, group in groupby(outlined_objects(), key=lambda each: each.photograph):
        things = list(group)
        image = Image(things[0].pixels, name)
        if not encodes:
            segmenter.decode(segmenter.encode(image), Prompt(((9.0, 9.0),)))  # warms up
        started = time.process_time()
        embedding = segmenter.encode(image)
        encodes.append(time.process_time() - started)
        for thing in things:
            click = central_point(thing.mask)
            assert click is not None
            started = time.process_time()
            np.count_nonzero(segmenter.decode(embedding, Prompt((click,)))[0].mask)
            clicks.append(time.process_time() - started)
        dataset.append((things[0].pixels, [thing.mask for thing in things]))
    found: dict[str, Any] = {
        "runs_on": segmenter.runs_on,
        "encode_s": round(statistics.median(encodes), 4),
        "click_ms": round(1000 * statistics.median(clicks), 1),
    }
    if genuine:
        objects = sample_objects(write_dataset(folder / "outlined", dataset), 1000, smallest=1).objects
        trials = list(evaluate(segmenter, objects, CLICKS))
        summary, spread = summarise(trials), intervals(trials)
        assert spread is not None
        found |= {
            "objects": summary.objects,
            "miou": [round(each, 4) for each in summary.miou],
            "box_miou": round(summary.box_miou, 4),
            "intervals": spread.round(4).tolist(),
        }
    return found
