"""EfficientSAM. Xiong et al., "EfficientSAM", arXiv 2312.00863, from the ONNX files that Kentaro Wada
exported of the official weights. It was not trained with background points, as its authors say in
https://github.com/yformer/EfficientSAM/issues/64: here they choose among its three candidates. It reads six
points at most, and no masks: a mask without clicks is its box, and candidates near a mask come first."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from clickmask.inference.catalogue import Host
from clickmask.inference.sessions import EncodesOnCpu, Session
from clickmask.masks.regions import mask_above, mask_box, mask_coverage
from clickmask.plugins import About, Checkpoint, Variant
from clickmask.segmenters._sam.frame import agreement
from clickmask.types import Image, Pixels, Point, Prediction, Prompt, Size

_RELEASE = "https://github.com/labelmeai/efficient-sam/releases/download/onnx-models-20231225/"
_PUBLISHED = {  # by variant: parameters; of the encoder and of the decoder: bytes, SHA-256
    "vit_t": (
        10_200_000,
        (24_799_761, "7a73ee65aa2c37237c89b4b18e73082f757ffb173899609c5d97a2bbd4ebb02d"),
        (16_565_728, "e1afe46232c3bfa3470a6a81c7d3181836a94ea89528aff4e0f2d2c611989efd"),
    ),
    "vit_s": (
        26_400_000,
        (89_558_337, "4cacbb23c6903b1acf87f1d77ed806b840800c5fcd4ac8f650cbffed474b8896"),
        (16_565_728, "4727baf23dacfb51d4c16795b2ac382c403505556d0284e84c6ff3d4e8e36f22"),
    ),
}
SIDE = 1024  # pixels of the square that the image is stretched to
LOW_SIDE = 256  # of the decoder's logits
MAX_POINTS = 6
FOREGROUND, CORNERS = 1, (2, 3)  # labels of the decoder's points


def _variant(name: str, parameters: int, encoder: tuple[int, str], decoder: tuple[int, str]) -> Variant:
    address = f"{_RELEASE}efficient_sam_{name.replace('_', '')}"
    beside = Checkpoint(f"{address}_decoder.onnx", *decoder, "Apache-2.0")
    about = About("EfficientSAM", "Xiong 2023, arXiv 2312.00863", parameters, candidates=3)
    return Variant(Checkpoint(f"{address}_encoder.onnx", *encoder, "Apache-2.0", (beside,)), about=about)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {name: _variant(name, *files) for name, files in _PUBLISHED.items()}
)


@dataclass(frozen=True, eq=False)
class EfficientSamEmbedding:
    """The image encoder's features of an image of `size`."""

    features: NDArray[np.float32]  # (1, 256, 64, 64), read-only
    size: Size

    @property
    def nbytes(self) -> int:
        return self.features.nbytes

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """Everything, to be stored; `EfficientSam.restore` reverses it."""
        return {"features": self.features, "size": np.asarray(self.size, np.int64)}


