"""Label Studio's bit masks: a PNG in a data: address, black inside the mask and transparent outside."""

from __future__ import annotations

import base64
import binascii

import cv2
import numpy as np

from clickmask.types import Mask, Size

PREFIX = "data:image/png;base64,"
OPAQUE = 128  # lowest alpha of a pixel in the mask, as for brushes


def mask_to_bit_mask(mask: Mask) -> str:
    """An RGBA PNG of the mask's size, as the UI of Label Studio 1.23.2 saves it."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[..., 3] = mask.view(np.uint8) * np.uint8(255)
    # OpenCV's defaults: other compression levels took 3.5 times as long.
    _, png = cv2.imencode(".png", pixels)
    return PREFIX + base64.b64encode(png.tobytes()).decode("ascii")


def bit_mask_to_mask(written: str, size: Size) -> Mask:
    """Pixels with alpha of at least half. Raises ValueError unless `written` is an RGBA PNG of `size`."""
    if not written.startswith(PREFIX):
        raise ValueError("a bit mask is a PNG in a data: address")
    try:
        png = base64.b64decode(written[len(PREFIX) :], validate=True)
    except binascii.Error as error:
        raise ValueError("the bit mask's base64 is damaged") from error
    # The header tells the size before anything is unpacked: PNG 1.2, 11.2.2 IHDR.
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    if (height, width) != size:
        raise ValueError(f"the bit mask has {width}x{height} pixels, its image {size[1]}x{size[0]}")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype != np.uint8:
        raise ValueError("the bit mask is no PNG of 8 bits with alpha")
    return pixels[..., 3] >= OPAQUE
