"""Run every benchmark and write RESULTS.md: `make bench`; `python -m benchmarks clicks` runs one."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.goals import Goal, Section, table

FOLDER = Path(__file__).parent
PREFACE = """# Measured

Written by `make bench`. Each row's ratio comes from two things timed in turn in one run, so it holds on
another machine as well; the times are those of this machine and moment, shared with others.
"""


def main() -> None:
    wanted = sys.argv[1:]
    names = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    chosen = [name for name in names if not wanted or name.removeprefix("bench_") in wanted]
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "opencv-python-headless", "pillow"))
    machine = f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {platform.machine()}, "
    head = [PREFACE, f"{machine}Python {platform.python_version()}, {packages}.\n"]
    sections: list[str] = []
    goals: list[Goal] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        found = module.main()
        if isinstance(found, Section):
            goals += found.goals
            found = found.text
        sections.append(f"## {(module.__doc__ or name).splitlines()[0]}\n\n{found.strip()}\n")
    sections.append(f"## Segment Anything on a GPU.\n\n{(FOLDER / 'GPU.md').read_text()}")
    if goals:
        head.append(f"## Goals.\n\n{table(goals)}\n")
    text = "\n".join([*head, *sections])
    print(text)
    if not wanted:
        (FOLDER / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
