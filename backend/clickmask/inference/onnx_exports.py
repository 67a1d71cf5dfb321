"""ONNX exports of checkpoints, made once in a separate process that may import torch."""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clickmask import files
from clickmask.errors import NotReady

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]  # the share that is done, and the current step


# For torch: threads that wait for one another keep no core busy, and large tensors take few page faults.
SPARING = ("OMP_WAIT_POLICY=PASSIVE", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1")


@dataclass(frozen=True)
class Exporter:
    """A module that is run with a checkpoint and a folder, and fills the folder. It prints `<share that is
    done> <current step>` for each step, and MUST verify its files against the checkpoint before it exits with
    status 0. Raise `version` when files of the version before no longer serve."""

    module: str
    version: int


class ExportsFolder:
    """One folder per checkpoint and exporter version, which appears complete or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str, sha256: str, exporter: Exporter) -> Path | None:
        """The files exported from the checkpoint with this SHA-256, or None if not yet exported."""
        path = self._path(name, sha256, exporter)
        return path if path.is_dir() else None

    def make(
        self,
        name: str,
        sha256: str,
        exporter: Exporter,
        checkpoint: Path,
        progress: Progress = lambda share, what: None,
    ) -> Path:
        """The files, exported now unless they exist; waits if another process exports. Raises NotReady."""
        path = self._path(name, sha256, exporter)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with files.lock(self._folder / ".lock"):
                if not path.is_dir():
                    with tempfile.TemporaryDirectory(dir=self._folder, prefix=".draft-") as draft:
                        made = Path(draft) / path.name
                        made.mkdir()
                        _run(exporter, checkpoint, made, progress)
                        files.flush_tree(made)
                        files.replace_folder(made, path)
        except OSError as error:
            raise NotReady(f"{name} cannot be exported: {error.strerror}") from error
        return path

    def _path(self, name: str, sha256: str, exporter: Exporter) -> Path:
        return self._folder / f"{name.replace(':', '-')}-{sha256[:16]}-{exporter.version}"


def sparing() -> list[str]:
    """What goes before a command so that it runs with SPARING; nothing on systems without `env`."""
    env = shutil.which("env")
    return [env, *SPARING] if env else []


def _run(exporter: Exporter, checkpoint: Path, folder: Path, progress: Progress) -> None:
    command = [*sparing(), sys.executable, "-m", exporter.module, str(checkpoint), str(folder)]
    said: list[str] = []
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            share, _, what = line.strip().partition(" ")
            if share.replace(".", "", 1).isdecimal():
                progress(float(share), what)
            else:
                said.append(line)
    if process.returncode != 0:
        log.error("%s failed:\n%s", exporter.module, "".join(said[-30:]))
        raise NotReady(f"{checkpoint.name} cannot be exported: {(said or ['killed'])[-1].strip()}")
