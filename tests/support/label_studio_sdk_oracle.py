"""The codecs and converters of label-studio-sdk, asked in Label Studio's own environment.

The SDK caps numpy and OpenCV below what clickmask is tested with, so it is never installed beside clickmask.
This file is also the program that answers there: one line of JSON for a question, one for its answer.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "CLICKMASK_TEST_LABEL_STUDIO"
GIVEN = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / ".venv-ls")


def program(name: str) -> Path:
    """The path of a program in the environment that has Label Studio and its SDK."""
    found = GIVEN / "bin" / name
    if not found.exists():
        raise RuntimeError(
            f"there is no {found}: `make test-slow` installs Label Studio and its SDK, or name a virtual "
            f"environment that has them in {VARIABLE}"
        )
    return found


def mask2rle(grey: NDArray[np.uint8]) -> list[int]:
    """The SDK's brush of a mask of 0 and 255."""
    return _ask("mask2rle", grey.tolist())


def decode_rle(rle: Sequence[int]) -> NDArray[np.uint8]:
    """The SDK's RGBA pixels of a brush, as one flat array."""
    return np.array(_ask("decode_rle", list(rle)), np.uint8)


def convert(config: str, tasks: Path, output: Path, kind: str) -> None:
    """Write exported tasks by one of the SDK's converters, such as COCO or BRUSH_TO_COCO."""
    _ask("convert", config, str(tasks), str(output), kind)


def brush_module() -> Any:
    """The SDK's brush codec in this process, for benchmarks that time it; it needs numpy and Pillow alone."""
    (path,) = GIVEN.glob("lib/python3*/site-packages/label_studio_sdk/converter/brush.py")
    spec = spec_from_file_location("label_studio_brush", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ask(name: str, *arguments: Any) -> Any:
    process = _process()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([name, arguments]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"label-studio-sdk ended in {name} (status {process.wait()}): see its own output")
    return json.loads(answer)


@functools.cache
def _process() -> subprocess.Popen[str]:
    command = [program("python"), __file__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # closes its input, at which it ends
    return process


def _answer_questions(questions: IO[str], answers: IO[str]) -> None:
    from label_studio_sdk.converter import Converter, brush

    def convert_tasks(config: str, tasks: str, output: str, kind: str) -> None:
        converter = Converter(config, str(Path(output).parent), download_resources=False)
        converter.convert(tasks, output, kind, is_dir=False)

    known = {
        "mask2rle": lambda grey: brush.mask2rle(np.array(grey, np.uint8)),
        "decode_rle": lambda rle: brush.decode_rle(rle).tolist(),
        "convert": convert_tasks,
    }
    for line in questions:
        name, arguments = json.loads(line)
        print(json.dumps(known[name](*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # the converters print
        _answer_questions(sys.stdin, answers)
