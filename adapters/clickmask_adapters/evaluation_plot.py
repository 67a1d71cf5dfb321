"""The mIoU of segmenters against the number of clicks, as a picture."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clickmask.errors import InvalidRequest
from clickmask.evaluation import Summary


def plot_summaries(summaries: Mapping[str, Summary], title: str, file: Path) -> None:
    """Write the plot in the format of the file's suffix: a line of clicks and a star for the box each.

    Raises InvalidRequest without matplotlib, or where it does not write such files.
    """
    require_matplotlib(file)
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")  # no pyplot, so no window and no state
    axes = figure.subplots()
    clicks = max(len(summary.miou) for summary in summaries.values())
    for name, summary in summaries.items():
        (line,) = axes.plot(range(1, len(summary.miou) + 1), summary.miou, marker="o", label=name)
        axes.plot([0], [summary.box_miou], marker="*", markersize=12, color=line.get_color())
    axes.set_xticks(range(clicks + 1), ["box", *map(str, range(1, clicks + 1))])
    axes.set(xlabel="clicks", ylabel="mean IoU", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=150)


def require_matplotlib(file: Path) -> None:
    """Raise InvalidRequest unless matplotlib is here and writes files of this suffix."""
    try:
        backends: Any = importlib.import_module("matplotlib.backend_bases")
    except ImportError as error:
        raise InvalidRequest("a plot needs matplotlib: pip install 'clickmask[plot]'") from error
    known = backends.FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in known:
        raise InvalidRequest(f"no plot is written to {file.name}: its suffix is none of {', '.join(known)}")
