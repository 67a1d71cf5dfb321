"""The export of Segment Anything, by size: processor time and memory of each step.

`python -m benchmarks sam_export` measures ViT-B, or the sizes in CLICKMASK_BENCH_SAM ("vit_l vit_h"); rows of
other sizes stay as they were measured. Each size has a process of its own, which needs Linux.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clickmask.inference.onnx_exports import sparing
from clickmask.inference.sessions import Runtimes
from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.torch_networks import TorchSam
from support.checkpoints import VIT_B, VIT_H, VIT_L, write_checkpoint

SIZES = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}
ROWS = Path(__file__).parent / "measured" / "sam_sizes.json"
STEPS = {  # by the name in a row
    "read": "read the checkpoint",
    "encoder": "encoder: torch's answer and export",
    "decoder": "decoder: the same",
    "openvino load": "OpenVINO: load",
    "openvino encode": "encode",
    "openvino decode": "decode",
    "onnxruntime load": "ONNX Runtime: load",
    "onnxruntime encode": "encode",
    "onnxruntime decode": "decode",
}


class Steps:
    """Seconds of the processor and the most memory, in GB, of each step, and how often it was done."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float, int]] = {}

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted anew
        started = time.process_time()
        yield
        seconds, peak, times = self.found.get(name, (0.0, 0.0, 0))
        spent = time.process_time() - started
        self.found[name] = seconds + spent, max(peak, most_memory()), times + 1

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def worked(*given: Any) -> Any:
            with self.step(name):
                return work(*given)

        return worked


def most_memory() -> float:
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in each)
    return int(line.split()[1]) * 1024 / 1e9


def measure_here(checkpoint: Path, folder: Path) -> dict[str, tuple[float, float, int]]:
    """Export in this process. Every runtime is loaded, encodes and decodes for the check."""
    steps = Steps()

    class Watched(OnnxSam):
        def __init__(self, where: Path, runtimes: Runtimes) -> None:
            self.name = runtimes.runtime
            with steps.step(f"{self.name} load"):
                super().__init__(where, runtimes)

        def encode(self, pixels: Any) -> Any:
            with steps.step(f"{self.name} encode"):
                return super().encode(pixels)

        def decode(self, *given: Any) -> Any:
            with steps.step(f"{self.name} decode"):
                return super().decode(*given)

    own: Any = onnx_export
    own.OnnxSam = Watched
    own.TorchSam = steps.timed("read", TorchSam)
    own.export_encoder = steps.timed("encoder", onnx_export.export_encoder)
    for name in ("export_decoder", "answers_of"):
        setattr(own, name, steps.timed("decoder", getattr(onnx_export, name)))
    onnx_export.export(checkpoint, folder)
    return steps.found


def measure(size: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        checkpoint, folder = Path(name) / f"sam_{size}.pth", Path(name) / "exported"
        folder.mkdir()
        command = [sys.executable, "-m", "benchmarks.bench_sam_export"]
        subprocess.run([*command, "write", size, str(checkpoint)], check=True)
        done = subprocess.run(
            [*sparing(), *command, "export", str(checkpoint), str(folder)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        megabytes = round(checkpoint.stat().st_size / 1e6)
    return {**found, "MB": megabytes, "date": f"{datetime.now(UTC):%Y-%m-%d}", "load": os.getloadavg()[1]}


def main() -> str:
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for size in os.environ.get("CLICKMASK_BENCH_SAM", "vit_b").split():
        rows[size] = measure(size)
        ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    known = [size for size in SIZES if size in rows]
    lines = [
        "Seconds of the processor (most memory of the process meanwhile, GB). Random weights in the official",
        "format, f32. One process does it all: a runtime's memory has torch's libraries in it, 0.3 GB.",
        "",
        f"| | {' | '.join(known)} |",
        "|---|" + "---:|" * len(known),
        f"| checkpoint, MB | {' | '.join(str(rows[size]['MB']) for size in known)} |",
    ]
    for key, step in STEPS.items():
        cells = [
            f"{seconds / (times if 'decode' in key[-6:] else 1):.1f} ({peak:.1f})"
            for seconds, peak, times in (rows[size]["steps"][key] for size in known)
        ]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    cells = [f"**{rows[size]['seconds']:.0f} ({rows[size]['peak']:.1f})**" for size in known]
    lines.append(f"| the export, all of it | {' | '.join(cells)} |")
    loads = ", ".join(f"{size} on {rows[size]['date']} ({rows[size]['load']:.0f})" for size in known)
    notes = [f"{rows[size]['note']}." for size in known if "note" in rows[size]]
    lines += ["", f"Measured, in brackets the machine's load: {loads}.", *notes]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_checkpoint(Path(sys.argv[3]), SIZES[sys.argv[2]], damped=False)
    else:
        found = measure_here(Path(sys.argv[2]), Path(sys.argv[3]))
        peak = max(most for _, most, _ in found.values())
        print(json.dumps({"steps": found, "seconds": time.process_time(), "peak": peak}))
