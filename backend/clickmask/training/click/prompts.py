"""A simulated annotator, for whole batches on any device, and its prompts as maps. Coordinates are continuous
pixels of the network's input; masks and maps have half its size."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from clickmask.segmenters import _builtin as served

BOXES = 0.5  # share of prompts that begin with a box
CLICK_IN_BOX = 0.3  # share of these that also have a click
SLOPPY_SHARE = 0.65  # of the boxes
SLOPPINESS, MAX_SLIP = 0.06, 20.0  # standard deviation, in sides of the box; px
CENTRAL = 0.5  # share of clicks at the deepest place; the others are anywhere deep enough
GIVEN_MASK = 0.1  # share of prompts that begin with a nearly right mask
PROMPTLESS_SHARE = 0.5  # share of these without a click or box


class Prompts:
    """The prompts so far for each of N targets of size (h, w), half the size of the input."""

    def __init__(self, size: tuple[int, int], device: torch.device, count: int) -> None:
        self.maps = torch.zeros((count, served.MAPS, *size), device=device)
        self.clicks = torch.zeros(count, device=device)
        # px of the input, at the pixels' centres: (h,) and (w,)
        self._y, self._x = (2 * torch.arange(side, device=device) + 1.0 for side in size)

    def ambiguous(self) -> Tensor:
        """1 for a lone click, which may mean a part or the whole, and 0 for anything else. (N,)"""
        told = self.maps[:, [served.BOX, served.REGION]].abs().amax((1, 2, 3))
        return ((told == 0) & (self.clicks == 1)).float()

    def click(self, points: Tensor, foreground: Tensor, when: Tensor) -> None:
        """Add the points (N, 2) of (x, y) to the targets in `when` (N,)."""
        across = (self._x - points[:, :1]) ** 2  # (N, w)
        down = (self._y - points[:, 1:]) ** 2  # (N, h)
        for sigma, positive, negative in (
            (served.NARROW, served.CLICKED, served.REJECTED),
            (served.WIDE, served.CLICKED_WIDE, served.REJECTED_WIDE),
        ):
            scale = -0.5 / sigma**2
            bump = torch.exp(down * scale)[:, :, None] * torch.exp(across * scale)[:, None, :]
            for channel, chosen in ((positive, when & foreground), (negative, when & ~foreground)):
                self._set(channel, torch.maximum(self.maps[:, channel], bump), chosen)
        self.clicks += when

    def enclose(self, boxes: Tensor, when: Tensor) -> None:
        """Set the boxes (N, 4) of the targets in `when` (N,)."""
        x, y = self._x, self._y
        x0, y0, x1, y1 = (boxes[:, number, None] for number in range(4))
        # share of each pixel inside the box, since boxes end at fractions of pixels
        across = ((x - x0 + 1).clamp(0, 2) * (x1 - x + 1).clamp(0, 2) / 4)[:, None, :]
        down = ((y - y0 + 1).clamp(0, 2) * (y1 - y + 1).clamp(0, 2) / 4)[:, :, None]
        self._set(served.BOX, 2 * across * down - 1, when)
        u = (2 * (x - x0) / (x1 - x0).clamp(min=1) - 1)[:, None, :]
        v = (2 * (y - y0) / (y1 - y0).clamp(min=1) - 1)[:, :, None]
        self._set(served.MIDDLE, (1 - u**2).clamp(min=0) * (1 - v**2).clamp(min=0), when)

    def correct(self, probabilities: Tensor, when: Tensor) -> None:
        """Show the masks (N, h, w) in `when` as the current masks."""
        self._set(served.REGION, 2 * probabilities.clamp(0, 1) - 1, when)

    def _set(self, channel: int, values: Tensor, when: Tensor) -> None:
        self.maps[:, channel] = torch.where(when[:, None, None], values, self.maps[:, channel])


def begin(targets: Tensor, noise: torch.Generator) -> Prompts:
    """The first prompts for `targets` (N, h, w) of 0 and 1; some include nearly right masks."""
    count, height, width = targets.shape
    prompts = Prompts((height, width), targets.device, count)
    draw = _uniform(targets, noise)
    boxed = draw() < BOXES
    given = draw() < GIVEN_MASK
    untold = given & (draw() < PROMPTLESS_SHARE)
    prompts.enclose(sloppy_boxes(targets, noise), boxed & ~untold)
    points, _ = deepest(targets, noise)
    everywhere = torch.ones_like(boxed)
    prompts.click(points, everywhere, (~boxed | (draw() < CLICK_IN_BOX)) & ~untold)
    prompts.correct(nearly(targets, noise), given)
    return prompts


def correct(prompts: Prompts, targets: Tensor, probabilities: Tensor, noise: torch.Generator) -> Prompts:
    """`prompts` after a click in the larger error of `probabilities` (N, h, w), which become the region. Some
    get a blurred region and no click, as a second pass over part of an image gets the first's answer."""
    draw = _uniform(targets, noise)
    points, foreground, depths = largest_error(targets, probabilities > 0.5, noise)
    again = draw() < 0.25
    prompts.click(points, foreground, (depths > 0) & ~again)
    shown = torch.where(again[:, None, None], _blurred(probabilities, 4), probabilities)
    prompts.correct(shown, torch.ones_like(again))
    return prompts


