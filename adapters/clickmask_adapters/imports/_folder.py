"""The folder of a dataset: its pictures, its sides, and the numbers and colours in its PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from clickmask.errors import InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS, has_picture_ending
from clickmask.labels.split import SIDES, Side

WORDS: Mapping[str, Side] = {
    **{"train": "train", "training": "train"},
    **{"val": "validation", "valid": "validation", "validation": "validation"},
    **{"test": "test", "testing": "test"},
}


def side_of(word: str) -> Side | None:
    """The side that a word of a file's or a folder's name means."""
    return WORDS.get(word.lower())


def own_side(about: Mapping[str, Any]) -> Side | None:
    """The side in our own description of an image, which tells that of a quarantined one beside it."""
    told = about.get("assigned", about.get("side"))
    return next((side for side in SIDES if side == told), None)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in `folder` and below it, by their endings, sorted."""
    return sorted(path for path in folder.rglob("*") if has_picture_ending(path.name) and path.is_file())


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in `folder` by their path in it, without the ending."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures_in(folder)}


def read_numbers(path: Path) -> NDArray[np.int32]:
    """A mask (H, W) of a number a pixel: of a palette, of grey, or of 16 bits. Raises InvalidRequest."""
    with _opened(path) as opened:
        if opened.mode not in ("P", "L", "1", "I;16", "I"):
            raise InvalidRequest(f"{path.name} has colours instead of a number a pixel")
        return np.asarray(opened).astype(np.int32)


def read_colours(path: Path) -> NDArray[np.int32]:
    """A mask (H, W) of a colour a pixel, each as `code_of` gives it. Raises InvalidRequest."""
    with _opened(path) as opened:
        colours = np.asarray(opened.convert("RGB")).astype(np.int32)
    return colours @ np.array([65536, 256, 1], np.int32)


def code_of(colour: tuple[int, int, int]) -> int:
    """0xRRGGBB."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _opened(path: Path) -> PIL.Image.Image:
    try:
        opened = PIL.Image.open(path, formats=("PNG", "BMP", "TIFF", "GIF"))
        if opened.width * opened.height > DEFAULT_LIMITS.max_pixels:
            raise InvalidRequest(f"{path.name} is larger than any picture that is read")
        opened.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidRequest(f"{path.name} is no mask that can be read") from error
    return opened
