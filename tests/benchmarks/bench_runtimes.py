"""Segment Anything (ViT-B) in each runtime, and where the time of a click goes, without a server."""

from __future__ import annotations

import functools
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import torch
from PIL import Image as PillowImage
from skimage import data

from benchmarks.goals import Goal, Section
from clickmask.images.decode import decode_image
from clickmask.inference.sessions import (
    Runtimes,
    import_openvino,
    installed_runtimes,
    open_session,
    usable_cores,
)
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.polygons import mask_to_polygons
from clickmask.masks.regions import mask_iou
from clickmask.segmenters import sam
from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.frame import logits_to_mask, resized_size
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.torch_networks import TorchSam
from clickmask.types import Image, Prompt, Size
from clickmask_adapters.tools.cvat.mask_points import mask_to_dense_reply
from clickmask_adapters.tools.label_studio.shapes import mask_to_brush_rle
from support.checkpoints import MOBILE_SAM, VIT_B, random_sam, weights_of, write_checkpoint
from support.hosts import host_of
from support.label_studio_sdk_oracle import brush_module

Work = Callable[[], Any]

brush = brush_module()
ROUNDS = 3
ENCODER_GFLOP = 972.0  # of ViT-B at 1024 x 1024, two for each multiply-add
GEMM = (4096, 768, 3072)
NEXT_IDEAS = [
    "Nine tenths are matrix products: without AVX-512 there is little to gain beside them, and torch's",
    "own are nearer to them than where there is. Next ideas: take the windows after the product with qkv,",
    "by one Gather each way, so that padding is neither multiplied nor transposed (tried on 2026-11-23:",
    "equal to the bit in torch, 2.5 and 4.9 % less time in two pairs of runs); and keep GELU apart from",
    "lin1, which it moves from MLAS's kernel to one of oneDNN that is a quarter slower (GELU included).",
]
IMAGES: dict[str, Size] = {
    "1 Mpx": (1024, 1024),
    "4 Mpx": (1728, 2304),
    "12 Mpx": (3000, 4000),
    "50 Mpx": (6144, 8192),
}


