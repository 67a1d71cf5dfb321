"""A training that was stopped, as a file: whole, or as it was before."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by tensors and plain values, once they are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What was written, None where there is nothing, or no checkpoint. Nothing in it is executed."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError):
        log.warning("%s is no checkpoint: training starts anew", path.name)
        return None
