"""Run benchmarks and write RESULTS.md: `make bench` runs all, `python -m benchmarks clicks` one.

What each found stays in `measured/`, so that RESULTS.md can be written anew when only some were run.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.goals import Goal, Section, table

FOLDER = Path(__file__).parent
MEASURED = FOLDER / "measured"
PREFACE = """# Measured

Written by `make bench`. Each row's ratio comes from two things timed in turn in one run, so it holds on
another machine as well; the times are those of this machine and moment, shared with others.
"""


def main() -> None:
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    for name in sys.argv[1:] or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measure(name)
    text = results(names)
    (FOLDER / "RESULTS.md").write_text(text)
    print(text)


def measure(name: str) -> None:
    module = importlib.import_module(f"benchmarks.bench_{name}")
    found = module.main()
    if found is None:
        return
    section = found if isinstance(found, Section) else Section(found)
    kept = {
        "title": (module.__doc__ or name).splitlines()[0],
        "machine": machine(),
        "text": section.text.strip(),
        "goals": [asdict(goal) for goal in section.goals],
    }
    MEASURED.mkdir(exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "opencv-python-headless", "pillow"))
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    return f"{datetime.now(UTC):%Y-%m-%d}: {cores}, Python {platform.python_version()}, {packages}."


def results(names: list[str]) -> str:
    kept = [json.loads(path.read_text()) for name in names if (path := MEASURED / f"{name}.json").exists()]
    goals = [Goal(**goal) for section in kept for goal in section["goals"]]
    sections = [f"## {each['title']}\n\n{each['machine']}\n\n{each['text']}\n" for each in kept]
    sections.append(f"## Segment Anything on a GPU.\n\n{(FOLDER / 'GPU.md').read_text()}")
    return "\n".join([PREFACE, f"## Goals.\n\n{table(goals)}\n", *sections])


if __name__ == "__main__":
    main()
