"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import onnxruntime  # pyright: ignore[reportMissingTypeStubs] - it has none
from numpy.typing import NDArray

from clickmask.inference.sessions import Arrays


class OnnxRuntimeSession:
    runtime = "onnxruntime"
    precision = "f32"  # its CPU kernels have no bf16

    def __init__(self, session: Any, at_once: int) -> None:
        self._session = session
        self._room = threading.BoundedSemaphore(at_once)
        self._outputs: list[str] = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        with self._room:
            found: list[NDArray[Any]] = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, found, strict=True))


def open_session(model: Path | bytes, threads: int, at_once: int, precision: str) -> OnnxRuntimeSession:
    library: Any = onnxruntime
    library.disable_telemetry_events()  # only Windows builds send any
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # With a memory plan an encoder takes 3.2 GB more from the second run on, and gains nothing.
    # Decoders are small, and a little faster with one.
    options.enable_mem_pattern = at_once > 1
    # Spinning threads would keep a core busy for a while after each run.
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    session = library.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeSession(session, at_once)
