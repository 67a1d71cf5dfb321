"""Checks of the JSON that both tools send. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard, cast

import orjson

from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.images.decode import DEFAULT_LIMITS
from clickmask.types import Size

Json = Mapping[str, Any]
MAX_CONTAINERS = 2**20  # lists and objects: all threads wait while they are made, half a second for so many
FEW_CONTAINERS = 10_000  # of what the thread reads that answers everybody: CVAT's events have about 20
MAX_NUMBER = 1e12  # beyond every coordinate, size and angle
MAX_SIDE_PX = 10**6  # beyond any image that is decoded
MAX_PIXELS = 4 * DEFAULT_LIMITS.max_pixels  # of an image that was annotated: its masks take a byte for each


def parse_object(raw: bytes, name: str, most: int = MAX_CONTAINERS) -> Json:
    """The JSON object in `raw`, of at most `most` lists and objects. Raises InvalidRequest; errors of this
    module call the value `name`."""
    if raw.count(b"[") + raw.count(b"{") > most:
        raise InvalidRequest(f"{name} has more than {most} lists and objects")
    try:
        return as_object(orjson.loads(raw), name)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{name} is not JSON") from error


def as_object(value: object, name: str, *, empty: bool = False) -> Json:
    """`value` if it is a JSON object; with `empty`, None counts as {}. Raises InvalidRequest."""
    if value is None and empty:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be a JSON object")
    return cast("Json", value)


def as_list(value: object, name: str) -> list[object]:
    """`value` if it is a list. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list")
    return cast("list[object]", value)


def as_text(value: object, name: str) -> str:
    """`value` if it is a text. Raises InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a text")
    return value


def as_id(value: object, name: str) -> int:
    """The number of a tool's object. Raises InvalidRequest."""
    if not is_integer(value):
        raise InvalidRequest(f"{name} {text_of(value)[:40]!r} is not a number")
    return value


def as_side(value: object, name: str) -> int:
    """A height or width in pixels. Raises InvalidRequest."""
    if not is_integer(value) or not 0 < value <= MAX_SIDE_PX:
        raise InvalidRequest(f"{name} {text_of(value)[:40]!r} is no number of pixels")
    return value


def as_size(height: object, width: object) -> Size:
    """The size of an image in pixels. Raises InvalidRequest for one of which no mask fits into memory."""
    sides = as_side(height, "the height"), as_side(width, "the width")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise InvalidRequest(f"an image of {sides[1]}x{sides[0]} pixels is larger than any that is read")
    return sides


def as_coordinate(value: object, name: str, below: float = MAX_NUMBER) -> float:
    """A finite number of a prompt, less than `below` in size. Raises InvalidInput."""
    if not is_number(value, below):
        raise InvalidInput(f"{name} {text_of(value)[:40]!r} is no finite number")
    return value


def text_of(value: object) -> str:
    """A text or a number as text, anything else by its kind: the text of a list may be long, or too deep."""
    if value is None or isinstance(value, str | int | float):
        return str(value)
    return f"a {type(value).__name__}"


def project_number(project: str, tool: str) -> int:
    """`project` as a number. Raises InvalidRequest."""
    if not (project.isascii() and project.isdigit()):
        raise InvalidRequest(f"{project[:40]!r} is not the number of a {tool} project")
    return int(project)


def is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object, below: float = MAX_NUMBER) -> TypeGuard[float]:
    """Whether `value` is a finite number, less than `below` in size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < below
