"""What a family of segmenters may use, in tests."""

from __future__ import annotations

from pathlib import Path

from clickmask.inference.catalogue import Host
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder


def host_of(weights: WeightsFolder | None = None, runtimes: Runtimes | None = None) -> Host:
    """Without weights, unless they are given; exporting nothing, unless the runtimes have a folder."""
    return Host(weights or WeightsFolder(Path("no weights")), runtimes or Runtimes())
