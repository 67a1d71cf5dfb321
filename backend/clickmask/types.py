"""The vocabulary. All coordinates in clickmask are continuous pixels of the upright (EXIF-transposed) image:
origin at the outer corner of the top-left pixel, x right, y down; pixel (r, c) covers [c, c+1] x [r, r+1].
Sizes are (height, width), points (x, y), boxes (x0, y0, x1, y1). A pixel is in a polygon if its centre is."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clickmask.errors import InvalidInput

T = TypeVar("T")
Pixels = NDArray[np.uint8]  # (H, W, 3), RGB, upright
Mask = NDArray[np.bool_]  # (H, W), whole image
Logits = NDArray[np.float32]  # (n, h, w), masks before thresholding at 0, in a segmenter's own frame
Ring = NDArray[np.float64]  # (N, 2) of (x, y); outer rings and holes have opposite signed area
Size = tuple[int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageRef:
    """The address of an image: data:, http(s)://, file:// or a known digest. `headers` go only to the origin
    of `uri`. They may hold a token, so they are never compared, printed or stored."""

    uri: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Image:
    """Upright RGB pixels, read-only, and the digest that identifies them and their decoder."""

    pixels: Pixels
    digest: str

    @property
    def size(self) -> Size:
        height, width = self.pixels.shape[:2]
        return height, width


@dataclass(frozen=True, eq=False)
class Prompt:
    """The input of an annotator: points, at most one box, at most one mask of the whole image.

    Raises InvalidInput without anything positive (background points only say where the object is not), for a
    number that is not finite, and for a box without area.
    """

    foreground: tuple[Point, ...] = ()
    background: tuple[Point, ...] = ()
    box: Box | None = None
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if not self.foreground and self.box is None and self.mask is None:
            raise InvalidInput("a prompt needs a foreground point, a box or a mask")
        for point in self.foreground + self.background:
            if len(point) != 2 or not all(map(math.isfinite, point)):
                raise InvalidInput(f"point {point} is not a pair of finite numbers")
        if self.box is not None:
            if len(self.box) != 4 or not all(map(math.isfinite, self.box)):
                raise InvalidInput(f"box {self.box} is not four finite numbers")
            x0, y0, x1, y1 = self.box
            if not (x0 < x1 and y0 < y1):
                raise InvalidInput(f"box {self.box} has no area; it is (x0, y0, x1, y1)")
        if self.mask is not None and self.mask.ndim != 2:
            raise InvalidInput(f"a mask prompt has two dimensions, not {self.mask.ndim}")

    def require_inside(self, size: Size) -> None:
        """Raise InvalidInput unless the whole prompt lies in an image of `size`, edges included."""
        height, width = size
        for x, y in self.foreground + self.background:
            if not (0 <= x <= width and 0 <= y <= height):
                raise InvalidInput(f"point ({x:g}, {y:g}) lies outside the {width}x{height} image")
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 and x1 <= width and 0 <= y0 and y1 <= height):
                raise InvalidInput(f"box {self.box} lies outside the {width}x{height} image")
        if self.mask is not None and self.mask.shape != size:
            raise InvalidInput(f"a mask of shape {self.mask.shape} does not fit the {width}x{height} image")


class Prediction:
    """One immutable answer of a segmenter. An empty `mask` means that nothing was found.

    A function may stand in for the mask, since most candidates are never looked at. The first thread that
    reads `mask` calls it, once. Without `keep` each reading calls it: for hundreds of masks of a large image,
    which nobody could hold at once.
    """

    __slots__ = ("_keep", "_lock", "_mask", "score", "segmenter")

    def __init__(
        self, mask: Mask | Callable[[], Mask], score: float, segmenter: str, *, keep: bool = True
    ) -> None:
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score {score} is outside [0, 1]")
        self._mask = mask
        self._keep = keep
        self._lock = threading.Lock()
        self.score: Final = score  # the segmenter's own estimate of the IoU, in [0, 1]
        self.segmenter: Final = segmenter

    @property
    def mask(self) -> Mask:
        with self._lock:
            if not callable(self._mask):
                return self._mask
            mask = self._mask()
            if self._keep:
                self._mask = mask
            return mask


def one_by_one(predictions: list[T]) -> Iterator[T]:
    """Each of the predictions, or of what holds one, which are taken out of the list: masks that were read
    are as large as the image, and several of a large one are too much at once."""
    predictions.reverse()
    while predictions:
        yield predictions.pop()


class Embedding(Protocol):
    """The result of `encode`: never mutated, and of a known size, so that a cache can be bounded."""

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class SamFeatures(Embedding, Protocol):
    """An embedding that a SAM decoder can read anywhere, for example in CVAT's page. `features` (256, 64, 64)
    are of the image scaled to 1024 px on its long side and padded below or on the right."""

    @property
    def features(self) -> NDArray[np.float32]: ...


EmbeddingT = TypeVar("EmbeddingT", bound=Embedding)


class Segmenter(Protocol[EmbeddingT]):
    """A promptable segmenter in two halves.

    The slow half sees only the image, so its result is computed once and kept. The fast half sees only
    that result and a prompt. Both MUST be stateless and callable from any thread: an object that
    remembers "the current image" hands one annotator another's mask. `decode` MUST give at least one
    prediction, best first, with masks of the whole image that the caller owns. It is only called with
    prompts that passed `Prompt.require_inside`. A text `runs_on`, runtime and device, is optional: a server
    shows it when it starts. So is a true `looks_closer`: it sees small objects in crops of its own accord.
    """

    @property
    def name(self) -> str: ...  # `family` or `family:variant`, as users write it

    def encode(self, image: Image) -> EmbeddingT: ...

    def decode(self, embedding: EmbeddingT, prompt: Prompt) -> list[Prediction]: ...


@runtime_checkable
class Refinable(Segmenter[EmbeddingT], Protocol[EmbeddingT]):
    """A segmenter that can correct its own previous mask.

    `decode_from` MUST be as stateless as `decode`. It gets the `logits` (1, h, w) of one earlier prediction
    from the same embedding, or None at the first step, and MUST NOT write to them. It gives the predictions,
    best first, and their logits (n, h, w) in order. `decode` MUST be `clickmask.inference.refinement.replay`.
    """

    def decode_from(
        self, embedding: EmbeddingT, prompt: Prompt, logits: Logits | None
    ) -> tuple[list[Prediction], Logits]: ...


@runtime_checkable
class GridPromptable(Segmenter[EmbeddingT], Protocol[EmbeddingT]):
    """A segmenter that can cheaply be clicked all over an image; its `Variant` says `sweeps`.

    `decode_clicks` answers N separate foreground points (N, 2) with logits (N, n, h, w) in the
    segmenter's frame and scores (N, n), both straight from the network. `enlarge` turns one of these
    logits, (1, h, w), into the whole-image mask of any `size` of the pixels above `threshold`.
    """

    def decode_clicks(
        self, embedding: EmbeddingT, points: NDArray[np.float64]
    ) -> tuple[Logits, NDArray[np.float32]]: ...

    def enlarge(self, embedding: EmbeddingT, logits: Logits, size: Size, threshold: float = 0.0) -> Mask: ...


@runtime_checkable
class Unprompted(Segmenter[EmbeddingT], Protocol[EmbeddingT]):
    """A segmenter that finds objects by itself; its `Variant` says their `labels`.

    `find` MUST give each object with one of these labels, best first, or an empty list, with masks as those
    of an `Annotator`.
    """

    def find(self, embedding: EmbeddingT) -> list[tuple[str, Prediction]]: ...


class Annotator(Protocol):
    """A model that labels a whole image by itself: no prompt, any number of objects.

    `annotate` MUST be callable from any thread and MUST NOT write to the image. It gives each object
    with its label, best first, or an empty list. A label MUST be one of `labels`. A mask MUST cover the
    whole image, MUST NOT be empty, and belongs to the caller.
    """

    @property
    def name(self) -> str: ...  # `family` or `family:variant`, as users write it

    @property
    def labels(self) -> tuple[str, ...]: ...

    def annotate(self, image: Image) -> list[tuple[str, Prediction]]: ...
