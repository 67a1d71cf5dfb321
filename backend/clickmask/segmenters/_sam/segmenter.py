"""A SAM on any networks. Kirillov et al., "Segment Anything", arXiv 2304.02643. The SamPredictor of
segment-anything 1.0 stores the image on itself, so threads cannot share it; here both halves are functions.
The answers are SamPredictor's, to the pixel."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clickmask.inference.refinement import replay
from clickmask.inference.sessions import usable_cores
from clickmask.segmenters._sam import frame
from clickmask.segmenters._sam.frame import Floats, Maps, SamPrompt
from clickmask.types import Image, Logits, Mask, Pixels, Prediction, Prompt, Size


@dataclass(frozen=True, eq=False)
class SamEmbedding:
    """The image encoder's maps of an image of `size`, padding included."""

    maps: Maps  # read-only; "features" (256, 64, 64), and what else a decoder of the family reads
    size: Size
    placed: Any  # the maps as the networks take them: the same memory, or a copy on the GPU

    @property
    def features(self) -> Floats:
        return self.maps["features"]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.maps.values())

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """Everything, to be stored; `Sam.restore` reverses it."""
        return {**self.maps, "size": np.asarray(self.size, np.int64)}


class Networks(Protocol):
    """SAM's networks on some runtime. They never change; callable from any thread. Coordinates are in SAM's
    frame: pixels of the image resized to a long side of `side`, with pixel centres at whole numbers."""

    @property
    def side(self) -> int: ...  # pixels of the padded input: 1024

    @property
    def precision(self) -> str: ...  # of the image encoder

    @property
    def runs_on(self) -> str: ...  # its runtime, device and precision, for people

    def encode(self, pixels: Pixels) -> Maps:
        """The maps of an image whose long side is `side`; "features" are (256, side / 16, side / 16)."""
        ...

    def place(self, maps: Maps) -> Any:
        """`maps`, still writeable, in the form that `decode` takes; at most copied to a GPU."""
        ...

    def decode(self, placed: Any, prompt: SamPrompt, multimask: bool) -> tuple[Logits, Floats]:
        """(n, side / 4, side / 4) masks before thresholding, and the network's estimates of their IoUs. Three
        masks if `multimask`, else one, in the decoder's order."""
        ...


@runtime_checkable
class BatchNetworks(Networks, Protocol):
    """Networks that answer many clicks together faster than one by one."""

    def decode_clicks(self, placed: Any, points: Floats) -> tuple[Logits, Floats]:
        """`decode` with `multimask` for each of N foreground points (N, 2): (N, 3, h, w) and (N, 3)."""
        ...


