"""Export of SAM's networks from a checkpoint into ONNX files: `python -m ... CHECKPOINT FOLDER`.

Its two files hold no constants of an image: encoder.onnx (its weights beside it, as ViT-H's exceed the limit
of one file) and decoder.onnx, SAM's prompt encoder and mask decoder up to its low-resolution logits. The
decoder's inputs follow `segment_anything.utils.onnx.SamOnnxModel`.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
import torch

from clickmask.inference.sessions import Runtimes, installed_runtimes
from clickmask.segmenters._sam.frame import Floats, Maps, SamPrompt
from clickmask.segmenters._sam.onnx_networks import FINE, NO_POINT, OnnxSam
from clickmask.segmenters._sam.torch_networks import TorchSam, predict_masks
from clickmask.types import Logits, Pixels

Tensors = tuple[torch.Tensor, ...]

OPSET = 17
GROWING = ("points", "labels")  # inputs of the decoder
MIN_MASK_IOU = 0.999  # of masks from both networks
MAX_DIFFERENCE = 1e-3  # between their numbers, as a share of the largest


class Answer(NamedTuple):
    """What torch answers to a prompt."""

    prompt: SamPrompt
    multimask: bool
    masks: Logits
    scores: Floats


class Decoder(torch.nn.Module):
    """Prompt encoder and mask decoder with four masks, the first for unambiguous prompts."""

    def __init__(self, sam: TorchSam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder
        self.register_buffer("positions", sam.positions.clone())
        self.side, self.maps = sam.side, sam.maps

    def forward(
        self,
        points: torch.Tensor,  # (1, N, 2)
        labels: torch.Tensor,  # (1, N)
        mask: torch.Tensor,  # (1, 1, side / 4, side / 4)
        has_mask: torch.Tensor,  # (1,): 1 or 0
        *maps: torch.Tensor,  # what the image encoder gives: (1, 256, side / 16, side / 16), and what follows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = self.prompt_encoder
        sparse = encoder.pe_layer._pe_encoding((points + 0.5) / self.side)  # like SamOnnxModel
        kind = labels[..., None]  # (1, N, 1)
        sparse = sparse * (kind != NO_POINT) + encoder.not_a_point_embed.weight * (kind == NO_POINT)
        for label, embedding in enumerate(encoder.point_embeddings):
            sparse = sparse + embedding.weight * (kind == label)
        without = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = has_mask * encoder.mask_downscaling(mask) + (1 - has_mask) * without
        named = dict(zip(self.maps, maps, strict=True))
        return predict_masks(self.mask_decoder, named, cast("Any", self.positions), sparse, dense)


def export(checkpoint: Path, folder: Path) -> None:
    _say(0.0, "reading the checkpoint")
    sam = TorchSam(checkpoint, torch.device("cpu"))
    pixels = golden_image(sam.side)
    _say(0.1, "exporting the image encoder")
    maps = export_encoder(sam, pixels, folder)
    _say(0.5, "exporting the mask decoder")
    export_decoder(sam, folder)
    described = {
        "side": sam.side,
        "high_quality": "fine" in sam.maps,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "opset": OPSET,
    }
    (folder / "export.json").write_text(json.dumps(described))
    answers = answers_of(sam, maps)
    del sam  # each runtime has the weights in memory, too
    runtimes = installed_runtimes()
    for number, runtime in enumerate(runtimes):
        _say(0.6 + 0.4 * number / len(runtimes), f"comparing {runtime}'s answers with torch's")
        verify(maps, answers, OnnxSam(folder, Runtimes(runtime, exact=True)), pixels)
    _say(1.0, "done")


def export_encoder(sam: TorchSam, pixels: Pixels, folder: Path) -> Maps:
    """Export the image encoder and remove it from `sam`. Returns its maps of `pixels`: an export runs the
    network once, and the slowest step need not be repeated."""
    answers: list[Any] = []

    def remember(network: object, given: object, answer: object) -> None:
        answers.append(answer)

    sam.image_encoder.register_forward_hook(remember)
    given, names = (sam.padded(pixels),), list(sam.maps)
    with tempfile.TemporaryDirectory(dir=folder) as scattered:  # above 2 GB, torch writes a file per tensor
        _export(sam.image_encoder, given, Path(scattered) / "encoder.onnx", ["pixels"], names)
        sam.image_encoder = None
        network = cast("Any", onnx).load(Path(scattered) / "encoder.onnx")
    beside = {"all_tensors_to_one_file": True, "location": "encoder.weights"}
    cast("Any", onnx).save_model(network, folder / "encoder.onnx", save_as_external_data=True, **beside)
    return sam.named(answers[0])


def export_decoder(sam: TorchSam, folder: Path) -> None:
    side = sam.side
    shapes = {"features": (256, side // 16, side // 16), "fine": (FINE, side // 4, side // 4)}
    example = (
        torch.full((1, 2, 2), side / 2),
        torch.tensor([[1.0, NO_POINT]]),
        torch.zeros(1, 1, side // 4, side // 4),
        torch.ones(1),
        *(torch.zeros(1, *shapes[name]) for name in sam.maps),
    )
    names = ["points", "labels", "mask", "has_mask", *sam.maps]
    _export(Decoder(sam).eval(), example, folder / "decoder.onnx", names, ["masks", "scores"])


def golden_image(side: int) -> Pixels:
    """Three discs on a ramp, (3 / 4 side, side): not flat, and the same on every machine."""
    y, x = np.mgrid[: side * 3 // 4, :side] / side
    ramp = np.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.6 - 0.3 * x], axis=-1)
    for cx, cy, radius, colour in ((0.3, 0.3, 0.15, 0.9), (0.7, 0.25, 0.1, 0.1), (0.55, 0.55, 0.18, 0.75)):
        ramp[np.hypot(x - cx, y - cy) < radius] = colour
    return (255 * ramp).astype(np.uint8)


def answers_of(sam: TorchSam, maps: Maps) -> list[Answer]:
    """Torch's answers to prompts of every kind, on the golden image."""
    side, placed = sam.side, sam.place(maps)
    click = SamPrompt(np.full((1, 2), 0.3 * side, np.float32), np.ones(1, np.int32))
    nowhere = SamPrompt(np.zeros((0, 2), np.float32), np.zeros(0, np.int32))
    box = np.array([[0.45, 0.15], [0.8, 0.35]], np.float32) * side
    coarse = sam.decode(placed, click, multimask=True)[0][:1]
    both = click._replace(box=box, logits=coarse)
    return [
        Answer(prompt, multimask, *sam.decode(placed, prompt, multimask))
        for prompt in (click, nowhere._replace(box=box), both, nowhere._replace(logits=coarse))
        for multimask in (False, True)
    ]


