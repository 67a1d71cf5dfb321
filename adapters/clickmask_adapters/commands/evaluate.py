"""`clickmask evaluate`: the mIoU of segmenters against the number of clicks."""

import dataclasses
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clickmask.datasets.coco_reader import sample_objects
from clickmask.errors import InvalidRequest
from clickmask.masks.controls import read_controls
from clickmask.reports.clicks import (
    TARGETS,
    Summary,
    Trial,
    evaluate,
    intervals,
    summarise,
    summarise_categories,
)
from clickmask_adapters.commands._console import console, errors, open_home

cli = typer.Typer()
Intervals = NDArray[np.float64] | None  # as `intervals` gives them


@cli.command("evaluate")
def evaluate_segmenters(
    dataset: Annotated[
        list[str], typer.Argument(metavar="[SEGMENTER]... DATASET", help="A COCO folder or annotation file.")
    ],
    clicks: Annotated[int, typer.Option(min=1, max=50, help="Clicks on each object.")] = 5,
    objects: Annotated[int, typer.Option(min=1, help="At most this many, chosen by the seed.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed takes the same objects.")] = 0,
    smallest: Annotated[int, typer.Option(min=1, help="Pixels of the smallest object that counts.")] = 64,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NAME=VALUE",
            help="Of the masks that the annotator sees, such as second_look=true; repeat for more.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every segmenter that is ready.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write mIoU against clicks to a .png, .svg, .pdf.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
) -> None:
    """Compare segmenters on a COCO dataset, by clicks and boxes of a simulated annotator.

    The first click is in the middle of the true mask, every later one in the middle of the larger error. The
    box is tight. Intervals are of 95 %, by bootstrap over the pictures. Without a SEGMENTER the default one
    is evaluated.
    """
    *named, folder = dataset
    with open_home() as home:
        controls = read_controls(control or ())
        catalogue = home.segmenters
        if everything and named:
            raise InvalidRequest("--all takes every segmenter that is ready: name none beside it")
        if everything:
            names = [status.name for status in catalogue.statuses() if status.ready]
        else:
            names = list(dict.fromkeys(named or [home.settings.segmenter]))
            for name in names:
                catalogue.require_ready(name)
        if plot:
            require_matplotlib(plot)  # now, not after an hour
        sample = sample_objects(Path(folder), objects, seed, smallest)
        total = len(sample.objects)
        trials: dict[str, list[Trial]] = {}
        columns = ("{task.description}", BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=errors, transient=True) as bar:
            for name in names:
                task = bar.add_task(name, total=total)
                found = evaluate(catalogue.get(name), sample.objects, clicks, controls)
                trials[name] = list(bar.track(found, total=total, task_id=task))
                bar.update(task, completed=total)
        if not all(trials.values()):
            raise InvalidRequest("none of the pictures can be read in the size that its annotations give")
        tried = len(trials[names[0]])
        left_out = {**sample.left_out, "whose picture cannot be read": total - tried}
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        said = f"{tried} objects of {sample.annotations.name}"
        console.print(f"{said}; left out: {reasons}" if reasons else said, markup=False)
        summaries = {name: summarise(each) for name, each in trials.items()}
        by_category = {name: summarise_categories(each) for name, each in trials.items()}
        spread = {name: intervals(each) for name, each in trials.items()}
        console.print(_table(summaries, spread))
        first, *others = names
        if others:
            more = {name: intervals(trials[name], trials[first]) for name in others}
            console.print(_difference_table(first, summaries, more))
        if len({each.category for each in sample.objects}) > 1:
            console.print(_category_table(by_category))
        if json_file:
            categories = {
                name: {category: _plain(summary) for category, summary in found.items()}
                for name, found in by_category.items()
            }
            content = {
                "annotations": sample.annotations.name,
                "clicks": clicks,
                "seed": seed,
                "smallest": smallest,
                "controls": controls.wishes(),
                "left_out": dict(sample.left_out),
                "segmenters": {
                    name: {
                        **_plain(summary),
                        "intervals": None if (found := spread[name]) is None else found.tolist(),
                        "categories": categories[name],
                    }
                    for name, summary in summaries.items()
                },
            }
            json_file.write_text(json.dumps(content, indent=2) + "\n")
        if plot:
            plot_summaries(summaries, f"{tried} objects of {Path(folder).name}", plot)


