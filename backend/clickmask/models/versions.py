"""Trained models of projects, as versions that are complete or absent. No torch.

    PROJECT/versions/0003-1f2e3d4c/manifest.json weights.safetensors network.onnx golden.npz
    PROJECT/served.json      the version in use, and the versions served before it

A version is written aside, flushed, loaded and compared with its golden answers, then renamed into place. It
never changes again. `served.json` is replaced atomically, so a reader finds the old model or the new one even
if a writer is killed. Old versions are renamed aside, then removed, unless one is being opened.
"""

import hashlib
import importlib
import io
import json
import logging
import re
import shutil
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from clickmask import files
from clickmask.errors import Failed, NotFound, NotReady
from clickmask.inference.sessions import Arrays, Session, open_session
from clickmask.models.labeller import Labeller

log = logging.getLogger(__name__)

MANIFEST, WEIGHTS, NETWORK, GOLDEN = "manifest.json", "weights.safetensors", "network.onnx", "golden.npz"
PACKAGES = ("clickmask", "numpy", "onnx", "onnxruntime", "safetensors", "torch")
MAX_VERSIONS = 5  # newest versions that pruning keeps
TOLERANCE = 1e-3  # in logits: runtimes differ by a hundredth of it, a wrong weight by more
VERSIONS, SERVED = "versions", "served.json"
_ASIDE = ".aside-"
_VERSION = re.compile(r"\d{4,}-[0-9a-f]{8}")


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
        self._versions, self._pointer = folder / VERSIONS, folder / SERVED
        self._lock = folder / ".lock"  # of writers

    def save(self, model: UnsavedModel) -> ModelVersion:
        """Save a new version. Raises Failed if the written network fails to load or answers differently."""
        safetensors: Any = importlib.import_module("safetensors.numpy")  # in the extra `torch`
        weights = {name: np.ascontiguousarray(each) for name, each in model.weights.items()}
        golden = io.BytesIO()
        named = {f"input:{name}": each for name, each in model.golden_inputs.items()}
        named |= {f"output:{name}": each for name, each in model.golden_outputs.items()}
        np.savez_compressed(golden, **named)  # pyright: ignore[reportArgumentType] - arrays only
        contents = {WEIGHTS: safetensors.save(weights), NETWORK: model.network, GOLDEN: golden.getvalue()}
        files.make_folder(self._versions)
        with files.lock(self._lock):
            self._remove_leftovers()
            number = 1 + max((int(each.name[:4]) for each in self._folders()), default=0)
            installed = {name: list(distributions(name=name)) for name in PACKAGES}
            manifest = {
                "provenance": asdict(model.provenance),
                "parent": next(reversed(self._history()), None),
                "packages": {name: found[0].version for name, found in installed.items() if found},
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            }
            written = json.dumps(manifest, indent=1, sort_keys=True).encode()
            identifier = f"{number:04d}-{hashlib.sha256(written).hexdigest()[:8]}"
            path, aside = self._versions / identifier, self._versions / (_ASIDE + identifier)
            aside.mkdir()
            for name, content in [*contents.items(), (MANIFEST, written)]:
                (aside / name).write_bytes(content)
            files.flush_tree(aside)
            try:
                verify(_read_version(aside))
            except Failed:
                shutil.rmtree(aside)
                raise
            aside.rename(path)
            files.flush(self._versions)
            return _read_version(path)

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
        history = self._history()
        return self.version(history[-1]) if history else None

    def why_not_served(self) -> str:
        """A clause on why no version is served, and what to do, for a project that has none in service."""
        for newest in self.versions()[-1:]:
            report = newest.provenance.report
            if not report.get("promoted"):
                said: str = report.get("decision", "not promoted")
                if "train again" not in said:  # written by an earlier version
                    said += ". Accept more labels, then train again"
                return f"the newest, {newest.id}, was {said}"
        return "`clickmask train` makes one"

    @contextmanager
    def lock_served(self) -> Generator[ModelVersion | None]:
        """The served version, protected from pruning inside the `with` block; None if there is none."""
        while version := self.served():
            with files.lock(self._opening(version.id), shared=True):
                if version.path.is_dir():  # else it was replaced and pruned after the pointer was read
                    yield version
                    return
        yield None

    def promote(self, identifier: str) -> ModelVersion:
        """Serve this version from now on. If it raises NotFound or Failed, nothing changes."""
        promoted = self.version(identifier)
        verify(promoted)
        with files.lock(self._lock):
            self.version(identifier)  # raises if it was pruned meanwhile
            history = self._history()
            if history[-1:] != [identifier]:
                self._serve([*history, identifier])
        return promoted

    def roll_back(self) -> ModelVersion:
        """Serve the previously served version. Raises NotFound if there was none."""
        if not self._history():  # without a model there is no folder to lock either
            raise NotFound(f"no model of this project is served yet: {self.why_not_served()}")
        with files.lock(self._lock):
            if not (before := self._history()[:-1]):
                raise NotFound("no other model was served before this one")
            earlier = self.version(before[-1])
            verify(earlier)
            self._serve(before)
        return earlier

    def prune(self, newest: int = MAX_VERSIONS) -> list[str]:
        """Remove old versions and return their ids. Keeps the served one, its parent, the rollback target,
        open ones and the `newest` (at least 1)."""
        with files.lock(self._lock):
            history = self._history()
            names = sorted(folder.name for folder in self._folders())
            stay = {*history[-2:], *names[-newest:]}
            with suppress(Failed, NotFound):
                if (served := self.served()) and served.parent:
                    stay.add(served.parent)
            if not stay.issuperset(history):
                self._serve([name for name in history if name in stay])
            gone: list[str] = []
            for name in sorted(set(names) - stay):
                with suppress(BlockingIOError):  # somebody is opening it
                    with files.lock(self._opening(name), blocking=False):
                        (self._versions / name).rename(self._versions / (_ASIDE + name))
                    gone.append(name)
                    with suppress(OSError):  # Windows keeps the file while somebody waits for its lock
                        self._opening(name).unlink()
            self._remove_leftovers()
        return gone

    def _opening(self, name: str) -> Path:
        """Lock held while this version is opened. Inside its folder, it would block renaming on Windows."""
        return self.folder / f".{name}.lock"

    def _history(self) -> list[str]:
        """Ids of the versions served so far, the current one last. Raises Failed."""
        try:
            pointer = json.loads(files.read(self._pointer))
            history = [*pointer["before"], pointer["served"]]
            if not all(isinstance(each, str) for each in history):
                raise TypeError
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = "restart clickmask, which sets it aside"
            raise Failed(f"{SERVED} of {self.folder.name} cannot be read: {said}") from error
        return history

    def _serve(self, history: list[str]) -> None:
        pointer = {"served": history[-1], "before": history[:-1]}
        files.write(self._pointer, json.dumps(pointer).encode())

    def _folders(self) -> list[Path]:
        return [each for each in self._versions.glob("*") if _VERSION.fullmatch(each.name)]

    def _remove_leftovers(self) -> None:
        """Remove what killed writers left. Nobody else writes while this one holds the lock."""
        for each in (*self._versions.glob(_ASIDE + "*"), *self.folder.glob("*" + files.DRAFT)):
            files.remove(each)


