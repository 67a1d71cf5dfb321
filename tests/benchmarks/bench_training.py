"""Training on few and on many labelled images, clicks meanwhile, and what a trained model costs.

CLICKMASK_BENCH_TRAIN_SECONDS is the time of each training; by default so little that the section
ends in some four minutes. CLICKMASK_TEST_DATA names a COCO folder with files of train and val images;
without it the pictures are drawn.
"""

from __future__ import annotations

import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
import torch

from clickmask.datasets.snapshot import snapshot
from clickmask.images.archive import ImageArchive
from clickmask.masks.rle import mask_to_rle
from clickmask.metrics.confusion import confusion_matrix, miou
from clickmask.models.labeller import Labeller, open_labeller
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.training.fit import TrainingConfig
from clickmask.training.networks import unet
from clickmask.training.train import export, train
from support.coco_projects import CocoPicture, accept_pictures, to_train_and_new
from support.drawn_projects import drawn_picture
from support.labelled import PROJECT, TOOL, png
from support.served import Server, serving

SECONDS = float(os.environ.get("CLICKMASK_BENCH_TRAIN_SECONDS", "24"))
FOLDER = os.environ.get("CLICKMASK_TEST_DATA")
COUNTS = (4, 8, 16, 32, 64)
CLICKS = 15
SIZES = {"256x256": (256, 256), "1 Mpx": (1024, 1024), "12 Mpx": (3000, 4000)}


def drawn(seed: int) -> CocoPicture:
    pixels, masks = drawn_picture(seed, (96, 128))
    objects = tuple((name, mask_to_rle(mask)) for name, mask in masks.items())
    return CocoPicture(f"{seed}.png", png(pixels), (96, 128), objects)


def pictures() -> tuple[str, list[CocoPicture], list[CocoPicture]]:
    """What they are, some to label and others to measure on."""
    if FOLDER is None:
        return (
            "drawn pictures",
            [drawn(seed) for seed in range(64)],
            [drawn(seed) for seed in range(100, 120)],
        )
    return Path(FOLDER).name, *to_train_and_new(Path(FOLDER))


def measured(labeller: Labeller, new: Sequence[CocoPicture], categories: Sequence[str]) -> float:
    """mIoU over all pixels of pictures that were not labelled."""
    whole = np.zeros((len(categories) + 1,) * 2, np.int64)
    for picture in new:
        truth = np.zeros(picture.size, np.uint8)
        for category, mask in picture.masks():
            truth[mask] = categories.index(category) + 1
        whole += confusion_matrix(truth, labeller.predict(picture.pixels).classes, len(categories) + 1)
    return float(miou(whole))


def trained_on(labelled: Sequence[CocoPicture], new: Sequence[CocoPicture], folder: Path) -> str:
    store = Store(folder / "store.sqlite")
    kept = ImageArchive(folder / "images", 2**32, lambda digest: True)
    accept_pictures(store, kept, list(labelled))
    dataset = snapshot(store, TOOL, PROJECT, kept)
    models = ProjectModels(folder / "models").of(TOOL, PROJECT)
    started = time.perf_counter()
    found = train(dataset, models, TrainingConfig(seconds=SECONDS), folder / "training.pt")
    minutes = (time.perf_counter() - started) / 60
    store.close()
    assert found
    about = found.version.provenance.report
    truth = measured(open_labeller(found.version.network), new, dataset.categories)
    said = "{miou:.3f} ({interval[low]:.3f} to {interval[high]:.3f}), {split}".format(**about)
    sides = "/".join(str(len(dataset.split(side))) for side in ("train", "validation", "test"))
    return f"| {len(labelled)} | {sides} | {minutes:.1f} | {about['step']} | {truth:.3f} | {said} |"


def clicks(server: Server, image: bytes) -> list[float]:
    """Milliseconds, one click after the other, on a picture that is known."""
    body = {
        "image": {"data": base64.b64encode(image).decode()},
        "prompt": {"foreground": [[200, 200]]},
        "want": ["polygons"],
    }
    waits: list[float] = []
    for _ in range(CLICKS):
        started = time.perf_counter()
        answer = requests.post(f"{server.url}/v1/proposals", json=body, timeout=600)
        assert answer.ok, answer.text
        waits.append(1000 * (time.perf_counter() - started))
    return waits