def plot_summaries(summaries: Mapping[str, Summary], title: str, file: Path) -> None:
    """Plot each segmenter's mIoU over clicks, with a star for its box. `require_matplotlib` comes before."""
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
    """Raise InvalidRequest unless matplotlib is installed and writes files of this suffix."""
    try:
        backends: Any = importlib.import_module("matplotlib.backend_bases")
    except ImportError as error:
        raise InvalidRequest("a plot needs matplotlib: pip install 'clickmask[plot]'") from error
    known = backends.FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in known:
        raise InvalidRequest(f"no plot is written to {file.name}: its suffix is none of {', '.join(known)}")


def _table(summaries: Mapping[str, Summary], spread: Mapping[str, Intervals]) -> Table:
    """One column per segmenter. If an object never reaches the IoU, its NoC is the number of all clicks."""
    table = _columns_of("", summaries)
    each = summaries.values()
    clicks = len(next(iter(each)).miou)
    for count in _shown(clicks):
        table.add_row(f"mIoU @{count}", *(f"{summary.miou[count - 1]:.3f}" for summary in each))
        table.add_row("  95 %", *(_interval(found, count - 1) for found in spread.values()))
    table.add_row("mIoU by box", *(f"{summary.box_miou:.3f}" for summary in each))
    table.add_row("  95 %", *(_interval(found, -1) for found in spread.values()))
    for target in TARGETS:
        table.add_row(f"NoC @{target * 100:.0f}", *(f"{summary.noc[target]:.2f}" for summary in each))
    for target in TARGETS:
        table.add_row(f"never at {target * 100:.0f}", *(str(summary.failures[target]) for summary in each))
    table.add_row("encode, ms", *(f"{summary.encode_ms or 0:.1f}" for summary in each))
    table.add_row("decode, ms", *(f"{summary.decode_ms:.1f}" for summary in each))
    return table


def _difference_table(first: str, summaries: Mapping[str, Summary], more: Mapping[str, Intervals]) -> Table:
    """One column per segmenter but the first: its mIoU less the first one's, and the interval of that."""
    table = _columns_of(f"less {first}", more)
    clicks = len(summaries[first].miou)
    for count in _shown(clicks):
        than = summaries[first].miou[count - 1]
        table.add_row(f"mIoU @{count}", *(f"{summaries[name].miou[count - 1] - than:+.3f}" for name in more))
        table.add_row("  95 %", *(_interval(found, count - 1) for found in more.values()))
    than = summaries[first].box_miou
    table.add_row("mIoU by box", *(f"{summaries[name].box_miou - than:+.3f}" for name in more))
    table.add_row("  95 %", *(_interval(found, -1) for found in more.values()))
    return table


def _shown(clicks: int) -> list[int]:
    """The numbers of clicks that a table has a row for."""
    return sorted({*range(1, 6), 10, 15, 20, 30, 40, clicks} & set(range(1, clicks + 1)))


def _interval(found: Intervals, row: int) -> str:
    return "" if found is None else f"{found[row, 0]:.2f} to {found[row, 1]:.2f}"


def _category_table(by_segmenter: Mapping[str, Mapping[str, Summary]]) -> Table:
    """One row per category: its objects, then each segmenter's mIoU at first and last click, and by box."""
    table = _columns_of("mIoU @1, @last, box", by_segmenter)
    for category, first in next(iter(by_segmenter.values())).items():
        cells = [categories[category] for categories in by_segmenter.values()]
        table.add_row(
            Text(f"{category} ({first.objects})"),
            *(f"{cell.miou[0]:.2f} {cell.miou[-1]:.2f} {cell.box_miou:.2f}" for cell in cells),
        )
    return table


def _columns_of(title: str, names: Iterable[str]) -> Table:
    table = Table(title, box=None)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _plain(summary: Summary) -> dict[str, Any]:
    """A summary as JSON; the keys of its targets are "85" and "90"."""
    fields = dataclasses.asdict(summary)
    for name in ("noc", "failures"):
        fields[name] = {f"{target * 100:.0f}": value for target, value in fields[name].items()}
    return fields