class ProjectModels:
    """The models of all projects, each in a folder named by tool and project. For any thread."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder, self._threads = folder, threads
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[ModelVersion, Labeller]] = {}

    def of(self, tool: str, project: str) -> Models:
        return self.named(folder_name(tool, project))

    def named(self, name: str) -> Models:
        return Models(self._folder / name)

    def names(self) -> list[str]:
        """Folder names of the projects with a served version, even a damaged one, sorted."""
        return sorted(pointer.parent.name for pointer in self._folder.glob(f"*/{SERVED}"))

    def served(self, name: str) -> tuple[ModelVersion, Labeller]:
        """The served version and its open network. Raises NotReady if none is served, and Failed."""
        with self.named(name).lock_served() as version:
            if version is None:
                raise NotReady(f"no model of {name} was trained yet")
            with self._lock:
                if name not in self._opened or self._opened[name][0] != version:
                    self._opened[name] = version, Labeller(_open(version, self._threads))
                return self._opened[name]


def folder_name(tool: str, project: str) -> str:
    """A name like `label_studio-7` of letters, digits, _ . and - only, for file systems and URLs."""
    escaped = [quote(text, safe="").replace(".", "%2E").replace("~", "%7E") for text in (tool, project)]
    return "-".join(escaped).replace("%", ".")


def verify(model: ModelVersion) -> None:
    """Raise Failed unless every file is as written and the network gives its golden answers."""
    for name, expected in model.files.items():
        try:
            found = hashlib.sha256(files.read(model.path / name)).hexdigest()
        except OSError as error:
            raise Failed(f"the model {model.id} lacks {name}") from error
        if found != expected:
            raise Failed(f"{name} of the model {model.id} is not what was saved")
    with np.load(model.path / GOLDEN, allow_pickle=False) as golden:
        inputs, outputs = (
            {name.removeprefix(kind): golden[name] for name in golden.files if name.startswith(kind)}
            for kind in ("input:", "output:")
        )
    answers = _open(model).run(inputs)
    for name, expected in outputs.items():
        answer = answers.get(name)
        if answer is None or answer.shape != expected.shape:
            raise Failed(f"the model {model.id} does not answer with {name} {expected.shape}")
        if not np.allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE):
            worst = float(np.abs(answer - expected).max())
            raise Failed(f"{name} of the model {model.id} is {worst:.2g} off what it was in training")


def _open(model: ModelVersion, threads: int | None = None) -> Session:
    """Its network, on all cores if `threads` is None. Raises Failed."""
    try:
        return open_session(model.network, "onnxruntime", threads=threads)
    except NotReady as error:
        raise Failed(f"the network of the model {model.id} cannot be loaded") from error


def _read_version(folder: Path) -> ModelVersion:
    identifier = folder.name.removeprefix(_ASIDE)
    try:
        manifest = json.loads(files.read(folder / MANIFEST))
        stored = manifest["provenance"]
        for name, kind in (("provenance", dict), ("packages", dict), ("made_at", str), ("files", dict)):
            if not isinstance(manifest[name], kind):
                raise TypeError
        provenance = Provenance(**stored | {"categories": tuple(stored["categories"])})
        others = {name: manifest[name] for name in ("parent", "packages", "made_at", "files")}
        return ModelVersion(identifier, folder, provenance, **others)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failed(f"the model {identifier} has no manifest that can be read") from error
