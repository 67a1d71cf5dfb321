"""Photographs and the masks of their objects, as tensors that fit a device's memory.

Reads two layouts. The pool's has `sets.json`, and per set `<set>/images/*.jpg`, `<set>/masks/*.png` (0: not
labelled; k: object k) and `<set>/index.json`. COCO's is a folder with an annotation file; see
`datasets.coco_reader`. Each image takes about 2 MB, whatever its size.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from clickmask.datasets.coco_reader import sample_objects
from clickmask.errors import InvalidRequest
from clickmask.types import Pixels

log = logging.getLogger(__name__)

SIDE = 512  # px, longest side of a stored image
PARTS = 256  # an object's code is 256 * its number + its part's number; both count from 1
HELD_OUT = 10  # one image in this many is for validation
NEVER_HELD_OUT = ("roadsigns", "class5")  # near duplicates: the network would have seen similar images
MIN_OBJECT_PX = 32  # px, of an object that gets crops around it
# Weights of images by set. These sets teach less about photographs than the others, which weigh 1.
SET_WEIGHTS: Mapping[str, float] = {
    "animals_openimages": 0.7,
    "animals_coco": 0.6,
    "facades": 0.5,
    "strawberry": 0.4,
    "mushrooms": 0.3,
    "roadsigns": 0.1,
    "class5": 0.1,
    "dsb_train": 0.3,
}

Codes = NDArray[np.int32]  # (h, w)


@dataclass(frozen=True)
class Photograph:
    """The files of one image. `objects` are its masks, or the file that contains all of them."""

    name: str
    group: str
    tier: str  # A, B or C, by how free the pool's photograph is; "" in other layouts
    picture: Path
    objects: Path | tuple[Any, ...]


class Extent(NamedTuple):
    number: int  # of the object
    box: tuple[int, int, int, int]  # x0, y0, x1, y1
    area: int  # px


@dataclass(frozen=True, eq=False)
class Pool:
    """Decoded photographs on a device, each at the top left of a square of SIDE."""

    photographs: Sequence[Photograph]
    pixels: Tensor  # (N, 3, SIDE, SIDE) uint8
    codes: Tensor  # (N, SIDE, SIDE) int32, see PARTS; 0 is not labelled
    sizes: Tensor  # (N, 2) of (height, width)
    boxes: Tensor  # (M, 4), one per object, in pixels of its square
    owners: Tensor  # (M,) the object's photograph
    numbers: Tensor  # (M,) the object's number in the photograph's codes
    chances: Tensor  # (M,) the object's chance of a crop around it

    def crop(self, owners: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1], zero outside, and codes (B, 1, S, S) of `owners` at `grid`."""
        pixels = self.pixels[owners].float() / 127.5 - 1
        images = functional.grid_sample(pixels, grid, mode="bilinear", align_corners=False)
        places = (grid + 1) * (SIDE / 2)  # (B, S, S, 2) of (x, y)
        inside = ((places >= 0) & (places < self.sizes[owners].flip(1)[:, None, None])).all(3)
        codes = self.codes[owners][:, None].float()  # whole numbers below 2^24 are exact
        codes = functional.grid_sample(codes, grid, mode="nearest", align_corners=False)
        return images * inside[:, None], codes


def find_photographs(folder: Path) -> list[Photograph]:
    """All labelled images in `folder`, in either layout. Raises InvalidRequest if there are none."""
    found: list[Photograph] = []
    if (folder / "sets.json").is_file():
        for group in json.loads((folder / "sets.json").read_text()):
            images, masks = folder / group / "images", folder / group / "masks"
            for row in json.loads((folder / group / "index.json").read_text())["images"]:
                name, tier = str(row["name"]), str(row.get("tier", ""))
                found.append(Photograph(name, group, tier, images / f"{name}.jpg", masks / f"{name}.png"))
    else:
        for picture, objects in groupby(sample_objects(folder).objects, key=lambda each: each.picture):
            found.append(Photograph(picture.stem, folder.name, "", picture, tuple(objects)))
    if not found:
        raise InvalidRequest(f"there are no labelled images in {folder.name}")
    return found


