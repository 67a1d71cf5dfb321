"""Small encoded pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image

from clickmask.types import Pixels

SIZE = (60, 80)  # height, width


def png_base64(shade: int = 100, size: tuple[int, int] = SIZE) -> str:
    """A PNG of one grey; another shade is another image."""
    return to_base64(np.full((*size, 3), shade, np.uint8))


def to_base64(pixels: Pixels) -> str:
    """A PNG of these pixels."""
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, "png")
    return base64.b64encode(raw.getvalue()).decode()


def data_uri(pixels: Pixels) -> str:
    return "data:image/png;base64," + to_base64(pixels)


def png_data_uri(shade: int = 100, size: tuple[int, int] = SIZE) -> str:
    return "data:image/png;base64," + png_base64(shade, size)