def verify(maps: Maps, answers: Sequence[Answer], exported: OnnxSam, pixels: Pixels) -> None:
    """Raise ValueError unless the exported networks give the same maps of `pixels`, and masks, as torch."""
    own = exported.encode(pixels)
    for name, expected in maps.items():
        _require_close(name, expected, own[name])
    placed = exported.place(maps)
    for prompt, multimask, expected, scores in answers:
        masks, own_scores = exported.decode(placed, prompt, multimask)
        _require_close("scores", scores, own_scores)
        _require_close("masks", expected, masks)
        shared, either = ((expected > 0) & (masks > 0)).sum(), ((expected > 0) | (masks > 0)).sum()
        if shared < MIN_MASK_IOU * either:
            raise ValueError(f"the IoU of masks with torch's is {shared / either:.4f}")


def _require_close(what: str, expected: Floats, found: Floats) -> None:
    if expected.shape != found.shape:
        raise ValueError(f"the {what} have the shape {found.shape} instead of {expected.shape}")
    off = float(np.abs(expected - found).max()) / max(float(np.abs(expected).max()), 1e-6)
    if not off < MAX_DIFFERENCE:
        raise ValueError(f"the {what} differ from torch's by {off:.1e} of the largest")


def _export(
    network: torch.nn.Module, example: Tensors, path: Path, inputs: list[str], outputs: list[str]
) -> None:
    """Export `network`, whose inputs in GROWING, if it has them, take any number of points."""
    arguments: dict[str, Any] = {
        "input_names": inputs,
        "output_names": outputs,
        "opset_version": OPSET,
        "dynamic_axes": {name: {1: "points"} for name in inputs if name in GROWING},
        "dynamo": False,  # the newer exporter needs onnxscript, and takes minutes
    }
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # from tracing: shapes that are constant here, and a deprecation
        cast("Any", torch.onnx).export(network, example, str(path), **arguments)


def _say(share: float, what: str) -> None:
    print(f"{share:.2f} {what}", flush=True)  # noqa: T201 - read by `clickmask.inference.onnx_exports`


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