def held_out(photograph: Photograph) -> bool:
    """Whether it is for validation. Its name decides, so that all trainings and copies agree."""
    if photograph.group in NEVER_HELD_OUT:
        return False
    digest = hashlib.sha256(photograph.name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT == 0


def load_pool(photographs: Sequence[Photograph], device: torch.device) -> Pool:
    """Decode all photographs on several threads."""
    count = len(photographs)
    pixels = torch.zeros((count, 3, SIDE, SIDE), dtype=torch.uint8)
    codes = torch.zeros((count, SIDE, SIDE), dtype=torch.int32)
    sizes = torch.zeros((count, 2), dtype=torch.long)

    def load(number: int) -> list[Extent]:
        image, code = read(photographs[number])
        height, width = code.shape
        pixels[number, :, :height, :width] = torch.tensor(image.transpose(2, 0, 1))
        codes[number, :height, :width] = torch.tensor(code)
        sizes[number] = torch.tensor([height, width])
        return [extent for extent in _extents(code // PARTS) if extent.area >= MIN_OBJECT_PX]

    with ThreadPoolExecutor() as threads:
        extents = list(threads.map(load, range(count)))
    images = Counter(photograph.group for photograph in photographs)
    chances: list[float] = []
    for photograph, found in zip(photographs, extents, strict=True):
        of_image = SET_WEIGHTS.get(photograph.group, 1.0) / images[photograph.group] ** 0.5
        roots = [extent.area**0.5 for extent in found]
        chances.extend(of_image * root / sum(roots) for root in roots)
    owners = [owner for owner, found in enumerate(extents) for _ in found]
    objects = list(chain.from_iterable(extents))
    log.info("%d photographs with %d objects", count, len(objects))
    return Pool(
        photographs,
        pixels.to(device),
        codes.to(device),
        sizes.to(device),
        torch.tensor([extent.box for extent in objects], dtype=torch.float32, device=device),
        torch.tensor(owners, device=device),
        torch.tensor([extent.number for extent in objects], device=device),
        torch.tensor(chances, dtype=torch.float32, device=device),
    )


def read(photograph: Photograph) -> tuple[Pixels, Codes]:
    """RGB and codes with a longest side of at most SIDE. Raises InvalidRequest if it is not a picture."""
    image = cv2.imread(str(photograph.picture), cv2.IMREAD_COLOR)
    if image is None:
        raise InvalidRequest(f"{photograph.picture.name} cannot be read")
    pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if isinstance(photograph.objects, Path):
        ids = cv2.imread(str(photograph.objects), cv2.IMREAD_UNCHANGED)
        if ids is None or ids.shape != pixels.shape[:2]:
            raise InvalidRequest(f"{photograph.objects.name} is no mask of {photograph.picture.name}")
        ids = ids.astype(np.uint16)
    else:
        ids = np.zeros(pixels.shape[:2], np.uint16)
        masks = [found.mask() for found in photograph.objects]
        masks.sort(key=lambda mask: -int(mask.sum()))  # smaller objects lie on top of larger ones
        for number, mask in enumerate(masks, 1):
            if mask.shape == ids.shape:  # the masks of an image that was turned later have another shape
                ids[mask] = number
    scale = SIDE / max(ids.shape)
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST).astype(np.uint16)
    codes = np.zeros(ids.shape, np.int32)
    for number, (x0, y0, x1, y1), _ in _extents(ids.astype(np.int32)):
        window = slice(y0, y1), slice(x0, x1)
        own = ids[window] == number
        parts = np.asarray(cv2.connectedComponents(own.view(np.uint8), connectivity=4)[1], np.int32)
        codes[window][own] = number * PARTS + np.minimum(parts[own], PARTS - 1)
    return np.asarray(pixels, np.uint8), codes


def _extents(ids: Codes) -> Iterator[Extent]:
    """The extent of each number in `ids` except 0."""
    rows, columns = np.nonzero(ids)
    if not len(rows):
        return
    values = ids[rows, columns]
    order = np.argsort(values, kind="stable")
    numbers, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    places = np.stack([columns[order], rows[order]], 1)
    lows, highs = np.minimum.reduceat(places, starts), np.maximum.reduceat(places, starts) + 1
    for number, low, high, area in zip(numbers, lows, highs, counts, strict=True):
        x0, y0, x1, y1 = map(int, (*low, *high))
        yield Extent(int(number), (x0, y0, x1, y1), int(area))
