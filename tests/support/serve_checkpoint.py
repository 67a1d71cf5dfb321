"""`clickmask serve` that takes random checkpoints for the official ones of a segmenter.

`python -m support.serve_checkpoint SEGMENTER FILE,... [OPTION ...]`; all else is the real command line.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint
from clickmask_adapters import cli
from clickmask_adapters.home import Home
from support.served import Server

SEGMENTER = "sam:vit_b"
TESTS = Path(__file__).parent.parent


def server_of(
    checkpoint: Path, home: Path, *beside: Path, segmenter: str = SEGMENTER, **environment: str
) -> Server:
    """The server as a process of its own; the caller stops it. `beside` are the checkpoint's other files."""
    files = ",".join(str(each) for each in (checkpoint, *beside))
    program = ("-m", "support.serve_checkpoint", segmenter, files)
    return Server(home, {"PYTHONPATH": str(TESTS), **environment}, [], program)


def _published(file: Path, beside: tuple[Checkpoint, ...] = ()) -> Checkpoint:
    """The file as if it were published."""
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return Checkpoint(f"https://127.0.0.1/{file.name}", file.stat().st_size, sha256, "none", beside)


def main() -> None:
    segmenter, files = sys.argv[1:3]
    checkpoint, *beside = (Path(each) for each in files.split(","))
    entry = _published(checkpoint, tuple(_published(each) for each in beside))
    weights = WeightsFolder(checkpoint.parent, checkpoints={segmenter: entry})
    setattr(Home, "weights", weights)  # noqa: B010 - in place of the property
    cli.app(["serve", "--segmenter", segmenter, *sys.argv[3:]])


if __name__ == "__main__":
    main()
