"""Training examples, made on the device in batches: crops, colours, pasted objects, drawn scenes.

A crop is a square around one object of an image, near or far, with all labelled objects in it. Objects of
other crops and cut-out drawings are pasted over some of them as separate objects (Ghiasi et al., "Simple
Copy-Paste", CVPR 2021). Drawn scenes, flat shapes on noise and gradients, replace some crops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from clickmask.training.click.pool import PARTS, SIDE, Pool

CUTOUT_SIDE = 192  # px
PASTED, CUTOUT = 60000, 60001  # object numbers that occur in no image
WHOLE = 0.35  # share of crops that show the whole image
NEAREST, FURTHEST = 1.05, 5.0  # sides of the other crops, in sides of the object
MIN_CROP_PX = 96.0  # in pixels of the image
PASTE, PASTE_CUTOUT, DRAWN = 0.25, 0.15, 0.05  # shares of crops
MIN_COVER, MAX_COVER = 0.001, 0.8  # share of a crop that a requested object covers
PART_ONLY = 0.5  # share of multi-piece objects of which only the piece pointed at is requested
SHAPES = 4  # per drawn scene, later ones on top
FIRST = 60010  # object number of the first shape
CORNERS = (3, 4, 4, 5, 6, 0)  # 0 is an ellipse


class Draw(Protocol):
    """A source of uniform random numbers in [0, 1)."""

    def __call__(self, *shape: int) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Crops:
    images: torch.Tensor  # (B, 3, S, S) in [-1, 1], zero outside the image
    targets: torch.Tensor  # (B, P, S / 2, S / 2) of 0 and 1: P objects per crop


class Sampler:
    """A source of crops from a pool. All random numbers come from `noise`."""

    def __init__(self, pool: Pool, cutouts: torch.Tensor | None, noise: torch.Generator) -> None:
        self.pool = pool
        self._cutouts = cutouts  # (N, 4, CUTOUT_SIDE, CUTOUT_SIDE) uint8, RGBA
        self._noise = noise

    def sample(self, count: int, side: int, objects: int) -> Crops:
        pool, device = self.pool, self.pool.pixels.device
        chosen = torch.multinomial(pool.chances, count, replacement=True, generator=self._noise)
        owners = pool.owners[chosen]
        sizes = pool.sizes[owners]
        grid = self._grid(pool.boxes[chosen], sizes, side)
        pixels = pool.pixels[owners].float() / 127.5 - 1
        images = functional.grid_sample(pixels, grid, mode="bilinear", align_corners=False)
        places = (grid + 1) * (SIDE / 2)  # (B, S, S, 2) of (x, y)
        inside = ((places >= 0) & (places < sizes.flip(1)[:, None, None])).all(3)
        images = images * inside[:, None]
        found = pool.codes[owners][:, None].float()  # whole numbers below 2^24 are exact
        codes = functional.grid_sample(found, grid, mode="nearest", align_corners=False)
        drawn = math.floor(count * DRAWN + float(self._draw(1)))
        if drawn:
            images[:drawn], codes[:drawn] = drawn_scenes(drawn, side, self._noise, device)
        images, codes = self._paste_object(images, codes)
        if self._cutouts is not None:
            images, codes = self._paste_cutout(images, codes, self._cutouts)
        targets = self._objects(codes[:, 0], objects)
        return Crops(self._recoloured(images), targets)

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self._noise, device=self.pool.pixels.device)

    def _grid(self, boxes: torch.Tensor, sizes: torch.Tensor, side: int) -> torch.Tensor:
        """Grid (B, side, side, 2) for grid_sample: the place of each crop pixel in its square of SIDE."""
        count = len(boxes)
        extents = boxes[:, 2:] - boxes[:, :2]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        longest = sizes.amax(1).float()
        factor = torch.exp(self._draw(count) * math.log(FURTHEST / NEAREST)) * NEAREST
        near = (extents.amax(1) * factor).clamp(min=MIN_CROP_PX).minimum(1.25 * longest)
        near_centres = centres + (self._draw(count, 2) - 0.5) * 0.5 * near[:, None]
        whole = self._draw(count) < WHOLE
        sides = torch.where(whole, longest * (1 + 0.1 * self._draw(count)), near)
        middles = sizes.flip(1) / 2.0
        centres = torch.where(whole[:, None], middles, near_centres)
        stretch = torch.exp((self._draw(count) - 0.5) * 0.3)  # aspect ratio
        turn = torch.where(self._draw(count) < 0.3, (self._draw(count) - 0.5) * 0.7, torch.zeros_like(sides))
        mirror = torch.where(self._draw(count) < 0.5, -1.0, 1.0)
        upside = torch.where(self._draw(count) < 0.05, -1.0, 1.0)
        half_x, half_y = sides / 2 * stretch, sides / 2 / stretch
        rows = [
            [mirror * half_x * turn.cos(), -half_y * turn.sin() * upside, centres[:, 0]],
            [mirror * half_x * turn.sin(), half_y * turn.cos() * upside, centres[:, 1]],
        ]
        theta = torch.stack([torch.stack(row, 1) for row in rows], 1) / (SIDE / 2)
        theta[:, :, 2] -= 1
        return functional.affine_grid(theta, [count, 3, side, side], align_corners=False)

    def _placed(self, count: int, least: float, most: float, side: int) -> torch.Tensor:
        """Grid for grid_sample that turns, moves and shrinks a square to `least`..`most` of the crop."""
        scale = least + (most - least) * self._draw(count)
        turn = (self._draw(count) - 0.5) * 1.2
        mirror = torch.where(self._draw(count) < 0.5, -1.0, 1.0)
        moved = (self._draw(count, 2) - 0.5) * 1.5
        rows = [
            [mirror * turn.cos() / scale, -turn.sin() / scale],
            [mirror * turn.sin() / scale, turn.cos() / scale],
        ]
        linear = torch.stack([torch.stack(row, 1) for row in rows], 1)
        shift = -(linear @ moved[:, :, None])
        return functional.affine_grid(
            torch.cat([linear, shift], 2), [count, 3, side, side], align_corners=False
        )

    def _paste_object(self, images: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Paste an object from the previous crop of the batch over this one."""
        count, side = len(images), images.shape[-1]
        owned = codes[:, :, :: side // 48, :: side // 48].flatten(1)  # one of the objects in the crop
        lottery = self._draw(*owned.shape) * (owned > 0)
        code = owned.gather(1, lottery.argmax(1, keepdim=True))
        mask = (torch.div(codes, PARTS, rounding_mode="floor") == (code // PARTS)[:, :, None, None]).float()
        mask = mask * (code > 0)[:, :, None, None]
        grid = self._placed(count, 0.4, 1.2, side)
        layer = torch.cat([images, mask], 1).roll(1, 0)
        layer = functional.grid_sample(layer, grid, mode="bilinear", align_corners=False)
        when = self._draw(count) < PASTE
        return _over(images, codes, layer[:, :3], layer[:, 3:], PASTED, when)

    def _paste_cutout(
        self, images: torch.Tensor, codes: torch.Tensor, cutouts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, side = len(images), images.shape[-1]
        chosen = (self._draw(count) * len(cutouts)).long()
        grid = self._placed(count, 0.12, 0.75, side)
        layer = functional.grid_sample(cutouts[chosen].float(), grid, mode="bilinear", align_corners=False)
        when = self._draw(count) < PASTE_CUTOUT
        return _over(images, codes, layer[:, :3] / 127.5 - 1, layer[:, 3:] / 255, CUTOUT, when)

    def _objects(self, codes: torch.Tensor, objects: int) -> torch.Tensor:
        """Masks (B, P, S / 2, S / 2) of objects in `codes` (B, S, S), drawn by the root of their area."""
        count, side = len(codes), codes.shape[-1]
        step = side // 64
        seen = codes[:, step // 2 :: step, step // 2 :: step].flatten(1).long()  # (B, n)
        ids = seen // PARTS
        areas = torch.zeros((count, 65536), device=codes.device)
        areas.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float32))
        area = areas.gather(1, ids)
        total = ids.shape[1]
        wanted = (ids > 0) & (area >= MIN_COVER * total) & (area <= MAX_COVER * total)
        weights = torch.where(wanted, area.clamp(min=1) ** -0.5, torch.zeros_like(area))
        weights = weights + (weights.sum(1, keepdim=True) == 0) * (ids > 0) + 1e-9
        places = torch.multinomial(weights, objects, replacement=True, generator=self._noise)
        code = seen.gather(1, places)[:, :, None, None].float()  # (B, P, 1, 1)
        whole = torch.div(codes, PARTS, rounding_mode="floor")[:, None] == torch.div(
            code, PARTS, rounding_mode="floor"
        )
        part = codes[:, None] == code
        only = (self._draw(count, objects) < PART_ONLY)[:, :, None, None]
        masks = torch.where(only, part, whole) & (code > 0)
        return (functional.avg_pool2d(masks.float(), 2) >= 0.5).float()

    def _recoloured(self, images: torch.Tensor) -> torch.Tensor:
        """Vary brightness, contrast, saturation, tint, blur and noise. Some crops turn grey or negative."""
        count = len(images)

        def draw(width: float) -> torch.Tensor:
            return ((self._draw(count) * 2 - 1) * width)[:, None, None, None]

        inside = (images.abs().amax(1, keepdim=True) > 0).float()
        grey = images.mean(1, keepdim=True)
        saturation = torch.where(draw(1).abs() < 0.08, torch.zeros_like(draw(1)), torch.exp(draw(0.6)))
        changed = grey + (images - grey) * saturation
        tint = (self._draw(count, 3) * 2 - 1)[:, :, None, None] * 0.15
        changed = changed * torch.exp(draw(0.45)) + draw(0.3) + tint
        changed = torch.where(draw(1) < -0.9, -changed, changed)
        side = images.shape[-1]
        small = functional.interpolate(changed, size=side // 2, mode="bilinear", antialias=True)
        soft = functional.interpolate(small, size=side, mode="bilinear")
        changed = torch.where(draw(1).abs() < 0.12, soft, changed)
        speckled = torch.randn(images.shape, generator=self._noise, device=images.device)
        changed = changed + speckled * torch.where(
            draw(1).abs() < 0.3, draw(0.08).abs(), torch.zeros_like(draw(1))
        )
        return changed.clamp(-1, 1) * inside


def load_cutouts(folder: Path, device: torch.device, most: int = 4000) -> torch.Tensor:
    """Outlined drawings in `folder`, as RGBA (N, 4, CUTOUT_SIDE, CUTOUT_SIDE) uint8."""
    found: list[NDArray[np.uint8]] = []
    for path in sorted(folder.rglob("*.png")):
        drawing = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if drawing is None or drawing.ndim != 3 or drawing.shape[2] != 4:
            continue
        opaque = drawing[..., 3] > 127
        if not 0.1 < opaque.mean() < 0.97:  # scattered strokes, or a picture without an outline
            continue
        scale = (CUTOUT_SIDE - 4) / max(opaque.shape)
        size = (max(1, round(opaque.shape[1] * scale)), max(1, round(opaque.shape[0] * scale)))
        small = cv2.resize(drawing, size, interpolation=cv2.INTER_AREA)
        square = np.zeros((CUTOUT_SIDE, CUTOUT_SIDE, 4), np.uint8)
        top, left = (CUTOUT_SIDE - size[1]) // 2, (CUTOUT_SIDE - size[0]) // 2
        square[top : top + size[1], left : left + size[0]] = small[..., [2, 1, 0, 3]]
        found.append(np.ascontiguousarray(square.transpose(2, 0, 1)))
        if len(found) == most:
            break
    return torch.tensor(np.stack(found), device=device)


def _over(
    images: torch.Tensor,
    codes: torch.Tensor,
    layer: torch.Tensor,
    alpha: torch.Tensor,
    number: int,
    when: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste `layer` (B, 3, S, S) over the crops in `when` (B,), as object `number` in opaque areas."""
    alpha = alpha.clamp(0, 1) * when[:, None, None, None]
    covered = torch.where(alpha > 0.5, torch.full_like(codes, float(number * PARTS + 1)), codes)
    return images * (1 - alpha) + layer * alpha, covered


def drawn_scenes(
    count: int, side: int, noise: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn images (B, 3, S, S) in [-1, 1], and the codes (B, 1, S, S) of their shapes."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=noise, device=device)

    axis = torch.linspace(-1, 1, side, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    slope = (draw(count, 3, 2, 1, 1) - 0.5) * (draw(count, 1, 1, 1, 1) < 0.5)
    images = draw(count, 3, 1, 1) * 2 - 1 + slope[:, :, 0] * x + slope[:, :, 1] * y
    codes = torch.zeros((count, 1, side, side), device=device)
    corners = torch.tensor(CORNERS, device=device)
    for number in range(SHAPES):
        inside = _polygons(x, y, corners[(draw(count) * len(CORNERS)).long()], draw)
        inside &= (draw(count) < (1.0 if number == 0 else 0.7))[:, None, None, None]
        colour = (draw(count, 3, 1, 1) * 2 - 1).expand_as(images)
        images = torch.where(inside, colour, images)
        codes = torch.where(inside, torch.full_like(codes, float((FIRST + number) * PARTS + 1)), codes)
    speckled = torch.randn(images.shape, generator=noise, device=device)
    return (images + speckled * 0.2 * draw(count, 1, 1, 1)).clamp(-1, 1), codes


def _polygons(x: torch.Tensor, y: torch.Tensor, corners: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Masks (B, 1, S, S) of regular polygons with `corners` (B,) corners, stretched, turned and moved."""
    count = len(corners)
    centres, angle = (draw(count, 2) - 0.5) * 1.6, draw(count) * (2 * math.pi)
    upright = draw(count) < 0.4
    angle = torch.where(upright, torch.zeros_like(angle), angle)
    sizes = 0.06 + 0.5 * draw(count, 2) ** 1.5
    across, down = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u = (across * cosine + down * sine) / sizes[:, 0, None, None]
    v = (down * cosine - across * sine) / sizes[:, 1, None, None]
    furthest = torch.full_like(u, -9.0)
    for number in range(int(corners.max())):
        turn = number * 2 * math.pi / corners.clamp(min=1)
        edge = u * turn.cos()[:, None, None] + v * turn.sin()[:, None, None]
        furthest = torch.where((number < corners)[:, None, None], torch.maximum(furthest, edge), furthest)
    inside = torch.where((corners == 0)[:, None, None], u**2 + v**2 < 1, furthest < 1)
    return inside[:, None]
