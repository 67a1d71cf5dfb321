"""The built-in network: small and in the package, for trying out, tests and weak machines.

`clickmask.training.click` describes and trains it; MODEL_CARD.md beside the weights has its data and
quality. A click is a pass over the whole image, whose features are kept, and, if the mask is small and
unsure, a second pass over a crop around it, which takes two thirds of the time.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.errors import NotReady
from clickmask.inference.catalogue import Host
from clickmask.inference.refinement import replay
from clickmask.inference.sessions import EncodesOnCpu, Session
from clickmask.plugins import About, Variant
from clickmask.segmenters import _builtin as crops
from clickmask.segmenters._builtin import Crop, Floats, Pass
from clickmask.types import Image, Logits, Pixels, Prediction, Prompt, Size

WEIGHTS = "clickmask.weights_builtin"
FILES = {  # with their SHA-256
    "encoder.onnx": "817827e3583628197097c4aacebf894658650868dafbd084c52581b1641f8993",
    "decoder.onnx": "de3c5c65019b168f478b4feb4a349701751138f2c8378c2e438d8cb17286b000",
}
ABOUT = About(
    "ClickFPN",
    "its model card",
    7_161_413,
    prompts=("points", "box", "mask"),
    candidates=4,
    bytes=14_450_250,
    licence="Apache-2.0",
)
VARIANTS = {"": Variant(about=ABOUT)}
SIDE = 448  # px; long side of the whole image for the network
CLOSE_SIDE = 384  # px; long side of a crop
MIN_CONFIDENT_IOU = 0.9  # a first pass with this predicted IoU or more needs no second one


@dataclass(frozen=True, eq=False)
class BuiltinEmbedding:
    """The network's features of an image of `size`, and its pixels for a second pass."""

    features: Mapping[str, Floats]  # by name, (1, C, h, w), read-only
    pixels: Pixels  # (h, w, 3), read-only, longest side at most MAX_KEPT_PX
    size: Size

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + sum(array.nbytes for array in self.features.values())

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """Everything, to be stored; `Builtin.restore` reverses it."""
        return {**self.features, "pixels": self.pixels, "size": np.asarray(self.size, np.int64)}


