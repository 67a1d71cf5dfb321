"""Settings of how this process runs its networks."""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from clickmask.inference.onnx_exports import ExportsFolder
from clickmask.inference.sessions import Arrays, Model, Precision, Session, open_session, usable_cores

MAX_DECODERS = 8  # at once: about 200 clicks a second; each may take tens of megabytes


@dataclass(frozen=True)
class Runtimes:
    """`runtime`: auto, torch, or one of `sessions.RUNTIMES`. `exact`: f32 everywhere. `folder`: exports and
    measurements; without it checkpoints run in torch, and runtimes are measured each time."""

    runtime: str = "auto"
    exact: bool = False
    threads: int | None = None
    folder: Path | None = None

    @property
    def cores(self) -> int:
        return self.threads or usable_cores()

    @property
    def exports(self) -> ExportsFolder | None:
        return None if self.folder is None else ExportsFolder(self.folder / "exports")

    @property
    def wants_torch(self) -> bool:
        """Whether checkpoints run in torch: it was chosen, or there is a GPU for it."""
        return self.runtime == "torch" or (self.runtime == "auto" and _torch_has_a_gpu())

    def encoder(self, model: Model, example: Arrays | None = None) -> Session:
        """A session for one run at a time, on all cores, in bf16 if available."""
        return self._open(model, self.cores, 1, "f32" if self.exact else "bf16", example)

    def decoder(self, model: Model, example: Arrays | None = None) -> Session:
        """A session for parallel short runs, one core each, in f32 because masks are thresholded."""
        return self._open(model, 1, min(self.cores, MAX_DECODERS), "f32", example)

    def _open(
        self, model: Model, threads: int, at_once: int, precision: Precision, example: Arrays | None
    ) -> Session:
        return open_session(
            model,
            "auto" if self.runtime == "torch" else self.runtime,
            threads=threads,
            at_once=at_once,
            precision=precision,
            example=example,
            memory=self.folder / "measured.json" if self.folder else None,
        )


def _torch_has_a_gpu() -> bool:
    """Whether torch probably has a GPU. Only importing torch could tell, a waste on machines without one."""
    if importlib.util.find_spec("torch") is None or version("torch").endswith("+cpu"):
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
