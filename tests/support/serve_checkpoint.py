"""`clickmask serve` that takes a random checkpoint for the official one of sam:vit_b.

`python -m support.serve_checkpoint FILE SHA256 [OPTION ...]`; everything else is the real command line.
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


def server_of(checkpoint: Path, home: Path, **environment: str) -> Server:
    """The server as a process of its own; the caller stops it."""
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    program = ("-m", "support.serve_checkpoint", str(checkpoint), sha256)
    return Server(home, {"PYTHONPATH": str(TESTS), **environment}, [], program)


def main() -> None:
    checkpoint, sha256 = Path(sys.argv[1]), sys.argv[2]
    address = f"https://127.0.0.1/{checkpoint.name}"
    entry = Checkpoint(address, checkpoint.stat().st_size, sha256, "none")
    weights = WeightsFolder(checkpoint.parent, checkpoints={SEGMENTER: entry})
    setattr(Home, "weights", weights)  # noqa: B010 - in place of the property
    cli.app(["serve", "--segmenter", SEGMENTER, *sys.argv[3:]])


if __name__ == "__main__":
    main()