def health(server: Server) -> list[float]:
    waits: list[float] = []
    for _ in range(CLICKS):
        started = time.perf_counter()
        assert requests.get(f"{server.url}/health", timeout=600).ok
        waits.append(1000 * (time.perf_counter() - started))
    return waits


def meanwhile(labelled: Sequence[CocoPicture], home: Path) -> list[str]:
    """Rows of a click and of a health check, without and with a training under way, in turn."""
    store = Store(home / "store.sqlite")
    accept_pictures(store, ImageArchive(home / "images", 2**32, lambda digest: True), list(labelled))
    store.close()
    image = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8))[1]
    waits: dict[tuple[str, bool], list[float]] = {}
    with serving(home, CLICKMASK_TRAIN_AFTER="0", CLICKMASK_TRAIN_SECONDS="600") as server:
        clicks(server, image.tobytes())
        for training in (False, True, False, True):
            job = begun(server) if training else None
            for name, found in (("click", clicks(server, image.tobytes())), ("/health", health(server))):
                waits.setdefault((name, training), []).extend(found)
            if job:
                requests.delete(f"{server.url}/v1/jobs/{job}", timeout=60)
                ended(server, job)
    rows: list[str] = []
    for name in ("click", "/health"):
        without, during = (statistics.median(waits[name, training]) for training in (False, True))
        rows.append(f"| {name} | {without:.0f} | {during:.0f} | {during / without:.2f} |")
    return rows


def begun(server: Server) -> str:
    """A training that has given some signs of life, which come with its steps."""
    job = requests.post(f"{server.url}/v1/projects/{TOOL}/{PROJECT}/train", timeout=60).json()["job"]
    beats: set[float] = set()
    while len(beats) < 5:
        found = job_of(server, job)
        assert found["state"] in ("queued", "running"), found["message"]
        beats |= {found["beat_at"]} if found["state"] == "running" else set()
        time.sleep(0.2)
    return job


def job_of(server: Server, job: str) -> dict[str, Any]:
    return requests.get(f"{server.url}/v1/jobs/{job}", timeout=60).json()


def ended(server: Server, job: str) -> None:
    while job_of(server, job)["state"] == "running":
        time.sleep(0.2)


PEAK = """
import resource, sys, time
import numpy as np
import psutil
from clickmask.models.labeller import open_labeller
before = psutil.Process().memory_info().rss / 2**10
labeller = open_labeller(open(sys.argv[1], "rb").read())
pixels = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), int(sys.argv[3]), 3)).astype(np.uint8)
waits = []
for _ in range(3):
    started = time.perf_counter()
    labeller.predict(pixels)
    waits.append(time.perf_counter() - started)
print(1000 * min(waits), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def inference(folder: Path) -> list[str]:
    """Of a network with random weights, which is as fast as any; each size in a process of its own."""
    network = folder / "network.onnx"
    network.write_bytes(export(unet.build(3, None).eval()))
    rows: list[str] = []
    for name, (height, width) in SIZES.items():
        command = [sys.executable, "-c", PEAK, str(network), str(height), str(width)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append(f"| {name} | {float(said[0]):.0f} | {float(said[1]):.0f} |")
    return rows


def main() -> str:
    kind, labelled, new = pictures()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[str] = []
        for count in COUNTS:
            (folder / str(count)).mkdir()
            rows.append(trained_on(labelled[:count], new, folder / str(count)))
            print(rows[-1], file=sys.stderr, flush=True)
        (folder / "home").mkdir()
        waits = meanwhile(labelled[:32], folder / "home")
        costs = inference(folder)
    return "\n".join(
        [
            f"U-Nets trained on labelled images of {kind}, {SECONDS:.0f} s at most; their mIoU on",
            f"{len(new)} new images, and what the report says by itself. Under 16 images that is of up to",
            "five more networks, with which the first one shares the time.",
            "",
            "| images | train/validation/test | minutes | steps | mIoU, new images | mIoU, report |",
            "|---:|---|---:|---:|---:|---|",
            *rows,
            "",
            "| while a training is under way | without, ms | with, ms | ratio |",
            "|---|---:|---:|---:|",
            *waits,
            "",
            "| one picture by onnxruntime | ms | memory, MiB |",
            "|---|---:|---:|",
            *costs,
        ]
    )


if __name__ == "__main__":
    print(main())
