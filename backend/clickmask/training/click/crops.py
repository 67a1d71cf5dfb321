"""Training examples, made on the device in batches: crops, colours, pasted objects, drawn scenes.

A crop is a square around one object of an image, near or far, with all labelled objects in it. Objects of
other crops and cut-out drawings are pasted over some of them as separate objects (Ghiasi et al., "Simple
Copy-Paste", CVPR 2021). Drawn scenes, flat shapes on noise and gradients, replace some crops.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
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


class Sampler:
    """A source of crops from a pool. All random numbers come from `noise`."""

    def __init__(self, pool: Pool, cutouts: Tensor | None, noise: torch.Generator) -> None:
        self.pool, self.noise = pool, noise
        self._cutouts = cutouts  # (N, 4, CUTOUT_SIDE, CUTOUT_SIDE) uint8, RGBA

    def sample(self, count: int, side: int, objects: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1], zero outside, and targets (B, P, S / 2, S / 2) of 0 and 1 for P
        objects per crop."""
        pool = self.pool
        chosen = torch.multinomial(pool.chances, count, replacement=True, generator=self.noise)
        owners = pool.owners[chosen]
        images, codes = pool.crop(owners, self._grid(pool.boxes[chosen], pool.sizes[owners], side))
        drawn = math.floor(count * DRAWN + float(self._draw(1)))
        if drawn:
            images[:drawn], codes[:drawn] = drawn_scenes(drawn, side, self.noise, images.device)
        # over some crops, an object that is seen in the previous crop of the batch
        owned = codes[:, :, :: side // 48, :: side // 48].flatten(1)
        lottery = self._draw(*owned.shape) * (owned > 0)
        code = owned.gather(1, lottery.argmax(1, keepdim=True))[:, :, None, None]
        opaque = (codes // PARTS == code // PARTS) & (code > 0)
        layer = self._placed(torch.cat([images, opaque.float()], 1).roll(1, 0), 0.4, 1.2, side)
        images, codes = self._paste(images, codes, layer, PASTED, PASTE)
        if self._cutouts is not None:
            cutouts = self._cutouts[(self._draw(count) * len(self._cutouts)).long()].float()
            layer = self._placed(cutouts, 0.12, 0.75, side)
            layer = torch.cat([layer[:, :3] / 127.5 - 1, layer[:, 3:] / 255], 1)
            images, codes = self._paste(images, codes, layer, CUTOUT, PASTE_CUTOUT)
        targets = self._objects(codes[:, 0], objects)
        return self._recoloured(images), targets

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.noise, device=self.pool.pixels.device)

    def _grid(self, boxes: Tensor, sizes: Tensor, side: int) -> Tensor:
        """Grid (B, side, side, 2) for grid_sample: the place of each crop pixel in its square of SIDE."""
        count = len(boxes)
        extents = boxes[:, 2:] - boxes[:, :2]
        longest = sizes.amax(1).float()
        factor = torch.exp(self._draw(count) * math.log(FURTHEST / NEAREST)) * NEAREST
        near = (extents.amax(1) * factor).clamp(min=MIN_CROP_PX).minimum(1.25 * longest)
        near_centres = (boxes[:, :2] + boxes[:, 2:]) / 2 + (self._draw(count, 2) - 0.5) * 0.5 * near[:, None]
        whole = self._draw(count) < WHOLE
        sides = torch.where(whole, longest * (1 + 0.1 * self._draw(count)), near)
        centres = torch.where(whole[:, None], sizes.flip(1) / 2.0, near_centres)
        stretch = torch.exp((self._draw(count) - 0.5) * 0.3)  # aspect ratio
        turn = torch.where(self._draw(count) < 0.3, (self._draw(count) - 0.5) * 0.7, 0.0)
        mirror = torch.where(self._draw(count) < 0.5, -1.0, 1.0)
        upside = torch.where(self._draw(count) < 0.05, -1.0, 1.0)
        half_x, half_y = sides / 2 * stretch, sides / 2 / stretch
        across = [mirror * half_x * turn.cos(), -half_y * turn.sin() * upside, centres[:, 0]]
        down = [mirror * half_x * turn.sin(), half_y * turn.cos() * upside, centres[:, 1]]
        theta = _matrices(across, down) / (SIDE / 2)
        theta[:, :, 2] -= 1
        return functional.affine_grid(theta, [count, 3, side, side], align_corners=False)

    def _placed(self, squares: Tensor, least: float, most: float, side: int) -> Tensor:
        """`squares` (B, C, h, w) turned, moved and shrunk to `least`..`most` of a crop (B, C, side, side)."""
        count = len(squares)
        scale = least + (most - least) * self._draw(count)
        turn = (self._draw(count) - 0.5) * 1.2
        mirror = torch.where(self._draw(count) < 0.5, -1.0, 1.0)
        moved = (self._draw(count, 2) - 0.5) * 1.5
        across = [mirror * turn.cos() / scale, -turn.sin() / scale]
        linear = _matrices(across, [mirror * turn.sin() / scale, turn.cos() / scale])
        theta = torch.cat([linear, -(linear @ moved[:, :, None])], 2)
        grid = functional.affine_grid(theta, [count, 3, side, side], align_corners=False)
        return functional.grid_sample(squares, grid, mode="bilinear", align_corners=False)

    def _paste(
        self, images: Tensor, codes: Tensor, layer: Tensor, number: int, share: float
    ) -> tuple[Tensor, Tensor]:
        """Paste `layer` (B, 4, S, S), RGBA, over a `share` of crops, as object `number` in opaque areas."""
        chosen = self._draw(len(images)) < share
        alpha = layer[:, 3:].clamp(0, 1) * chosen[:, None, None, None]
        codes = torch.where(alpha > 0.5, float(number * PARTS + 1), codes)
        return images * (1 - alpha) + layer[:, :3] * alpha, codes

    def _objects(self, codes: Tensor, objects: int) -> Tensor:
        """Masks (B, P, S / 2, S / 2) of objects in `codes` (B, S, S), drawn by the root of their area."""
        count, step = len(codes), codes.shape[-1] // 64
        seen = codes[:, step // 2 :: step, step // 2 :: step].flatten(1).long()  # (B, n)
        ids = seen // PARTS
        areas = torch.zeros((count, 65536), device=codes.device)
        areas.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float32))
        area = areas.gather(1, ids)
        total = ids.shape[1]
        wanted = (ids > 0) & (area >= MIN_COVER * total) & (area <= MAX_COVER * total)
        weights = torch.where(wanted, area.clamp(min=1) ** -0.5, 0.0)
        weights = weights + (weights.sum(1, keepdim=True) == 0) * (ids > 0) + 1e-9
        places = torch.multinomial(weights, objects, replacement=True, generator=self.noise)
        code = seen.gather(1, places)[:, :, None, None].float()  # (B, P, 1, 1)
        only = (self._draw(count, objects) < PART_ONLY)[:, :, None, None]
        same = torch.where(only, codes[:, None] == code, codes[:, None] // PARTS == code // PARTS)
        masks = same & (code > 0)
        return (functional.avg_pool2d(masks.float(), 2) >= 0.5).float()

    def _recoloured(self, images: Tensor) -> Tensor:
        """Vary brightness, contrast, saturation, tint, blur and noise. Some crops turn grey or negative."""
        count = len(images)

        def draw(width: float) -> Tensor:
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
        speckled = torch.randn(images.shape, generator=self.noise, device=images.device)
        strength = torch.where(draw(1).abs() < 0.3, draw(0.08).abs(), torch.zeros_like(draw(1)))
        return (changed + speckled * strength).clamp(-1, 1) * inside


def _matrices(*rows: list[Tensor]) -> Tensor:
    """Matrices (B, rows, columns) with these elements (B,)."""
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def load_cutouts(folder: Path, device: torch.device, most: int = 4000) -> Tensor:
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


def drawn_scenes(
    count: int, side: int, noise: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Drawn images (B, 3, S, S) in [-1, 1], and the codes (B, 1, S, S) of their shapes."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=noise, device=device)

    axis = torch.linspace(-1, 1, side, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    slope = (draw(count, 3, 2, 1, 1) - 0.5) * (draw(count, 1, 1, 1, 1) < 0.5)
    images = draw(count, 3, 1, 1) * 2 - 1 + slope[:, :, 0] * x + slope[:, :, 1] * y
    codes = torch.zeros((count, 1, side, side), device=device)
    for number in range(SHAPES):
        # regular polygons and ellipses, stretched, turned and moved
        corners = torch.tensor(CORNERS, device=device)[(draw(count) * len(CORNERS)).long()]
        centres, angle = (draw(count, 2) - 0.5) * 1.6, draw(count) * (2 * math.pi)
        angle = torch.where(draw(count) < 0.4, 0.0, angle)
        sizes = 0.06 + 0.5 * draw(count, 2) ** 1.5
        across, down = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        u = (across * cosine + down * sine) / sizes[:, 0, None, None]
        v = (down * cosine - across * sine) / sizes[:, 1, None, None]
        furthest = torch.full_like(u, -9.0)
        for corner in range(int(corners.max())):
            turn = corner * 2 * math.pi / corners.clamp(min=1)
            edge = u * turn.cos()[:, None, None] + v * turn.sin()[:, None, None]
            furthest = torch.where((corner < corners)[:, None, None], furthest.maximum(edge), furthest)
        inside = torch.where((corners == 0)[:, None, None], u**2 + v**2 < 1, furthest < 1)[:, None]
        inside &= (draw(count) < (1.0 if number == 0 else 0.7))[:, None, None, None]
        images = torch.where(inside, draw(count, 3, 1, 1) * 2 - 1, images)
        codes = torch.where(inside, float((FIRST + number) * PARTS + 1), codes)
    speckled = torch.randn(images.shape, generator=noise, device=device)
    return (images + speckled * 0.2 * draw(count, 1, 1, 1)).clamp(-1, 1), codes