class EfficientSam(EncodesOnCpu):
    """Both networks, which never change, and nothing of any image."""

    def __init__(self, name: str, encoder: Session, decoder: Session) -> None:
        self.name = name
        self._encoder, self._decoder = encoder, decoder

    def encode(self, image: Image) -> EfficientSamEmbedding:
        chw = np.ascontiguousarray(stretched(image.pixels).transpose(2, 0, 1)[None])
        (features,) = self._encoder.run({"batched_images": chw}).values()
        return _embedding(features, image.size)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> EfficientSamEmbedding:
        """The embedding that `arrays` were stored from; they may be rounded to half precision. Raises
        ValueError if they are not of this network."""
        features, (height, width) = arrays["features"], arrays["size"]
        if features.shape != (1, 256, SIDE // 16, SIDE // 16):
            raise ValueError(f"features of shape {features.shape} are not of {self.name}")
        return _embedding(features.astype(np.float32), (int(height), int(width)))

    def decode(self, embedding: EfficientSamEmbedding, prompt: Prompt) -> list[Prediction]:
        """Those of three candidates that cover the fewest background points, best first."""
        size, box = embedding.size, prompt.box
        if prompt.mask is not None and not (box or prompt.foreground):
            box = mask_box(prompt.mask)
            if box is None:
                return [Prediction(np.zeros(size, np.bool_), 0.0, self.name)]
        corners = [box[:2], box[2:]] if box else []
        clicks = prompt.foreground[-(MAX_POINTS - len(corners)) :]  # the last ones correct those before
        labels = [*CORNERS][: len(corners)] + [FOREGROUND] * len(clicks)
        found = self._decoder.run(
            {
                "image_embeddings": embedding.features,
                "batched_point_coords": _to_low([*corners, *clicks], size)[None, None],
                "batched_point_labels": np.array(labels, np.float32)[None, None],
                # Masks of this size are the network's own logits: not enlarged by it, all three each time.
                "orig_im_size": np.full(2, LOW_SIDE, np.int64),
            }
        )
        masks, scores, *_ = (each[0, 0] for each in found.values())  # (3, 256, 256), (3,)
        down, across, last = LOW_SIDE / size[0], LOW_SIDE / size[1], LOW_SIDE - 1
        cells = [(min(int(y * down), last), min(int(x * across), last)) for x, y in prompt.background]
        wrong = [sum(bool(mask[cell] > 0) for cell in cells) for mask in masks]
        scores = scores.clip(0.0, 1.0)
        ranks = -scores
        if prompt.mask is not None:
            given = mask_coverage(prompt.mask, (LOW_SIDE, LOW_SIDE)) > 0.5
            ranks = ranks - agreement(masks > 0, given)
        return [
            Prediction(partial(mask_above, masks[index], 0.0, size), float(scores[index]), self.name)
            for index in np.argsort(ranks, kind="stable")
            if wrong[index] == min(wrong)
        ]


def stretched(pixels: Pixels) -> NDArray[np.float32]:
    """(SIDE, SIDE, 3) `pixels` in [0, 1], stretched like the network's preprocessing: in float, bilinear and
    without antialiasing. Only the pixels that count are read, since a large image in float is gigabytes."""
    (top, bottom, down), (left, right, across) = (_neighbours(length) for length in pixels.shape[:2])
    down, across = down[:, None, None], across[:, None]
    upper, lower = (
        pixels[rows[:, None], left] * (1 - across) + pixels[rows[:, None], right] * across
        for rows in (top, bottom)
    )
    return np.asarray((upper * (1 - down) + lower * down) / 255, np.float32)


def missing(variant: str, host: Host) -> str:
    return host.weights.missing(f"efficient_sam:{variant}")


def load(variant: str, host: Host) -> EfficientSam:
    """Load both networks. Raises NotReady."""
    name = f"efficient_sam:{variant}"
    file = host.weights.verify(name)
    (beside,) = host.weights.checkpoint(name).beside
    blank = {"batched_images": np.zeros((1, 3, SIDE, SIDE), np.float32)}
    click = {
        "image_embeddings": np.zeros((1, 256, SIDE // 16, SIDE // 16), np.float32),
        "batched_point_coords": np.full((1, 1, 1, 2), LOW_SIDE / 2, np.float32),
        "batched_point_labels": np.ones((1, 1, 1), np.float32),
        "orig_im_size": np.full(2, LOW_SIDE, np.int64),
    }
    decoder = host.runtimes.decoder(file.with_name(beside.file), click)
    return EfficientSam(name, host.runtimes.encoder(file, blank), decoder)


def _embedding(features: NDArray[np.float32], size: Size) -> EfficientSamEmbedding:
    features.flags.writeable = False
    return EfficientSamEmbedding(features, size)


def _neighbours(length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of SIDE pixels along an axis of `length` the two pixels around its centre, and the second's
    weight."""
    at = ((np.arange(SIDE) + 0.5) * length / SIDE - 0.5).clip(0, length - 1)
    first = at.astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (at - first).astype(np.float32)


def _to_low(points: list[Point] | tuple[Point, ...], size: Size) -> NDArray[np.float32]:
    """(N, 2) points of an image of `size` in pixels of the decoder's logits, as the decoder takes them: it
    scales them to SIDE and adds half a pixel."""
    scale = np.array([SIDE / size[1], SIDE / size[0]])
    at_full = np.asarray(points, np.float64).reshape(-1, 2) * scale - 0.5
    return (at_full * (LOW_SIDE / SIDE)).astype(np.float32)
