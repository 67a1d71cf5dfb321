from __future__ import annotations

import subprocess
import sys

DAMAGED = """
import io, PIL.Image
import numpy as np
from clickmask.errors import InvalidInput
from clickmask.images.decode import decode_image
written = io.BytesIO()
PIL.Image.new("L", (9, 9)).save(written, "tiff")
for lost in range(1, 100, 7):
    try:
        decode_image(written.getvalue()[:-lost])
    except InvalidInput:
        print("refused")
for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
    written = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(written, "tiff", compression=compression)
    for at in range(8, len(written.getvalue()) - 1, 3):
        damaged = bytearray(written.getvalue())
        damaged[at] ^= 0xFF
        try:
            decode_image(bytes(damaged))
        except InvalidInput:
            print("refused")
signals = np.array([[0x7FA00000, 0x3F800000, 0x40000000]], np.uint32).view(np.float32)  # a NaN, 1 and 2
written = io.BytesIO()
PIL.Image.fromarray(signals).save(written, "tiff")
print(decode_image(written.getvalue()).pixels[0, :, 0])
"""


def test_damage_in_a_picture_is_no_line_of_log() -> None:
    """Pillow warns of each damaged tag with its number, and libtiff writes a line for each: 1 MB has room for
    thousands."""
    ran = subprocess.run([sys.executable, "-c", DAMAGED], capture_output=True, text=True, check=True)
    assert "refused" in ran.stdout and "[  0   0 255]" in ran.stdout
    assert ran.stderr == ""
