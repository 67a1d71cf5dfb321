"""`clickmask evaluate`: the mIoU of segmenters against the number of clicks."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clickmask.datasets.coco_reader import CocoSample, sample_objects
from clickmask.errors import InvalidRequest
from clickmask.inference.catalogue import Catalogue
from clickmask.reports.clicks import TARGETS, Summary, Trial, evaluate, summarise, summarise_categories
from clickmask_adapters.commands._console import console, errors, open_home

Trials = Mapping[str, Sequence[Trial]]  # by segmenter


cli = typer.Typer()


@cli.command("evaluate")
def evaluate_segmenters(
    dataset: Annotated[
        list[str], typer.Argument(metavar="[SEGMENTER]... DATASET", help="A COCO folder or annotation file.")
    ],
    clicks: Annotated[int, typer.Option(min=1, max=50, help="Clicks on each object.")] = 5,
    objects: Annotated[int, typer.Option(min=1, help="At most this many, chosen by the seed.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed takes the same objects.")] = 0,
    smallest: Annotated[int, typer.Option(min=1, help="Pixels of the smallest object that counts.")] = 64,
    everything: Annotated[bool, typer.Option("--all", help="Every segmenter that is ready.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write mIoU against clicks to a .png, .svg, .pdf.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
) -> None:
    """Compare segmenters on a COCO dataset, by clicks and boxes of a simulated annotator.

    The first click is in the middle of the true mask, every later one in the middle of the larger error. The
    box is tight. Without a SEGMENTER the default one is evaluated.
    """
    *named, folder = dataset
    with open_home() as home:
        catalogue = home.segmenters
        names = _chosen(catalogue, named or [home.settings.segmenter], bool(named), everything)
        if plot:
            require_matplotlib(plot)  # now, not after an hour
        sample = sample_objects(Path(folder), objects, seed, smallest)
        trials = _try(catalogue, names, sample, clicks)
        summaries = {name: summarise(trials[name]) for name in names}
        _print_sample(sample, len(trials[names[0]]))
        console.print(_table(summaries))
        if len({each.category for each in sample.objects}) > 1:
            console.print(_category_table(trials))
        if json_file:
            _write_json(json_file, trials, sample, {"clicks": clicks, "seed": seed, "smallest": smallest})
        if plot:
            plot_summaries(summaries, f"{len(trials[names[0]])} objects of {Path(folder).name}", plot)


def plot_summaries(summaries: Mapping[str, Summary], title: str, file: Path) -> None:
    """Plot each segmenter's mIoU over clicks, with a star for its box. Raises InvalidRequest."""
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
    """Raise InvalidRequest unless matplotlib is installed and writes files of this suffix."""
    try:
        backends: Any = importlib.import_module("matplotlib.backend_bases")
    except ImportError as error:
        raise InvalidRequest("a plot needs matplotlib: pip install 'clickmask[plot]'") from error
    known = backends.FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in known:
        raise InvalidRequest(f"no plot is written to {file.name}: its suffix is none of {', '.join(known)}")


def _chosen(catalogue: Catalogue, names: Sequence[str], given: bool, everything: bool) -> list[str]:
    """Names of segmenters that can run, each once."""
    if everything:
        if given:
            raise InvalidRequest("--all takes every segmenter that is ready: name none beside it")
        return [status.name for status in catalogue.statuses() if status.ready]
    for name in names:
        catalogue.require_ready(name)
    return list(dict.fromkeys(names))


def _try(catalogue: Catalogue, names: Sequence[str], sample: CocoSample, clicks: int) -> Trials:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    trials: dict[str, list[Trial]] = {}
    with Progress(*columns, console=errors, transient=True) as bar:
        for name in names:
            task = bar.add_task(name, total=len(sample.objects))
            trials[name] = []
            for trial in evaluate(catalogue.get(name), sample.objects, clicks):
                trials[name].append(trial)
                bar.advance(task)
            bar.update(task, completed=len(sample.objects))
    if not all(trials.values()):
        raise InvalidRequest("none of the pictures can be read in the size that its annotations give")
    return trials


def _print_sample(sample: CocoSample, tried: int) -> None:
    left_out = dict(sample.left_out)
    if unread := len(sample.objects) - tried:
        left_out["whose picture cannot be read"] = unread
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    said = f"{tried} objects of {sample.annotations.name}" + (f"; left out: {reasons}" if reasons else "")
    console.print(said, markup=False)


def _table(summaries: Mapping[str, Summary]) -> Table:
    """One column per segmenter. If an object never reaches the IoU, its NoC is the number of all clicks."""
    table = _columns_of("", summaries)
    each = summaries.values()
    clicks = len(next(iter(each)).miou)
    for count in sorted({*range(1, 6), 10, 15, 20, 30, 40, clicks} & set(range(1, clicks + 1))):
        table.add_row(f"mIoU @{count}", *(f"{summary.miou[count - 1]:.3f}" for summary in each))
    table.add_row("mIoU by box", *(f"{summary.box_miou:.3f}" for summary in each))
    for target in TARGETS:
        table.add_row(f"NoC @{target * 100:.0f}", *(f"{summary.noc[target]:.2f}" for summary in each))
    for target in TARGETS:
        table.add_row(f"never at {target * 100:.0f}", *(str(summary.failures[target]) for summary in each))
    table.add_row("encode, ms", *(f"{summary.encode_ms or 0:.1f}" for summary in each))
    table.add_row("decode, ms", *(f"{summary.decode_ms:.1f}" for summary in each))
    return table


def _category_table(trials: Trials) -> Table:
    """One row per category: its objects, then each segmenter's mIoU at first and last click, and by box."""
    by_segmenter = {name: summarise_categories(each) for name, each in trials.items()}
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


def _write_json(file: Path, trials: Trials, sample: CocoSample, options: Mapping[str, int]) -> None:
    content = {
        "annotations": sample.annotations.name,
        **options,
        "left_out": dict(sample.left_out),
        "segmenters": {
            name: {
                **_plain(summarise(each)),
                "categories": {
                    category: _plain(summary) for category, summary in summarise_categories(each).items()
                },
            }
            for name, each in trials.items()
        },
    }
    file.write_text(json.dumps(content, indent=2) + "\n")


def _plain(summary: Summary) -> dict[str, Any]:
    """A summary as JSON; the keys of its targets are "85" and "90"."""
    fields = dataclasses.asdict(summary)
    for name in ("noc", "failures"):
        fields[name] = {f"{target * 100:.0f}": value for target, value in fields[name].items()}
    return fields
