"""OpenVINO, on the CPU."""

from __future__ import annotations

import importlib
import io
import queue
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickmask.inference.sessions import Arrays, Precision


class OpenVinoSession:
    runtime = "openvino"

    def __init__(self, compiled: Any, at_once: int, precision: Precision) -> None:
        self.precision: Precision = precision
        # Node names match the file's. Fused tensors have several names, in any order.
        self._inputs: set[str] = {given.node.get_friendly_name() for given in compiled.inputs}
        self._outputs: list[str] = [
            output.node.get_friendly_name().rpartition("/sink_port_")[0] for output in compiled.outputs
        ]
        # A request holds the arrays of one run. Last in, first out: its memory is warm, and the memory
        # of requests that are never needed is never touched.
        self._requests = queue.LifoQueue[Any]()
        for _ in range(at_once):
            self._requests.put(compiled.create_infer_request())

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if set(feeds) != self._inputs:  # a request would reuse the inputs of the run before
            raise ValueError(f"the network takes {sorted(self._inputs)}, not {sorted(feeds)}")
        request = self._requests.get()
        try:
            request.infer(dict(feeds), share_inputs=True)
            found = map(request.get_output_tensor, range(len(self._outputs)))
            return {name: np.array(each.data) for name, each in zip(self._outputs, found, strict=True)}
        finally:
            self._requests.put(request)


def open_session(model: Path | bytes, threads: int, at_once: int, precision: Precision) -> OpenVinoSession:
    core = import_openvino().Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precision = "f32"
    network = core.read_model(str(model)) if isinstance(model, Path) else core.read_model(io.BytesIO(model))
    options = {
        "INFERENCE_PRECISION_HINT": precision,  # the default is bf16 if the CPU has it
        "INFERENCE_NUM_THREADS": threads * at_once,
        "NUM_STREAMS": at_once,
        "ENABLE_CPU_PINNING": False,  # otherwise several processes share the same cores
    }
    return OpenVinoSession(core.compile_model(network, "CPU", options), at_once, precision)


def import_openvino() -> ModuleType:
    """Import the package without openvino_telemetry, which reports each import to Google Analytics.

    openvino 2026.4 works without it (`tools/ovc/__init__.py`). The block holds for the whole process: the
    converter, which is not used here, reports too.
    """
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] - as Python documents
    return importlib.import_module("openvino")
