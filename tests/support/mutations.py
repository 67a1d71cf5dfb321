"""Inputs that nobody would send: mutations of genuine ones, the same for the same seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

MAX_EDITS = 4
DEEP = "a value in a thousand lists"
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 255, 256, 65_535, 2**31, 2**32 - 1, 2**53, 2**63 - 1, -(2**63)),
    *(
        0.5,
        -0.0,
        1e-320,
        1e15,
        1e300,
        -1e300,
        "",
        " ",
        "0",
        "1",
        "true",
        "²",
        "\0",
        "é",
        "\U0001f600",
        "\ud800",
        "$",
        "$x",
    ),
    *(
        "x" * 1000,
        "9" * 5000,
        "data:",
        "data:;base64,",
        "https://[::1",
        "/",
        "..",
        "../" * 20,
        "{{idx}}",
        "labels",
    ),
    *(
        "NaN",
        "1e400",
        "2026-11-22T17:45:26Z",
        "0001-01-01",
        [],
        [[]],
        [0],
        [1, 2],
        [[1, 2], [3, 4]],
        [None] * 5,
    ),
    *({}, {"x": 0}, {"id": None}, {"": ""}, [0] * 1000, [""] * 100, [[1, 2]] * 100, DEEP),
)
ODD_BYTES = (
    *(
        b"\0",
        b"\xff",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\x80\0\0\0",
        b"\xff\xd8",
        b"\xff\xda",
        b"\xff\xd9",
    ),
    *(
        b"IHDR",
        b"IDAT",
        b"IEND",
        b"eXIf",
        b"iCCP",
        b"acTL",
        b"fcTL",
        b"II*\0",
        b"MM\0*",
        b"RIFF",
        b"WEBP",
        b"VP8X",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"null",
        b"1e400",
        b"-1",
        b"9" * 400,
    ),
    *(
        b"<",
        b">",
        b"<!--",
        b"-->",
        b"<![CDATA[",
        b"]]>",
        b"<!DOCTYPE",
        b"&a;",
        b"<?xml",
        b"</",
        b"/>",
        b"<Repeater>",
    ),
    *(
        b"%",
        b"%00",
        b"%ff",
        b"data:",
        b"base64",
        b"=",
        b"-_",
        b"://",
        b"@",
        b"#",
        b"?",
        b"[::1]",
        b"..",
        b"/",
        b"\n",
    ),
    *(
        b"\xc3\x28",
        b"\xed\xa0\x80",
        "²".encode(),
        b"name=",
        b"toName=",
        b"$a[0].b",
        b"\x89PNG\r\n\x1a\n",
        b"ftypavif",
    ),
)


def mutated_bytes(random: random.Random, raw: bytes, others: Sequence[bytes]) -> bytes:
    """`raw` after a few edits, some of which take from `others`."""
    found = bytearray(raw)
    for _ in range(random.randint(1, MAX_EDITS)):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((1, 1, 2, 4, 16, 256)))
        match random.randrange(8):
            case 0 | 1 if at < len(found):
                found[at] ^= 1 << random.randrange(8)
            case 2 if at < len(found):
                found[at] = random.randrange(256)
            case 3:
                del found[at:end]
            case 4:
                found[at:end] = random.choice(ODD_BYTES)
            case 5:
                found[at:at] = random.choice(ODD_BYTES) * random.choice((1, 1, 2, 50))
            case 6:
                found[at:at] = found[at:end] * random.choice((1, 2, 20))
            case _:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                found[at:end] = other[start : start + random.choice((1, 8, 64, 512))]
    return bytes(found[: random.randrange(len(found) + 1)] if random.random() < 0.05 else found)


def mutated_json(random: random.Random, raw: bytes) -> bytes:
    """`raw` after a few edits: members that are odd, gone, doubled or from elsewhere in it."""
    top = [json.loads(raw)]
    for _ in range(random.randint(1, MAX_EDITS)):
        places = _places(top)
        holder, key = random.choice(places)
        match random.randrange(6):
            case 0 if holder is not top:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder[key:key] = [holder[key]] * random.choice((1, 2, 30))
            case 2:
                other, of = random.choice(places)
                holder[key] = copy.deepcopy(other[of])
            case 3 if isinstance(holder[key], str) and holder[key]:
                text = holder[key]
                at = random.randrange(len(text))
                odd = random.choice(ODD_BYTES).decode(errors="ignore")
                holder[key] = text[:at] + odd + text[at + random.randrange(3) :]
            case 4 if isinstance(holder[key], int | float):
                factor = random.choice((-1, 0, 0.5, 2, 10, 1e6, 1e20))
                holder[key] = holder[key] * factor if abs(holder[key]) < 1e200 else 0
            case _:
                holder[key] = copy.deepcopy(random.choice(ODD_VALUES))
    written = json.dumps(top[0] if top else None, separators=(",", ":")).encode()
    return written.replace(f'"{DEEP}"'.encode(), b"[" * 1000 + b"]" * 1000)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every member of lists and objects in `value`, but few of long lists, and none too deep."""
    found: list[tuple[Any, Any]] = []
    left = [(value, 0)]
    while left:
        holder, depth = left.pop()
        keys = range(min(len(holder), 30)) if isinstance(holder, list) else list(holder)
        found += ((holder, key) for key in keys)
        if depth < 15:
            left += ((holder[key], depth + 1) for key in keys if isinstance(holder[key], list | dict))
    return found
