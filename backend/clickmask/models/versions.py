"""Versions of a project's model, as folders that are complete or absent. No torch.

    models/versions/0003-1f2e3d4c/manifest.json weights.safetensors network.onnx golden.npz
    models/served.json      the version in use, and the versions served before it

A version is written aside, flushed file by file, loaded and compared with its golden answers. Only then is it
renamed into place, and it never changes again. `served.json` is replaced atomically, so a reader finds the
old model or the new one even if a writer is killed. Old versions are renamed aside, then removed; a version
that is being opened (see `lock_served`) stays.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import logging
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickmask import files
from clickmask.errors import Failed, NotFound, NotReady
from clickmask.inference.sessions import open_session

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]

MANIFEST, WEIGHTS, NETWORK, GOLDEN = "manifest.json", "weights.safetensors", "network.onnx", "golden.npz"
PACKAGES = ("clickmask", "numpy", "onnx", "onnxruntime", "safetensors", "torch")
MAX_VERSIONS = 5  # newest versions that pruning keeps
TOLERANCE = 1e-3  # in logits: runtimes differ by a hundredth of it, a wrong weight by more

_ASIDE = ".aside-"


@dataclass(frozen=True)
class Provenance:
    """The training and quality of a model: plain values, stored as JSON."""

    network: str  # its module in training/networks
    categories: tuple[str, ...]  # without the background, which is class 0
    dataset_digest: str
    split: Mapping[str, Sequence[str]]  # image digests by side
    report: Mapping[str, Any]
    seed: int


@dataclass(frozen=True, eq=False)
class UnsavedModel:
    """A trained network, ready to save. `golden_outputs` are its answers to `golden_inputs`."""

    provenance: Provenance
    weights: Arrays
    network: bytes  # ONNX
    golden_inputs: Arrays
    golden_outputs: Arrays


@dataclass(frozen=True)
class ModelVersion:
    id: str
    path: Path
    provenance: Provenance
    parent: str | None  # the version that was served when this one was saved
    packages: Mapping[str, str]
    made_at: str  # ISO 8601, UTC
    files: Mapping[str, str]  # SHA-256 by name

    @property
    def network(self) -> Path:
        return self.path / NETWORK


class Models:
    """The models of one project, in `folder`. For any thread and process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = folder / "versions"
        self._pointer = folder / "served.json"

    def save(self, model: UnsavedModel) -> ModelVersion:
        """Save a new version. Raises Failed if the written network fails to load or answers differently."""
        self._versions.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._remove_leftovers()
            number = 1 + max((int(each.name[:4]) for each in self._folders()), default=0)
            contents = _files(model)
            packages = {name: next(iter(distributions(name=name)), None) for name in PACKAGES}
            manifest = {
                "provenance": asdict(model.provenance),
                "parent": self._served()[0],
                "packages": {name: found.version for name, found in packages.items() if found},
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            }
            written = json.dumps(manifest, indent=1, sort_keys=True).encode()
            identifier = f"{number:04d}-{hashlib.sha256(written).hexdigest()[:8]}"
            aside = self._versions / (_ASIDE + identifier)
            aside.mkdir()
            for name, content in [*contents.items(), (MANIFEST, written)]:
                (aside / name).write_bytes(content)
            files.flush_tree(aside)
            try:
                verify(_read_version(aside))
            except Failed:
                shutil.rmtree(aside)
                raise
            aside.rename(self._versions / identifier)
            files.flush(self._versions)
            return _read_version(self._versions / identifier)

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first. Damaged ones are left out with a warning."""
        found: list[ModelVersion] = []
        for folder in sorted(self._folders()):
            try:
                found.append(_read_version(folder))
            except Failed as error:
                log.warning("%s", error)
        return found

    def version(self, identifier: str) -> ModelVersion:
        """The version with this id. Raises NotFound, and Failed if its manifest cannot be read."""
        if identifier not in {folder.name for folder in self._folders()}:
            raise NotFound(f"there is no model {identifier[:80]!r} of this project")
        return _read_version(self._versions / identifier)

    def served(self) -> ModelVersion | None:
        """The version in use; None if there is none. Raises Failed."""
        identifier, _ = self._served()
        return None if identifier is None else self.version(identifier)

    @contextmanager
    def lock_served(self) -> Generator[ModelVersion | None]:
        """The served version, protected from pruning inside the `with` block; None if there is none."""
        while True:
            version = self.served()
            if version is None:
                yield None
                return
            with files.lock(self._opening(version.id), shared=True):
                if version.path.is_dir():  # else it was replaced and pruned after the pointer was read
                    yield version
                    return

    @property
    def has_served(self) -> bool:
        """Whether a version was promoted, even if it is damaged."""
        return self._pointer.exists()

    def promote(self, identifier: str) -> ModelVersion:
        """Serve this version from now on. If it raises NotFound or Failed, nothing changes."""
        promoted = self.version(identifier)
        verify(promoted)
        with self._locked():
            self.version(identifier)  # raises if it was pruned meanwhile
            current, before = self._served()
            if identifier != current:
                self._serve(identifier, [*before, *([current] if current else [])])
        return promoted

    def roll_back(self) -> ModelVersion:
        """Serve the previously served version. Raises NotFound if there was none."""
        with self._locked():
            _, before = self._served()
            if not before:
                raise NotFound("no other model was served before this one")
            earlier = self.version(before[-1])
            verify(earlier)
            self._serve(earlier.id, before[:-1])
        return earlier

    def prune(self, newest: int = MAX_VERSIONS) -> list[str]:
        """Remove old versions and return their ids.

        Keeps the served version, its parent, the rollback target, open ones and the `newest` (at least 1).
        """
        with self._locked():
            current, before = self._served()
            names = sorted(folder.name for folder in self._folders())
            stay = {current, *before[-1:], *names[-newest:]}
            with suppress(Failed, NotFound):
                stay.add(self.version(current).parent if current else None)
            if current and not stay.issuperset(before):
                self._serve(current, [name for name in before if name in stay])
            gone: list[str] = []
            for name in sorted(set(names) - stay):
                try:
                    with files.lock(self._opening(name), blocking=False):
                        (self._versions / name).rename(self._versions / (_ASIDE + name))
                except BlockingIOError:  # somebody is opening it
                    continue
                gone.append(name)
                with suppress(OSError):  # Windows keeps the file while somebody waits for its lock in vain
                    self._opening(name).unlink()
            self._remove_leftovers()
        return gone

    def _opening(self, name: str) -> Path:
        """Lock held while this version is opened. Inside its folder, it would block renaming on Windows."""
        return self.folder / f".{name}.lock"

    def _served(self) -> tuple[str | None, list[str]]:
        try:
            pointer = json.loads(self._pointer.read_bytes())
        except FileNotFoundError:
            return None, []
        return pointer["served"], pointer["before"]

    def _serve(self, identifier: str, before: list[str]) -> None:
        files.write(self._pointer, json.dumps({"served": identifier, "before": before}).encode())

    def _folders(self) -> list[Path]:
        return [each for each in self._versions.glob("*") if not each.name.startswith(_ASIDE)]

    def _remove_leftovers(self) -> None:
        """Remove what killed writers left. Nobody else writes while this one holds the lock."""
        for each in self._versions.glob(_ASIDE + "*"):
            shutil.rmtree(each)
        for each in self.folder.glob("*" + files.DRAFT):
            each.unlink()

    def _locked(self) -> AbstractContextManager[None]:
        """The writers' lock. The system frees it if a process dies."""
        return files.lock(self.folder / ".lock")