def photograph(size: Size) -> Image:
    pixels = np.asarray(cv2.resize(data.astronaut(), size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    return Image(pixels, f"astronaut at {size}")


class Clock:
    """Medians, by name, of the processor's seconds for what is timed in turn."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def time(self, name: str, work: Work, repeat: int = 1) -> Any:
        started = time.process_time()
        for _ in range(repeat):
            result = work()
        self._times.setdefault(name, []).append((time.process_time() - started) / repeat)
        return result

    def cpu(self, name: str) -> float:
        return statistics.median(self._times[name])


def networks(weights: WeightsFolder, folder: Path) -> dict[str, Sam]:
    """On one thread each: threads that wait for one another spend the processor's time as well."""
    torch.set_num_threads(1)
    found = {"torch f32": Sam("sam:vit_b", TorchSam(weights.verify("sam:vit_b"), torch.device("cpu")))}
    for runtime in installed_runtimes():
        runtimes = Runtimes(runtime, exact=True, threads=1, folder=folder)
        found[f"{runtime} f32"] = sam.load("vit_b", host_of(weights, runtimes))
    if "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found["openvino bf16"] = sam.load(
            "vit_b", host_of(weights, Runtimes("openvino", threads=1, folder=folder))
        )
    return found


def matrix_products() -> dict[str, Work]:
    """Of GEMM's size in f32, in both libraries: which is faster depends on the processor."""
    left, right = torch.randn(GEMM[:2]), torch.randn(GEMM[1:])
    return {"torch": lambda: left @ right, "numpy": lambda: left.numpy() @ right.numpy()}


def encoders(all_of_them: dict[str, Sam], clock: Clock) -> tuple[list[str], list[Goal]]:
    image, box = photograph(IMAGES["1 Mpx"]), Prompt(box=(256.0, 256.0, 768.0, 768.0))
    products = matrix_products()
    embeddings = {name: each.encode(image) for name, each in all_of_them.items()}  # not timed: it warms up
    for _ in range(ROUNDS):
        for name, each in all_of_them.items():
            embeddings[name] = clock.time(f"encode, {name}", functools.partial(each.encode, image))
        for name, product in products.items():
            clock.time(f"product, {name}", product, repeat=5)
    for _ in range(ROUNDS):
        for name, each in all_of_them.items():
            decode = functools.partial(each.decode_from, embeddings[name], box, None)
            clock.time(f"decode, {name}", decode, repeat=5)
    rates = {name: 2e-9 * float(np.prod(GEMM)) / clock.cpu(f"product, {name}") for name in products}
    peak = max(rates.values())
    reference = all_of_them["torch f32"].decode(embeddings["torch f32"], box)[0].mask
    lines = [
        f"Seconds of the processor, on one thread. A product of {'x'.join(map(str, GEMM))} in f32 reaches",
        f"{rates['torch']:.0f} GFLOP/s in torch and {rates['numpy']:.0f} in numpy in the same minutes.",
        "",
        "| | encode, s | torch / it | GFLOP/s | of product | decode, ms | torch / it | IoU with torch |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in all_of_them.items():
        cost, decode = clock.cpu(f"encode, {name}"), clock.cpu(f"decode, {name}")
        rate = ENCODER_GFLOP / cost
        iou = mask_iou(each.decode(embeddings[name], box)[0].mask, reference)
        lines.append(
            f"| {name} | {cost:.1f} | {clock.cpu('encode, torch f32') / cost:.2f} "
            f"| {rate:.0f} | {100 * rate / peak:.0f} % "
            f"| {1000 * decode:.0f} | {clock.cpu('decode, torch f32') / decode:.2f} | {iou:.4f} |"
        )
    torch_cost = clock.cpu("encode, torch f32")
    wanted = 2.5 * ENCODER_GFLOP / torch_cost
    lines += [
        "",
        f"To be 2.5 times as fast as torch's an encoder has to do {wanted:.0f} GFLOP/s: "
        f"{100 * wanted / peak:.0f} % of the faster product.",
    ]
    f32 = min(
        clock.cpu(f"encode, {name}") for name in all_of_them if name[-3:] == "f32" and "torch" not in name
    )
    goals = [
        Goal("encode, CPU time / torch's, f32, ViT-B", f32 / torch_cost, 1 / 2.5, 1 / 3),
        Goal("encoder's rate / f32 matrix product's", ENCODER_GFLOP / f32 / peak, 0.55, 0.70, at_least=True),
    ]
    if "openvino bf16" in all_of_them:
        bf16 = clock.cpu("encode, openvino bf16")
        goals.insert(1, Goal("encode, CPU time / torch's, bf16, ViT-B", bf16 / torch_cost, 1 / 5, 1 / 6))
    else:
        lines += ["", "bf16 was not measured: this processor has none."]
    return lines, goals


def small_encoders(clock: Clock) -> tuple[list[str], Goal]:
    """MobileSAM's, in torch and in each runtime: convolutions and small windows instead of large products."""
    torch.set_num_threads(1)
    network = random_sam(MOBILE_SAM).image_encoder
    pixels = np.random.default_rng(0).normal(size=(1, 3, 1024, 1024)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        file = Path(name) / "tiny.onnx"
        onnx_export._export(network, (torch.zeros(pixels.shape),), file, ["pixels"], ["features"])
        runs: dict[str, Work] = {"torch": lambda: network(torch.from_numpy(pixels)).numpy()}
        for runtime in installed_runtimes():
            session = open_session(file, runtime, threads=1)
            runs[runtime] = lambda session=session: session.run({"pixels": pixels})["features"]
        expected = runs["torch"]()
        off = max(np.abs(run() - expected).max() for run in runs.values()) / np.abs(expected).max()
        for _ in range(ROUNDS):
            for runtime, run in runs.items():
                clock.time(f"small, {runtime}", run)
    costs = {runtime: clock.cpu(f"small, {runtime}") for runtime in runs}
    cells = "; ".join(f"{each} {cost:.2f} ({costs['torch'] / cost:.2f})" for each, cost in costs.items())
    best = min(costs[runtime] for runtime in installed_runtimes())
    return [
        "MobileSAM's encoder, TinyViT-5M, random weights, f32, seconds of one thread",
        f"(in brackets torch's / it): {cells}. The largest difference from torch is {off:.0e} of the largest",
        "number.",
    ], Goal("encode, CPU time / torch's, f32, TinyViT", best / costs["torch"], 1 / 2.5, 1 / 3)


def layers(encoder: Path) -> list[str]:
    """Where OpenVINO's time goes: shares of one f32 encode on one thread, by kind of layer and kernel."""
    core = import_openvino().Core()
    how = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    request = core.compile_model(core.read_model(str(encoder)), "CPU", how).create_infer_request()
    pixels = np.random.default_rng(0).normal(size=(1, 3, 1024, 1024)).astype(np.float32)
    for _ in range(2):  # the first one warms up
        request.infer({"pixels": pixels})
    costs: dict[str, float] = {}
    for layer in request.profiling_info:
        kind = f"{layer.node_type} ({layer.exec_type})"
        costs[kind] = costs.get(kind, 0.0) + layer.real_time.total_seconds()
    whole = sum(costs.values())
    largest = sorted(costs, key=costs.__getitem__, reverse=True)[:7]
    return [
        "The encoder's layers in OpenVINO, f32 (a Subgraph is mostly attention, fused):",
        "",
        "| layers (kernel) | share |",
        "|---|---:|",
        *(f"| {kind} | {100 * costs[kind] / whole:.1f} % |" for kind in largest),
        "",
        *NEXT_IDEAS,
    ]


def stages(ours: Sam, clock: Clock) -> tuple[list[str], list[Goal]]:
    lines = [
        "Milliseconds of processor time, of one thread but for the encoder; in brackets how others do it:",
        "Pillow, torch's `interpolate` of one mask, label-studio-sdk's RLE, json.",
    ]
    ratios: dict[tuple[str, str], float] = {}
    for name, size in IMAGES.items():
        file = io.BytesIO()
        PillowImage.fromarray(photograph(size).pixels).save(file, "JPEG", quality=90)
        pairs = stages_of(ours, file.getvalue(), size)
        if name == next(iter(IMAGES)):
            lines += ["", f"| image | {' | '.join(pairs)} |", "|---|" + "---:|" * len(pairs)]
        cells: list[str] = []
        for stage, (mine, others) in pairs.items():
            others = None if stage.startswith("CVAT") and size[0] * size[1] > 20e6 else others  # gigabytes
            for _ in range(1 if stage == "encode" else ROUNDS):
                clock.time(f"{name} {stage}", mine)
                if others:
                    clock.time(f"{name} {stage}, others", others)
            cost = clock.cpu(f"{name} {stage}")
            cells.append(f"{1000 * cost:.1f}")
            if others:
                ratios[name, stage] = cost / clock.cpu(f"{name} {stage}, others")
                cells[-1] += f" ({1000 * cost / ratios[name, stage]:.1f})"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rle, dense = ratios["12 Mpx", "brush RLE"], ratios["12 Mpx", "CVAT's dense reply"]
    return lines, [
        Goal("brush RLE, 12 Mpx, the same bytes: time / label-studio-sdk's", rle, 1 / 8, 1 / 12),
        Goal("CVAT's dense reply, 12 Mpx: time / json.dumps(tolist)'s", dense, 1 / 20, 1 / 50),
    ]


def stages_of(ours: Sam, raw: bytes, size: Size) -> dict[str, tuple[Work, Work | None]]:
    """Each stage of a click on this image, as it is done here and elsewhere."""
    image, resized = decode_image(raw), resized_size(size, 1024)
    box = Prompt(box=(0.25 * size[1], 0.25 * size[0], 0.75 * size[1], 0.75 * size[0]))
    embedding = ours.encode(image)
    logits = ours.decode_from(embedding, box, None)[1][0]
    mask = logits_to_mask(logits, 1024, resized, size)
    grey = mask.view(np.uint8) * np.uint8(255)
    rle = mask_to_brush_rle(mask)
    assert rle.tolist() == brush.mask2rle(grey)
    return {
        "decode image": (
            lambda: decode_image(raw),
            lambda: np.asarray(PillowImage.open(io.BytesIO(raw)).convert("RGB")),
        ),
        "encode": (lambda: ours.encode(image), None),
        "decode mask": (lambda: ours.decode_from(embedding, box, None), None),
        "upscale": (
            lambda: logits_to_mask(logits, 1024, resized, size),
            lambda: torch_upscale(logits, resized, size),
        ),
        "polygons": (lambda: mask_to_polygons(mask), None),
        "brush RLE": (lambda: mask_to_brush_rle(mask), lambda: brush.mask2rle(grey)),
        "serialise": (
            lambda: orjson.dumps(rle, option=orjson.OPT_SERIALIZE_NUMPY),
            lambda: json.dumps(rle.tolist()),
        ),
        "CVAT's dense reply": (
            lambda: mask_to_dense_reply(mask),
            lambda: json.dumps(mask.astype(np.uint8).tolist()),
        ),
    }


def torch_upscale(logits: Any, resized: Size, size: Size) -> Any:
    interpolate = functools.partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
    padded = interpolate(torch.from_numpy(logits)[None, None], (1024, 1024))
    return (interpolate(padded[..., : resized[0], : resized[1]], size) > 0).numpy()


def side_by_side(ours: Sam) -> str:
    """Decodes a second by 1 and by several threads: each has one core."""
    image = photograph(IMAGES["1 Mpx"])
    embedding, box = ours.encode(image), Prompt(box=(256.0, 256.0, 768.0, 768.0))
    rates = []
    for count in (1, usable_cores()):
        end, done = time.perf_counter() + 2, []

        def work(end: float = end, done: list[int] = done) -> None:
            while time.perf_counter() < end:
                ours.decode_from(embedding, box, None)
                done.append(1)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(len(done) / 2)
    return f"Masks decoded a second: {rates[0]:.1f} by one thread, {rates[1]:.1f} by {usable_cores()}."


def main() -> Section:
    cv2.setNumThreads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = weights_of(write_checkpoint(folder / "sam_vit_b_random.pth", VIT_B))
        all_of_them = networks(weights, folder / "runtimes")
        first, goals = encoders(all_of_them, clock)
        del all_of_them
        small, goal = small_encoders(clock)
        goals.insert(1, goal)
        profile = layers(next((folder / "runtimes" / "exports").glob("*/encoder.onnx")))
        ours = sam.load("vit_b", host_of(weights, Runtimes(exact=True, folder=folder / "runtimes")))
        second, more = stages(ours, clock)
        return Section(
            "\n".join([*first, "", *small, "", *profile, "", *second, "", side_by_side(ours)]),
            [*goals, *more],
        )


if __name__ == "__main__":
    print(main().text)
