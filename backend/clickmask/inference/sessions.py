"""A network in an ONNX file, run by the fastest installed runtime.

ONNX Runtime is always installed, OpenVINO optionally. Neither imports torch. Which is faster depends on the
network, the processor and the release, so it is measured once per file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from clickmask import files
from clickmask.errors import NotReady

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Model = Path | bytes
Precision = Literal["f32", "bf16"]

RUNTIMES = ("openvino", "onnxruntime")  # each has a module here, with a leading underscore
MEASURING_S = 1.0  # running time after which the speed of a runtime is known


class Session(Protocol):
    """A network that is ready to run, without state between runs. For any thread."""

    @property
    def runtime(self) -> str: ...

    @property
    def precision(self) -> Precision:
        """The precision it computes in: f32 if bf16 was requested but is not available."""
        ...

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """The outputs by name, in arrays that the caller owns. `feeds` have the types of the file. Waits
        while the session has as many runs under way as it was opened for."""
        ...


def open_session(
    model: Model,
    runtime: str = "auto",
    *,
    threads: int | None = None,
    at_once: int = 1,
    precision: Precision = "f32",
    example: Arrays | None = None,
    memory: Path | None = None,
) -> Session:
    """The network in `model`, a file or its bytes, for `at_once` runs of `threads` (default: all cores) each.

    bf16 keeps three digits, for networks that tolerate it, and is a hint: not every processor and runtime has
    it. `runtime` auto picks the one that runs `example` fastest, measured now or noted in the file `memory`;
    without an example, the first installed one of RUNTIMES. Raises NotReady if the network cannot run.
    """
    threads = threads or usable_cores()
    installed = installed_runtimes()
    if runtime != "auto" and runtime not in installed:
        raise NotReady(f"there is no runtime {runtime!r} here; installed: {', '.join(installed)}")
    candidates = installed if runtime == "auto" else [runtime]
    fingerprint = _fingerprint(model, installed, threads, at_once, precision) if memory else ""
    if len(candidates) > 1 and memory and (noted := _notes(memory).get(fingerprint)) in installed:
        candidates = [noted]
    if len(candidates) == 1 or example is None:
        return _open(candidates[0], model, threads, at_once, precision)

    speeds: list[tuple[float, Session]] = []  # the shortest of a few runs; the first one does not count
    for name in candidates:
        try:
            session = _open(name, model, threads, at_once, precision)
            session.run(example)
            times: list[float] = []
            while len(times) < 5 and sum(times) < MEASURING_S:
                started = time.perf_counter()
                session.run(example)
                times.append(time.perf_counter() - started)
            speeds.append((min(times), session))
        except Exception as error:  # noqa: BLE001 - undocumented classes; another runtime may run it
            log.warning("%s does not run a network: %s", name, error)
    if not speeds:
        raise NotReady(f"the network runs on none of {', '.join(candidates)}")
    said = ", ".join(f"{session.runtime} {1000 * seconds:.0f} ms" for seconds, session in speeds)
    log.info("measured a network: %s", said)
    fastest = min(speeds, key=lambda each: each[0])[1]
    if memory:
        notes = {**_notes(memory), fingerprint: fastest.runtime}
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            files.write(memory, json.dumps(notes, indent=1).encode(), durable=False)
        except OSError as error:  # a lost note only costs another measurement
            log.warning("a measurement cannot be noted: %s", error.strerror)
    return fastest


def installed_runtimes() -> list[str]:
    return [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]


def packages_of(runtime: str) -> list[str]:
    """The installed packages that bring a runtime, with versions. Two overwrite each other's files."""
    found: list[str] = []
    for name in (runtime, f"{runtime}-gpu"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def usable_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(runtime: str, model: Model, threads: int, at_once: int, precision: Precision) -> Session:
    module = importlib.import_module(f"clickmask.inference._{runtime}")
    try:
        return module.open_session(model, threads, at_once, precision)
    except Exception as error:  # runtimes raise undocumented classes of their own
        name = model.name if isinstance(model, Path) else "the network"
        raise NotReady(f"{runtime} cannot read {name}") from error


def _fingerprint(model: Model, installed: list[str], *how: object) -> str:
    """A hash of everything a measurement depends on. A file is identified by its place, size and time."""
    if isinstance(model, Path):
        status = model.stat()
        whole: list[object] = [str(model.resolve()), status.st_size, status.st_mtime_ns]
    else:
        whole = [hashlib.sha256(model).hexdigest()]
    whole += [*(package for name in installed for package in packages_of(name)), usable_cores(), *how]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]


def _notes(memory: Path) -> dict[str, str]:
    """The fastest runtime by fingerprint, from earlier measurements."""
    try:
        return json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
