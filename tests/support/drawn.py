"""Small drawn masks and scenes whose truth is known, shared by the tests.

Everything is made anew at each call, so a test may write into what it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from clickmask.types import Mask, Pixels, Point, Size


def disc(size: Size = (48, 64), centre: Point = (30.0, 24.0), radius: float = 15.0) -> Mask:
    """The pixels whose centre is at most `radius` from `centre`."""
    x, y = _centres(size)
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def ellipse(size: Size, centre: Point, axes: tuple[float, float], degrees: float = 0.0) -> Mask:
    """The pixels whose centre is in the ellipse with semi-axes `axes`, turned clockwise by `degrees`."""
    x, y = _centres(size)
    angle = np.deg2rad(degrees)
    u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    return (u / axes[0]) ** 2 + (v / axes[1]) ** 2 <= 1


def rectangle(size: Size, box: tuple[int, int, int, int]) -> Mask:
    """The pixels of (x0, y0, x1, y1), outer edges."""
    x0, y0, x1, y1 = box
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def ring(
    size: Size = (48, 64), centre: Point = (30.0, 24.0), outer: float = 18.0, inner: float = 9.0
) -> Mask:
    """A disc with a round hole."""
    return disc(size, centre, outer) & ~disc(size, centre, inner)


def two_parts() -> Mask:
    return disc((48, 64), (16.0, 20.0), 11.0) | rectangle((48, 64), (36, 18, 58, 41))


def ring_in_ring() -> Mask:
    """A ring with another ring in its hole, and a dot in the hole of that."""
    centre = (32.0, 32.0)
    return (
        ring((64, 64), centre, 30.0, 22.0) | ring((64, 64), centre, 16.0, 9.0) | disc((64, 64), centre, 4.0)
    )


def line() -> Mask:
    """One pixel high."""
    return rectangle((20, 30), (4, 9, 25, 10))


def stairs() -> Mask:
    """A line one pixel wide that goes down diagonally, its pixels joined by their edges."""
    mask = np.eye(12, 18, dtype=bool)
    return mask | np.roll(mask, 1, axis=1)


def diagonal() -> Mask:
    """Two pixels that meet in a corner: separate objects."""
    mask = np.zeros((5, 6), bool)
    mask[1, 2] = mask[2, 3] = True
    return mask


def pinched() -> Mask:
    """A block whose two pinholes meet each other and the outside in corners only."""
    mask = np.zeros((8, 9), bool)
    mask[1:7, 1:8] = True
    mask[1, 1] = mask[2, 2] = mask[3, 3] = False
    return mask


def checkerboard() -> Mask:
    return (np.indices((8, 9)).sum(axis=0) % 2).astype(bool)


def pixel() -> Mask:
    return rectangle((7, 9), (3, 2, 4, 3))


def empty() -> Mask:
    return np.zeros((12, 17), bool)


def full() -> Mask:
    return np.ones((12, 17), bool)


def at_the_edges() -> Mask:
    """Parts that end where the image does, in all four corners."""
    mask = np.ones((16, 21), bool)
    mask[5:11] = False
    mask[:, 8:13] = False
    return mask


MASKS: Mapping[str, Callable[[], Mask]] = {
    draw.__name__: draw
    for draw in (
        disc, ring, two_parts, ring_in_ring, line, stairs, diagonal, pinched, checkerboard,
        pixel, empty, full, at_the_edges,
    )
}  # fmt: skip


GROUND = (96, 92, 104)
COLOURS = MappingProxyType(
    {"disc": (214, 62, 48), "ellipse": (52, 122, 206), "block": (66, 168, 84), "ring": (232, 190, 44)}
)  # of the objects in `scene`


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and, by name, the masks of the objects in it."""

    pixels: Pixels
    objects: Mapping[str, Mask]


def scene(size: Size = (240, 320), seed: int = 0, noise: float = 12.0) -> Scene:
    """Flat shapes on a flat ground, under noise of standard deviation `noise` (of 255).

    The objects ("disc", "ellipse", "block", "ring") keep clear of each other and of the edges.
    """
    height, width = size
    unit = min(height / 240, width / 320)
    objects = {
        "disc": disc(size, (0.22 * width, 0.28 * height), 42 * unit),
        "ellipse": ellipse(size, (0.70 * width, 0.26 * height), (62 * unit, 34 * unit), 20),
        "block": rectangle(
            size, (int(0.08 * width), int(0.62 * height), int(0.38 * width), int(0.90 * height))
        ),
        "ring": ring(size, (0.70 * width, 0.74 * height), 48 * unit, 22 * unit),
    }
    pixels = np.empty((height, width, 3))
    pixels[:] = GROUND
    for name, mask in objects.items():
        pixels[mask] = COLOURS[name]
    pixels += np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return Scene(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), objects)


def _centres(size: Size) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: size[0], : size[1]]
    return x + 0.5, y + 0.5
