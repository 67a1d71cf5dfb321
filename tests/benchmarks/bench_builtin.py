"""The built-in network beside GrabCut, and Segment Anything with two image encoders, in one run."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data

from benchmarks.bench_runtimes import Clock
from clickmask.inference.sessions import Runtimes
from clickmask.segmenters import builtin, grabcut
from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.tiny_vit import TinyViT
from clickmask.segmenters._sam.torch_networks import TorchSam
from clickmask.types import Image, Prompt
from support.checkpoints import MOBILE_SAM, VIT_B, write_checkpoint
from support.hosts import host_of

RUNTIME = Runtimes("onnxruntime", exact=True, threads=1)
ROUNDS = 3
CLICKS = 3  # of each round
BUILTIN = "builtin"
PROMPTS = {  # on the astronaut, 512 x 512
    "a click on something large": Prompt(((170.0, 330.0),)),
    "a click on something small": Prompt(((172.5, 386.5),)),
    "a box": Prompt(box=(153.0, 15.0, 302.0, 190.0)),
}


def exported(folder: Path) -> dict[str, Sam]:
    """Both, with random weights, in the runtime that the built-in network has as well."""
    found: dict[str, Sam] = {}
    for name, architecture in (("ViT-B", VIT_B), ("TinyViT-5M", MOBILE_SAM)):
        own = folder / name
        own.mkdir()
        sam = TorchSam(write_checkpoint(own / "random.pth", architecture), torch.device("cpu"))
        onnx_export.export_encoder(sam, own)
        onnx_export.export_decoder(sam, own)
        (own / "export.json").write_text(json.dumps({"side": sam.side}))
        found[f"SAM, {name}"] = Sam(name, OnnxSam(own, RUNTIME))
    return found


def millions(network: torch.nn.Module) -> float:
    return sum(each.numel() for each in network.parameters()) / 1e6


def main() -> str:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    clock, image = Clock(), Image(data.astronaut(), "the astronaut")
    with tempfile.TemporaryDirectory() as name:
        all_of_them: dict[str, Any] = {
            BUILTIN: builtin.load("", host_of(runtimes=RUNTIME)),
            "GrabCut": grabcut.load("", host_of()),
        }
        all_of_them |= exported(Path(name))
        embeddings = {each: segmenter.encode(image) for each, segmenter in all_of_them.items()}  # warms up
        for _ in range(ROUNDS):
            for each, segmenter in all_of_them.items():
                clock.time(f"{each}, encode", functools.partial(segmenter.encode, image))
            for _ in range(CLICKS):
                for what, prompt in PROMPTS.items():
                    for each, segmenter in all_of_them.items():
                        clock.time(f"{each}, {what}", answer(segmenter, embeddings[each], prompt))
    return "\n".join([*head(), *(row(each, clock) for each in all_of_them)])


def answer(segmenter: Any, embedding: Any, prompt: Prompt) -> Callable[[], np.ndarray]:
    """A click as it is served: what the mask is made of, and the mask."""
    return lambda: segmenter.decode(embedding, prompt)[0].mask


def head() -> list[str]:
    return [
        "Milliseconds of the processor on one thread, medians, the astronaut at 512x512; in brackets how",
        "many times the built-in's. All networks in ONNX Runtime, f32. SAM's weights are random, and so are",
        f"those of TinyViT, MobileSAM's encoder ({millions(TinyViT()):.1f} million): times, not answers.",
        "SAM's decoder is the same for both.",
        "",
        f"| | encode | {' | '.join(PROMPTS)} |",
        "|---|" + "---:|" * (1 + len(PROMPTS)),
    ]


def row(name: str, clock: Clock) -> str:
    cells: list[str] = []
    for what in ("encode", *PROMPTS):
        took, ours = clock.cpu(f"{name}, {what}"), clock.cpu(f"{BUILTIN}, {what}")
        digits = 0 if took > 10 * ours else 2
        cells.append(f"{1000 * took:.1f} ({took / ours:.{digits}f})")
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(main())