class Builtin(EncodesOnCpu):
    """The two networks, which never change, and nothing of any image."""

    name = "builtin"
    looks_closer = True

    def __init__(self, encoder: Session, decoder: Session) -> None:
        self._encoder = encoder
        self._decoder = decoder

    def encode(self, image: Image) -> BuiltinEmbedding:
        features = self._encoder.run({"image": crops.network_input(image.pixels, _whole(image.size))})
        scale = crops.MAX_KEPT_PX / max(image.size)
        if scale < 1:
            width, height = (max(1, round(length * scale)) for length in reversed(image.size))
            resized = cv2.resize(image.pixels, (width, height), interpolation=cv2.INTER_AREA)
            kept = np.asarray(resized, np.uint8)
        else:
            kept = image.pixels.copy()
        return _embedding(features, kept, image.size)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> BuiltinEmbedding:
        """The embedding that `arrays` were stored from; they may be rounded to half precision."""
        features = {
            name: array.astype(np.float32) for name, array in arrays.items() if name not in ("pixels", "size")
        }
        height, width = (int(length) for length in arrays["size"])
        return _embedding(features, arrays["pixels"].astype(np.uint8), (height, width))

    def decode(self, embedding: BuiltinEmbedding, prompt: Prompt) -> list[Prediction]:
        """Several guesses for a single click, which may mean a part or the whole, else one prediction."""
        return replay(self, embedding, prompt)

    def decode_from(
        self, embedding: BuiltinEmbedding, prompt: Prompt, logits: Logits | None
    ) -> tuple[list[Prediction], Logits]:
        """Use `logits` rather than `prompt.mask` if both are given, since they were made from it. A
        correction of a small mask goes to the crop at once; otherwise the whole image comes first."""
        whole = _whole(embedding.size)
        region = None
        if logits is not None:
            region = crops.probabilities(logits[0])
            if prompt.box is None:
                before = Pass(whole, crops.constrain(logits[0], whole, prompt), 0.0)
                if (close := self._closer(embedding, prompt, before)) is not before:
                    pasted = crops.paste(close, whole, before.logits)
                    return _answers([(close, pasted)], prompt, embedding.size)
        elif prompt.mask is not None:
            region = crops.coverage(prompt.mask, whole)
        passes = self._passes(embedding.features, whole, prompt, region)
        if len(passes) > 1:
            passes = crops.different(passes)
        found = [(seen, seen.logits) for seen in passes]
        if passes[0].predicted_iou < MIN_CONFIDENT_IOU:
            close = self._closer(embedding, prompt, passes[0])
            found[0] = close, crops.paste(close, whole, passes[0].logits)
        return _answers(found, prompt, embedding.size)

    def _passes(
        self, features: Mapping[str, Floats], crop: Crop, prompt: Prompt, region: Floats | None
    ) -> list[Pass]:
        """One pass; for a single click without a previous mask, one more for each other guess."""
        answer = self._decoder.run({"maps": crops.render(crop, prompt, region), **features})
        alone = len(prompt.foreground) == 1 and not prompt.background and not prompt.box and region is None
        return [
            Pass(crop, crops.constrain(logits, crop, prompt), float(predicted_iou))
            for logits, predicted_iou in zip(answer["logits"][0], answer["worth"][0], strict=True)
        ][: None if alone else 1]

    def _closer(self, embedding: BuiltinEmbedding, prompt: Prompt, seen: Pass) -> Pass:
        """A pass over the crop around `seen` if that is a small part of the image, else `seen`."""
        extent = crops.crop_around(seen, prompt, embedding.size)
        if extent is None:
            return seen
        kept = embedding.pixels
        sx, sy = kept.shape[1] / embedding.size[1], kept.shape[0] / embedding.size[0]
        x0, y0, x1, y1 = (round(edge * scale) for edge, scale in zip(extent, (sx, sy, sx, sy), strict=True))
        crop = crops.crop_of((x0 / sx, y0 / sy, x1 / sx, y1 / sy), CLOSE_SIDE)
        features = self._encoder.run({"image": crops.network_input(kept[y0:y1, x0:x1], crop)})
        region = crops.probabilities(crops.resample(seen, crop))
        return self._passes(features, crop, prompt, region)[0]


def missing(variant: str, host: Host) -> str:
    """The first missing file of weights, as a sentence; empty if none is missing."""
    lost = [name for name in FILES if not resources.files(WEIGHTS).joinpath(name).is_file()]
    return f"{lost[0]} is lost; install clickmask again, or use grabcut, which has no weights" if lost else ""


def load(variant: str, host: Host) -> Builtin:
    """Load the networks. Raises NotReady if the weights are not those published with this version."""
    models: dict[str, bytes] = {}
    for name, sha256 in FILES.items():
        models[name] = resources.files(WEIGHTS).joinpath(name).read_bytes()
        if hashlib.sha256(models[name]).hexdigest() != sha256:
            raise NotReady(f"builtin cannot run: {name} is damaged; install clickmask again")
    blank = {"image": np.zeros((1, 3, SIDE, SIDE), np.float32)}
    encoder = host.runtimes.encoder(models["encoder.onnx"], blank)
    maps = np.zeros((1, crops.MAPS, SIDE // 2, SIDE // 2), np.float32)
    decoder = host.runtimes.decoder(models["decoder.onnx"], {"maps": maps, **encoder.run(blank)})
    return Builtin(encoder, decoder)


def _embedding(features: Mapping[str, Floats], pixels: Pixels, size: Size) -> BuiltinEmbedding:
    for array in (pixels, *features.values()):
        array.flags.writeable = False
    return BuiltinEmbedding(features, pixels, size)


def _answers(found: list[tuple[Pass, Logits]], prompt: Prompt, size: Size) -> tuple[list[Prediction], Logits]:
    """Passes with their logits of the whole image, as predictions and logits, best first."""
    found.sort(key=lambda each: -each[0].predicted_iou)
    predictions = [
        Prediction(partial(crops.whole_mask, seen, prompt, size), seen.predicted_iou, Builtin.name)
        for seen, _ in found
    ]
    return predictions, np.stack([whole for _, whole in found])


def _whole(size: Size) -> Crop:
    return crops.crop_of((0.0, 0.0, float(size[1]), float(size[0])), SIDE)
