from __future__ import annotations

import subprocess
import sys

DAMAGED = """
import io, PIL.Image
from clickmask.errors import InvalidInput
from clickmask.images.decode import decode_image
written = io.BytesIO()
PIL.Image.new("L", (9, 9)).save(written, "tiff")
for lost in range(1, 100, 7):
    try:
        decode_image(written.getvalue()[:-lost])
    except InvalidInput:
        print("refused")
"""


def test_damaged_tags_of_a_picture_are_no_lines_of_log() -> None:
    """Pillow warns of each with its number: 1 MB has room for thousands."""
    ran = subprocess.run([sys.executable, "-c", DAMAGED], capture_output=True, text=True, check=True)
    assert "refused" in ran.stdout
    assert ran.stderr == ""
