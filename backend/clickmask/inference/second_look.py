"""A second look at a small object: the segmenter sees a crop around it, in which it is larger, as an image of
its own. For segmenters that see whole images at one size, as SAM does; `builtin` looks twice by itself."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from clickmask.inference import driver
from clickmask.inference.refinement import Refinement
from clickmask.masks.controls import Controls
from clickmask.masks.regions import mask_box, mask_iou
from clickmask.types import EmbeddingT, Image, Mask, Prediction, Prompt, Segmenter, Size

MARGIN = 1.7  # least side of a crop, in sides of the object in it
MIN_SIDE_PX = 256  # of a crop: SAM enlarges it to 1024, and finds nothing in what is enlarged more
SEEN_PX = 1024  # long side at which SAM sees an image: of a smaller one, a crop shows nothing new
STEPS_PER_DOUBLING = 2  # of the sides of crops
STEPS_PER_SIDE = 8  # of the places of crops
MAX_SHARE = 0.5  # of the image's long side; a larger crop shows little more


class Crop(NamedTuple):
    """A part of an image, in whole pixels. Sides and places are steps of a grid, so that the next click on
    the same object finds the embedding of the same crop."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> Size:
        return self.y1 - self.y0, self.x1 - self.x0

    def digest(self, of: str) -> str:
        """The digest of the crop of the image with the digest `of`."""
        return f"{of}-{self.x0}-{self.y0}-{self.x1}-{self.y1}"

    def cut(self, image: Image) -> Image:
        pixels = image.pixels[self.y0 : self.y1, self.x0 : self.x1].copy()
        pixels.flags.writeable = False
        return Image(pixels, self.digest(image.digest))

    def of_mask(self, mask: Mask) -> Mask:
        return mask[self.y0 : self.y1, self.x0 : self.x1]

    def of_prompt(self, prompt: Prompt, mask: Mask | None) -> Prompt:
        """`prompt` in the crop, which holds all of it but background points, with `mask` of the crop."""
        width, height = self.x1 - self.x0, self.y1 - self.y0
        foreground, background = (
            tuple((x - self.x0, y - self.y0) for x, y in points)
            for points in (prompt.foreground, prompt.background)
        )
        background = tuple((x, y) for x, y in background if 0 <= x <= width and 0 <= y <= height)
        box = prompt.box
        if box is not None:
            box = box[0] - self.x0, box[1] - self.y0, box[2] - self.x0, box[3] - self.y0
        return Prompt(foreground, background, box, mask)


def crop_around(mask: Mask, prompt: Prompt) -> Crop | None:
    """The crop around a mask of the whole image and its prompt; None if it would show too little that is
    new."""
    height, width = mask.shape
    if max(height, width) <= SEEN_PX:
        return None
    corners = list(prompt.foreground)
    for box in (mask_box(mask), prompt.box):
        corners += [box[:2], box[2:]] if box else []
    if not corners:
        return None
    xs, ys = zip(*corners, strict=True)
    least = max(MARGIN * max(max(xs) - min(xs), max(ys) - min(ys)), MIN_SIDE_PX)
    step = math.ceil(STEPS_PER_DOUBLING * math.log2(least / MIN_SIDE_PX))
    side = round(MIN_SIDE_PX * 2 ** (step / STEPS_PER_DOUBLING))
    if side > MAX_SHARE * max(width, height):
        return None
    grid = side / STEPS_PER_SIDE
    edges: list[tuple[int, int]] = []
    for values, length in ((xs, width), (ys, height)):
        low = round(round(((min(values) + max(values) - side) / 2) / grid) * grid)
        low = max(0, min(low, length - side))
        edges.append((low, min(low + side, length)))
    return Crop(edges[0][0], edges[1][0], edges[0][1], edges[1][1])


def decode(
    segmenter: Segmenter[EmbeddingT],
    refinement: Refinement,
    embedding: EmbeddingT,
    image: Image,
    prompt: Prompt,
    controls: Controls,
) -> list[Prediction]:
    """What a workbench proposes, without one: predictions, best first, as `controls` ask. Crops are encoded
    each time."""
    found = refinement.decode(segmenter, embedding, prompt, image.digest, image.size)
    if controls.second_look:
        embed = partial(encode_crop, segmenter, image)
        found[0] = look_again(segmenter, prompt, found[0], embed)
    return [controls.applied(each) for each in found]


def look_again(
    segmenter: Segmenter[EmbeddingT],
    prompt: Prompt,
    first: Prediction,
    embed: Callable[[Crop], EmbeddingT],
) -> Prediction:
    """`first`, the answer to `prompt` in the whole image, or if its object is small there, the answer in a
    crop around it that is most like it, unless that is empty. `embed` gives the embedding of a crop. Raises
    what that raises.

    Clicks after the first correct a mask, so that `first` goes along with them. With one click or a box alone
    it would hold the segmenter to its coarse outline.
    """
    if getattr(segmenter, "looks_closer", False):
        return first
    crop = crop_around(first.mask, prompt)
    if crop is None:
        return first
    before = crop.of_mask(first.mask)
    marks = len(prompt.foreground) + len(prompt.background) + (prompt.box is not None)
    corrects = (marks > 1 or prompt.mask is not None) and before.any()
    inside = crop.of_prompt(prompt, before if corrects else None)
    if not (inside.foreground or inside.box or inside.mask is not None):
        return first
    found = driver.decode(segmenter, embed(crop), inside, crop.size)
    best = max(found, key=lambda each: each.score + mask_iou(each.mask, before))
    if not best.mask.any():  # what the first look found is more than nothing
        return first

    def paste() -> Mask:
        mask = np.zeros(first.mask.shape, np.bool_)
        mask[crop.y0 : crop.y1, crop.x0 : crop.x1] = best.mask
        return mask

    return Prediction(paste, best.score, best.segmenter)


def encode_crop(segmenter: Segmenter[EmbeddingT], image: Image, crop: Crop) -> EmbeddingT:
    """The embedding of a part of the image. Raises what `driver.encode` raises."""
    return driver.encode(segmenter, crop.cut(image))
