"""Segment Anything in torch on CUDA: the same answers as on the CPU, and how long they take.

`python -m benchmarks.on_gpu > benchmarks/GPU.md` where there is one; `make bench` takes that file over.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image as PillowImage

from clickmask.images.decode import decode_image
from clickmask.masks.regions import mask_iou
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.torch_networks import TorchSam, import_segment_anything
from clickmask.types import Prompt, Size
from support.checkpoints import TINY, VIT_B, write_checkpoint
from support.scenes import scene_image

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LARGER = {
    "ViT-L": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "ViT-H": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
}
BATCHES = (1, 2, 4, 8, 16)


def milliseconds(work: Callable[[], Any], rounds: int = 10) -> float:
    """Median, after three that do not count."""
    times: list[float] = []
    for number in range(3 + rounds):
        torch.cuda.synchronize()
        started = perf_counter()
        work()
        torch.cuda.synchronize()
        times += [1000 * (perf_counter() - started)] * (number >= 3)
    return median(times)


def prompts(size: Size) -> list[Prompt]:
    height, width = size
    at = [(0.5 * width, 0.4 * height), (0.21 * width, 0.65 * height), (0.8 * width, 0.3 * height)]
    box = 0.3 * width, 0.22 * height, 0.71 * width, 0.8 * height
    return [
        *(Prompt((point,)) for point in at),
        Prompt(tuple(at[:2]), ((0.9 * width, 0.9 * height),)),
        Prompt(box=box),
        Prompt((at[0],), ((0.4 * width, 0.7 * height),), box),
    ]


def parity(name: str, checkpoint: Path, sizes: Sequence[Size]) -> Sam:
    on_cpu, on_gpu = (Sam("sam:vit_b", TorchSam(checkpoint, device)) for device in (CPU, GPU))
    ious: list[float] = []
    shares: list[float] = []
    off = 0.0
    for seed, size in enumerate(sizes):
        image = scene_image(size, seed + 2)
        expected, found = on_cpu.encode(image), on_gpu.encode(image)
        largest = float(np.abs(expected.features).max())
        off = max(off, float(np.abs(expected.features - found.features).max()) / largest)
        for prompt in prompts(size):
            pairs = zip(on_cpu.decode(expected, prompt), on_gpu.decode(found, prompt), strict=True)
            for one, other in pairs:
                ious.append(mask_iou(one.mask, other.mask))
                shares.append(float(one.mask.mean()))
    print(
        f"| {name} | {len(ious)} | {mean(ious):.5f} | {min(ious):.5f} | {off:.1e} "
        f"| {100 * min(shares):.0f} to {100 * max(shares):.0f} % |"
    )
    return on_gpu


def stages(ours: Sam, size: Size) -> None:
    file = io.BytesIO()
    PillowImage.fromarray(scene_image(size, 7).pixels).save(file, "JPEG", quality=90)
    raw, box = file.getvalue(), prompts(size)[4]
    image = decode_image(raw)
    embedding = ours.encode(image)
    columns = {
        "decode JPEG": lambda: decode_image(raw),
        "encode": lambda: ours.encode(image),
        "decode mask": lambda: ours.decode_from(embedding, box, None),
        "restore an embedding": lambda: ours.restore(embedding.arrays()),
        "next click": lambda: ours.decode(embedding, box)[0].mask,
        "first click": lambda: ours.decode(ours.encode(decode_image(raw)), box)[0].mask,
    }
    if size == (1024, 1024):
        print(f"\n| image | {' | '.join(columns)} |\n|---|" + "---:|" * len(columns))
    cells = [f"{milliseconds(work):.1f}" for work in columns.values()]
    print(f"| {size[1]}x{size[0]} | {' | '.join(cells)} |")


def encoders(ours: Sam) -> None:
    print("\n| encoder | batch | f32, ms an image | bf16, ms an image | bf16, images/s |")
    print("|---|---:|---:|---:|---:|")
    networks: Any = ours._networks
    for batch in BATCHES:
        row("ViT-B", networks.image_encoder, batch)
    for name, architecture in LARGER.items():
        with GPU:
            encoder = import_segment_anything().modeling.ImageEncoderViT(
                window_size=14, out_chans=256, use_rel_pos=True, **architecture
            )
        row(name, encoder.eval(), 1)


def row(name: str, encoder: Any, batch: int) -> None:
    given = torch.randn(batch, 3, 1024, 1024, device=GPU)

    def run(bf16: bool) -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            encoder(given)

    exact, rough = (milliseconds(partial(run, bf16), 5) / batch for bf16 in (False, True))
    print(f"| {name} | {batch} | {exact:.1f} | {rough:.1f} | {1000 / rough:.0f} |")


def main() -> None:
    cv2.setNumThreads(1)
    print(
        f"{torch.cuda.get_device_name()}; torch {torch.__version__}, Python {sys.version.split()[0]}; "
        "random weights in the official format. Milliseconds, medians; no HTTP.\n\n"
        "| CUDA beside CPU, f32 | masks | mean IoU | least | features: largest error | coverage |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        parity("tiny", write_checkpoint(Path(folder) / "tiny.pth", TINY), [(240, 320), (701, 467), (97, 131)])
        vit_b = write_checkpoint(Path(folder) / "vit_b.pth", VIT_B)
        ours = parity("ViT-B", vit_b, [(768, 1024), (701, 467), (1500, 2000)])
    if "--parity" in sys.argv:
        return
    for size in ((1024, 1024), (3000, 4000)):
        stages(ours, size)
    encoders(ours)
    most = torch.cuda.max_memory_allocated() / 2**30
    print(f"\nMost GPU memory, at a batch of {BATCHES[-1]}: {most:.1f} GiB.")


if __name__ == "__main__":
    main()