def verify(model: ModelVersion) -> None:
    """Raise Failed unless every file is as written and the network gives its golden answers."""
    for name, expected in model.files.items():
        try:
            found = hashlib.sha256((model.path / name).read_bytes()).hexdigest()
        except OSError as error:
            raise Failed(f"the model {model.id} lacks {name}") from error
        if found != expected:
            raise Failed(f"{name} of the model {model.id} is not what was saved")
    inputs, outputs = read_golden(model.path / GOLDEN)
    try:
        answers = open_session(model.network, "onnxruntime").run(inputs)
    except NotReady as error:
        raise Failed(f"the network of the model {model.id} cannot be loaded") from error
    for name, expected in outputs.items():
        answer = answers.get(name)
        if answer is None or answer.shape != expected.shape:
            raise Failed(f"the model {model.id} does not answer with {name} {expected.shape}")
        if not np.allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE):
            worst = float(np.abs(answer - expected).max())
            raise Failed(f"{name} of the model {model.id} is {worst:.2g} off what it was in training")


def read_golden(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The golden inputs and the network's answers, by name."""
    with np.load(path, allow_pickle=False) as stored:
        named: dict[str, NDArray[Any]] = {name: stored[name] for name in stored.files}
    inputs = {name[len("input:") :]: each for name, each in named.items() if name.startswith("input:")}
    outputs = {name[len("output:") :]: each for name, each in named.items() if name.startswith("output:")}
    return inputs, outputs


def _files(model: UnsavedModel) -> dict[str, bytes]:
    # in the extra `torch`, which is there wherever a model was trained
    safetensors: Any = importlib.import_module("safetensors.numpy")
    golden = io.BytesIO()
    named = {f"input:{name}": each for name, each in model.golden_inputs.items()}
    named |= {f"output:{name}": each for name, each in model.golden_outputs.items()}
    np.savez_compressed(golden, **named)  # pyright: ignore[reportArgumentType] - arrays only
    weights = {name: np.ascontiguousarray(each) for name, each in model.weights.items()}
    return {WEIGHTS: safetensors.save(weights), NETWORK: model.network, GOLDEN: golden.getvalue()}


def _read_version(folder: Path) -> ModelVersion:
    identifier = folder.name.removeprefix(_ASIDE)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        stored = manifest["provenance"]
        provenance = Provenance(**stored | {"categories": tuple(stored["categories"])})
        others = {name: manifest[name] for name in ("parent", "packages", "made_at", "files")}
        return ModelVersion(identifier, folder, provenance, **others)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failed(f"the model {identifier} has no manifest that can be read") from error