def largest_error(
    targets: Tensor, found: Tensor, noise: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points in the larger errors of `found` (N, h, w), whether they were missed, and their depths."""
    wanted = targets > 0.5
    points, depths = deepest(torch.cat([wanted & ~found, found & ~wanted]).float(), noise)
    missed, wrong = depths.chunk(2)
    foreground = missed >= wrong
    chosen = torch.where(foreground[:, None], points[: len(targets)], points[len(targets) :])
    return chosen, foreground, torch.maximum(missed, wrong)


def deepest(masks: Tensor, noise: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Points (N, 2) deep inside `masks` (N, h, w), and the greatest depths (N,), 0 for an empty mask. With
    `noise`, only a share CENTRAL are deepest. Depths are octagonal distances at a quarter of the size."""
    count, _, width = masks.shape
    # the number of erosions that each pixel survives, by crosses and squares in turn; outside the frame is
    # background, and a partly covered pixel counts by its covered part
    halved = functional.avg_pool2d(masks[:, None].float(), 2)
    alive = functional.pad(halved, (1, 1, 1, 1))
    total = torch.zeros_like(alive)
    for turn in range(min(halved.shape[2:]) // 2 + 1):
        total += alive
        if turn % 2:
            alive = -functional.max_pool2d(-alive, 3, 1, 1)
        else:
            across = -functional.max_pool2d(-alive, (1, 3), 1, (0, 1))
            alive = torch.minimum(across, -functional.max_pool2d(-alive, (3, 1), 1, (1, 0)))
    flat = total[:, 0, 1:-1, 1:-1].flatten(1)
    most = flat.max(1).values
    score = flat
    if noise is not None:
        draw = _uniform(masks, noise)
        enough = flat >= (draw() * most)[:, None]
        lottery = torch.rand(flat.shape, generator=noise, device=masks.device)
        anywhere = enough * (flat > 0) * (lottery + 1e-3)
        score = torch.where((draw() < CENTRAL)[:, None], flat + 1e-3 * lottery * (flat > 0), anywhere)
    at = score.argmax(1)
    row, column = at // (width // 2), at % (width // 2)
    # one of the four pixels under it that lies in the mask
    index = torch.arange(count, device=masks.device)
    four = torch.stack([masks[index, 2 * row + dy, 2 * column + dx] for dy in (0, 1) for dx in (0, 1)], 1)
    best = four.float().argmax(1)
    x, y = 4 * column + 2 * (best % 2) + 1, 4 * row + 2 * (best // 2) + 1
    centre = four.min(1).values > 0.5  # all four do: take the point between them
    points = torch.stack([torch.where(centre, 4 * column + 2, x), torch.where(centre, 4 * row + 2, y)], 1)
    return points.float(), most


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) of (x0, y0, x1, y1) around `masks` (N, h, w), in pixels of the twice as large input."""
    _, height, width = masks.shape
    columns, rows = (masks > 0.5).any(1), (masks > 0.5).any(2)
    x, y = (torch.arange(side, device=masks.device) for side in (width, height))
    x0 = torch.where(columns, x, width).amin(1)
    x1 = torch.where(columns, x + 1, 0).amax(1)
    y0 = torch.where(rows, y, height).amin(1)
    y1 = torch.where(rows, y + 1, 0).amax(1)
    return 2.0 * torch.stack([x0, y0, x1, y1], 1)


def sloppy_boxes(masks: Tensor, noise: torch.Generator) -> Tensor:
    """Boxes as people draw them: some tight to about a pixel, some not."""
    boxes = tight_boxes(masks)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    gaussian = torch.randn(boxes.shape, generator=noise, device=masks.device)
    sloppy = (_uniform(masks, noise)() < SLOPPY_SHARE)[:, None]
    slip = torch.where(sloppy, (SLOPPINESS * sides * gaussian).clamp(-MAX_SLIP, MAX_SLIP), gaussian)
    moved = boxes + slip
    low, high = torch.minimum(moved[:, :2], moved[:, 2:] - 2), torch.maximum(moved[:, 2:], moved[:, :2] + 2)
    return torch.cat([low, high], 1)


def nearly(targets: Tensor, noise: torch.Generator) -> Tensor:
    """`targets` (N, h, w) grown or shrunk, moved and blurred, like masks of another model or first pass."""
    draw = _uniform(targets, noise)
    mask = targets[:, None].float()
    grown = functional.max_pool2d(mask, 9, 1, 4)
    shrunk = -functional.max_pool2d(-mask, 5, 1, 2)
    kind = draw()[:, None, None, None]
    changed = torch.where(kind < 0.35, grown, torch.where(kind < 0.7, shrunk, mask))
    rows, columns = (torch.rand((), generator=noise, device=targets.device) * 13 - 6 for _ in range(2))
    changed = torch.roll(changed, (round(float(rows)), round(float(columns))), (2, 3))
    return _blurred(changed[:, 0], 8)


def _blurred(masks: Tensor, factor: int) -> Tensor:
    """`masks` as if found at a `factor` times smaller size."""
    small = functional.avg_pool2d(masks[:, None].float(), factor)
    return functional.interpolate(small, masks.shape[1:], mode="bilinear")[:, 0]


def _uniform(like: Tensor, noise: torch.Generator) -> Callable[[], Tensor]:
    """A function that draws N numbers in [0, 1) at each call, one per element of `like`."""
    return lambda: torch.rand(like.shape[0], generator=noise, device=like.device)
