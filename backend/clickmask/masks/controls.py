"""Controls of the result: what an annotator may ask of any segmenter's mask. By default nothing is asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from clickmask.errors import InvalidInput
from clickmask.masks.regions import as_bytes, box_slices, fill_pinholes, keep_parts
from clickmask.types import Mask, Prediction

MAX_SMOOTH = 64.0  # px
KINDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "smooth": (int, float),
        "fill_holes": (int,),
        "min_part_share": (int, float),
        "max_parts": (int,),
        "second_look": (bool,),
    }
)  # of JSON's values, by the name of a wish
_WORDS: Mapping[tuple[type, ...], str] = {
    (int, float): "a number",
    (int,): "a whole number",
    (bool,): "true or false",
}


@dataclass(frozen=True)
class Controls:
    """Wishes about a mask: smoothed edges, then filled holes, then only its larger parts.

    In this order each wish holds of the result: filling may join parts, and leaving parts out makes holes
    only larger. Raises InvalidInput for a number out of its range.
    """

    smooth: float = 0.0  # px; radius of the disc in which the majority decides about a pixel, 0 to MAX_SMOOTH
    fill_holes: int = 0  # px; holes of at most this area become part of the mask
    min_part_share: float = 0.0  # of the mask's area, 0 to 1; smaller parts are left out
    max_parts: int | None = None  # the largest ones; at least 1
    second_look: bool = False  # at a small object, before all else: `clickmask.inference.second_look`

    def __post_init__(self) -> None:
        if not 0 <= self.smooth <= MAX_SMOOTH:
            raise InvalidInput(f"smooth is a radius from 0 to {MAX_SMOOTH:g} px, not {self.smooth}")
        if self.fill_holes < 0:
            raise InvalidInput(f"fill_holes is an area in px, not {self.fill_holes}")
        if not 0 <= self.min_part_share <= 1:
            raise InvalidInput(f"min_part_share is from 0 to 1, not {self.min_part_share}")
        if self.max_parts is not None and self.max_parts < 1:
            raise InvalidInput(f"max_parts is at least 1, not {self.max_parts}")

    def apply(self, mask: Mask) -> Mask:
        """A mask of the same size with these wishes fulfilled; `mask` itself without wishes."""
        if self.smooth:
            mask = smooth_mask(mask, self.smooth)
        if self.fill_holes:
            mask = fill_pinholes(mask, self.fill_holes)
        if self.min_part_share or self.max_parts is not None:
            mask = keep_parts(mask, self.min_part_share, self.max_parts)
        return mask

    def applied(self, prediction: Prediction) -> Prediction:
        """The prediction with these wishes fulfilled once its mask is read."""
        return Prediction(lambda: self.apply(prediction.mask), prediction.score, prediction.segmenter)

    def wishes(self) -> dict[str, object]:
        """What is asked for, by name, as `controls_of` takes it; nothing by default."""
        return {name: value for name, value in asdict(self).items() if value != getattr(AS_IT_IS, name)}


AS_IT_IS = Controls()


def controls_of(given: Mapping[str, object]) -> Controls:
    """The controls with these wishes, values of JSON by name. Raises InvalidInput."""
    for name, value in given.items():
        if name not in KINDS:
            raise InvalidInput(f"there is no control {name[:40]!r}; there are: {', '.join(KINDS)}")
        if type(value) not in KINDS[name]:
            raise InvalidInput(f"{name} is {_WORDS[KINDS[name]]}, not {json.dumps(value)[:40]}")
    return Controls(**dict[str, Any](given))


def read_controls(words: Sequence[str]) -> Controls:
    """The controls of `words` such as smooth=2. Raises InvalidInput."""
    given: dict[str, object] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in given:
            raise InvalidInput(f"{name[:40]} is there twice")
        try:
            given[name] = json.loads(value)
        except ValueError as error:
            raise InvalidInput(f"{word[:40]!r} is not a control such as smooth=2") from error
    return controls_of(given)


def smooth_mask(mask: Mask, radius: float) -> Mask:
    """The mask in which each pixel is what most pixels of the disc of `radius` px around it are.

    The image goes on beyond its edges as it is at them. A pixel whose disc lies all inside or all outside
    the mask stays as it is, and a straight edge too.
    """
    reach = int(radius)
    rows, columns = (slice(max(0, each.start - reach), each.stop + reach) for each in box_slices(mask))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.float32)  # of an odd number of pixels: no draw
    inside = as_bytes(mask[rows, columns])
    smooth = np.zeros_like(mask)
    if inside.size:
        votes = cv2.filter2D(inside, cv2.CV_32F, disc, borderType=cv2.BORDER_REPLICATE)
        smooth[rows, columns] = votes > disc.sum() / 2
    return smooth