class Sam:
    """A SAM: its networks, which never change, and nothing of any image."""

    def __init__(self, name: str, networks: Networks) -> None:
        self.name = name
        self._networks = networks

    @property
    def precision(self) -> str:
        return self._networks.precision

    @property
    def runs_on(self) -> str:
        return self._networks.runs_on

    def encode(self, image: Image) -> SamEmbedding:
        resized = frame.resized_size(image.size, self._networks.side)
        return self._embedding(self._networks.encode(frame.resized_pixels(image.pixels, resized)), image.size)

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> SamEmbedding:
        """The embedding that `arrays` were stored from; they may be rounded to half precision. Raises
        ValueError if they are not this SAM's."""
        features, side = arrays["features"], self._networks.side // 16
        height, width = (int(length) for length in arrays["size"])
        if features.ndim != 3 or features.shape[1:] != (side, side):
            raise ValueError(f"features of shape {features.shape} are not of {self.name}")
        maps = {name: array.astype(np.float32) for name, array in arrays.items() if name != "size"}
        return self._embedding(maps, (height, width))

    def decode(self, embedding: SamEmbedding, prompt: Prompt) -> list[Prediction]:
        """Three predictions for a single click, which is ambiguous, else one."""
        return replay(self, embedding, prompt)

    def decode_from(
        self, embedding: SamEmbedding, prompt: Prompt, logits: Logits | None
    ) -> tuple[list[Prediction], Logits]:
        """`logits` override `prompt.mask` if both are given, since they were made from it. A mask is answered
        with what is near it: see `_near`."""
        side, size = self._networks.side, embedding.size

        # The prompt in SAM's frame. A single click may mean a part or the whole: SAM gives three masks.
        points = frame.to_sam(prompt.foreground + prompt.background, size, side)
        labels = np.repeat(np.array([1, 0], np.int32), (len(prompt.foreground), len(prompt.background)))
        box = frame.to_sam([prompt.box[:2], prompt.box[2:]], size, side) if prompt.box else None
        given = SamPrompt(points, labels, box, logits)
        ambiguous = len(points) == 1 and box is None and logits is None

        # Low-resolution masks and the network's estimates of their IoUs, best first.
        if logits is None and prompt.mask is not None:
            masks, scores = self._near(embedding, given, prompt.mask)
        else:
            masks, scores = self._networks.decode(embedding.placed, given, ambiguous)
            order = np.argsort(-scores, kind="stable")
            masks, scores = masks[order], scores[order]
        scores = scores.clip(0.0, 1.0)

        # Masks of the whole image, each enlarged when first read.
        resized = frame.resized_size(size, side)
        predictions = [
            Prediction(partial(frame.logits_to_mask, mask, side, resized, size), float(score), self.name)
            for mask, score in zip(masks, scores, strict=True)
        ]
        return predictions, masks

    def _near(self, embedding: SamEmbedding, given: SamPrompt, mask: Mask) -> tuple[Logits, Floats]:
        """The three best candidates, by the network's estimate plus the agreement with a `mask` that is not
        its own.

        SAM learnt to be given its own logits, beside a click. Another mask in their place leads it astray:
        objects in photographs were found with a mIoU of .26 by their mask, alone, eroded by 10 px. So a mask
        alone is clicked in its middle, and candidates with the mask compete with those without it. Measured
        on 77 objects, none of them a test's: .59 by a click, .78 with their mask eroded by 10 px, .81 with it
        dilated by 10 px, .87 with it as it is.
        """
        side, logits = self._networks.side, frame.mask_to_logits(mask, self._networks.side)
        if given.box is None and 1 not in given.labels and mask.any():
            points = np.concatenate((frame.middle(logits), given.points))
            given = given._replace(points=points, labels=np.append(np.int32(1), given.labels))
        with_it = given._replace(logits=logits)
        found = [self._networks.decode(embedding.placed, each, multimask=True) for each in (given, with_it)]
        masks, scores = (np.concatenate(each) for each in zip(*found, strict=True))
        height, width = (-(-length // 4) for length in frame.resized_size(embedding.size, side))
        shown, near = (each[:, :height, :width] > 0 for each in (masks, logits))
        order = np.argsort(-scores - frame.agreement(shown, near[0]), kind="stable")[:3]
        return masks[order], scores[order]

    def decode_clicks(self, embedding: SamEmbedding, points: NDArray[np.float64]) -> tuple[Logits, Floats]:
        """Three candidates (N, 3, side / 4, side / 4) for each point, in the decoder's order."""
        clicks = frame.to_sam(points, embedding.size, self._networks.side)
        if isinstance(self._networks, BatchNetworks):
            return self._networks.decode_clicks(embedding.placed, clicks)
        prompts = [SamPrompt(click[None], np.ones(1, np.int32)) for click in clicks]
        decode = partial(self._networks.decode, embedding.placed, multimask=True)
        with ThreadPoolExecutor(usable_cores()) as pool:
            answers = list(pool.map(decode, prompts))
        return np.stack([masks for masks, _ in answers]), np.stack([scores for _, scores in answers])

    def enlarge(self, embedding: SamEmbedding, logits: Logits, size: Size, threshold: float = 0.0) -> Mask:
        side = self._networks.side
        resized = frame.resized_size(embedding.size, side)
        return frame.logits_to_mask(logits[0] - threshold, side, resized, size)

    def _embedding(self, maps: Maps, size: Size) -> SamEmbedding:
        placed = self._networks.place(maps)
        for each in maps.values():
            each.flags.writeable = False
        return SamEmbedding(maps, size, placed)
