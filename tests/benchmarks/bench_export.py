"""What a reader of COCO gets of a Label Studio project: by clickmask, and by label-studio-sdk's converters.

Nothing is timed: each number is the IoU of what pycocotools reads with what was drawn.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import warnings
from pathlib import Path

from support.exported_project import OBJECTS, Outcome, by_clickmask, by_converter, outcomes


def main() -> str:
    logging.disable(logging.WARNING)  # the converters say of each region that it is skipped
    warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools and numpy 2
    with tempfile.TemporaryDirectory() as folder:
        read = {
            "clickmask": outcomes(by_clickmask(Path(folder) / "ours")),
            "COCO": outcomes(by_converter("COCO", Path(folder) / "coco")),
            "BRUSH_TO_COCO": outcomes(by_converter("BRUSH_TO_COCO", Path(folder) / "brush")),
        }
    logging.disable(logging.NOTSET)
    lines = [
        "IoU, and the `area` that is written beside the true one. *box*: no outline was written, its box",
        "was taken; *n parts*: one object became so many; *lost*: there is nothing of it.",
        "",
        "| object | " + " | ".join(read) + " |",
        "|---|" + "---:|" * len(read),
        *(
            f"| {name} | " + " | ".join(_cell(found[name]) for found in read.values()) + " |"
            for name in OBJECTS
        ),
        "| **of 13, exact or an IoU of .99** | "
        + " | ".join(_right(found) for found in read.values())
        + " |",
        "| **mean IoU, lost ones being 0** | " + " | ".join(_mean(found) for found in read.values()) + " |",
    ]
    return "\n".join(lines)


def _cell(outcome: Outcome) -> str:
    if outcome.iou is None or outcome.area_ratio is None:
        return "lost"
    notes = ", box" if outcome.boxes else ""
    notes += f", {outcome.annotations} parts" if outcome.annotations > 1 else ""
    return f"{outcome.iou:.3f}, area {100 * outcome.area_ratio:.0f} %{notes}"


def _right(found: dict[str, Outcome]) -> str:
    return str(
        sum(
            outcome.iou is not None and outcome.iou >= 0.99 and outcome.annotations == 1
            for outcome in found.values()
        )
    )


def _mean(found: dict[str, Outcome]) -> str:
    return f"{statistics.fmean(outcome.iou or 0 for outcome in found.values()):.3f}"


if __name__ == "__main__":
    print(main())
