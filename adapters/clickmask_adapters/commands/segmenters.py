"""`clickmask segmenters` and `clickmask weights list|fetch|path`."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from clickmask.plugins import About, Variant
from clickmask_adapters.commands._console import console, errors, open_home

cli = typer.Typer()
weights = typer.Typer(
    name="weights", no_args_is_help=True, help="Checkpoints of segmenters: list, fetch and verify them."
)
cli.add_typer(weights)
WeightsName = Annotated[str, typer.Argument(metavar="NAME", help="As in `clickmask weights list`.")]

MEASURED = resources.files("clickmask_adapters.commands").joinpath("measured.json")  # by tests/benchmarks
SHORT = ("segmenter", "weights", "licence", "image, CPU s", "click, CPU ms", "mIoU by 1, 3, 5 clicks; box")


@cli.command()
def segmenters(
    every: Annotated[bool, typer.Option("--all", help="All that is known of each.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table for the pages.")] = False,
) -> None:
    """List what is installed, how large, quick and good it is, and what is ready.

    Seconds are of one thread of the processor on which they were measured. mIoU is of 23 objects that were
    outlined by hand in photographs.
    """
    with open_home() as home:
        described, statuses = home.segmenters.variants(), home.segmenters.statuses()
    measured = json.loads(MEASURED.read_text())["segmenters"]
    rows = [facts(each.name, described.get(each.name), measured.get(each.name)) for each in statuses]
    columns = [column for column in rows[0] if every or column in SHORT]
    cells = [columns, *([row[column] for column in columns] for row in rows)]
    if markdown:
        console.print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", markup=False)
        for name, *others in cells[1:]:
            console.print(f"| `{name}` | {' | '.join(others)} |", markup=False)
        return
    ready = ["ready", *("yes" if each.ready else each.reason for each in statuses)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line, last in zip(cells, ready, strict=True):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        console.print("  ".join((*padded, last)), markup=False)


def facts(name: str, variant: Variant | None, measured: Mapping[str, Any] | None) -> dict[str, str]:
    """What is said of a segmenter, by column. A plugin that says nothing of itself has empty cells."""
    about = variant.about if variant else About(prompts=(), candidates=0)
    files = variant.checkpoint.files if variant and variant.checkpoint else ()
    size = sum(each.bytes for each in files) or about.bytes
    known = measured or {}
    mious = [*known["miou"][:5:2], known["box_miou"]] if "miou" in known else []
    spread = [known["intervals"][row] for row in (0, 2, 4, 5)] if mious else []
    return {
        "segmenter": name,
        "family, paper": ", ".join(filter(None, (about.family, about.paper))),
        "parameters": f"{about.parameters / 1e6:.1f} M" if about.parameters else "",
        "weights": _size(size) if size else "none" if about.family else "",
        "licence": " and ".join(sorted({each.licence for each in files})) or about.licence,
        "prompts": ", ".join(about.prompts),
        "candidates": str(about.candidates or ""),
        "also": ", ".join(
            what
            for what, offered in (
                ("everything", variant and variant.sweeps),
                ("CVAT's SAM plugin", variant and variant.sam_decoder),
                ("no prompt", variant and variant.labels),
            )
            if offered
        ),
        "image, CPU s": f"{known['encode_s']:.2f}" if known else "",
        "click, CPU ms": f"{known['click_ms']:.0f}" if known else "",
        "mIoU by 1, 3, 5 clicks; box": "{}/{}/{}; {}".format(*map(_share, mious)) if mious else "",
        "95 %": ", ".join(f"{_share(low)}-{_share(high)}" for low, high in spread),
    }


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.{0 if count > 2e7 else 1}f} MB"


def _share(iou: float) -> str:
    return f"{iou:.2f}".removeprefix("0")


@weights.command("list")
def list_weights() -> None:
    """List the official files, and which are here."""
    with open_home() as home:
        console.print(f"folder: {home.weights.folder}", markup=False)
        for name, checkpoint in home.weights.checkpoints.items():
            console.print(f"\n{name}: {home.weights.missing(name) or 'here'}", markup=False)
            for file in checkpoint.files:
                console.print(f"  {file.address}", markup=False)
                console.print(f"  {file.bytes:,} bytes, licence {file.licence}", markup=False)
                console.print(f"  sha256 {file.sha256}", markup=False)


@weights.command("fetch")
def fetch_weights(name: WeightsName) -> None:
    """Download a file, or go on with it, verify it, and export it for the runtimes of this machine.

    CLICKMASK_WEIGHTS_MIRROR names another source. Exporting takes minutes and needs the package torch, both
    only once: nothing is downloaded where torch is missing. Without it, copy the folder `runtimes` from
    another machine.
    """
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with open_home() as home:
        home.weights.checkpoint(name)  # a name without weights has a sentence of its own
        home.segmenters.require_all_but_weights(name)
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(name, total=None)
            path = home.weights.fetch(name, lambda done, total: bar.update(task, completed=done, total=total))
        console.print(str(path), markup=False)
        with Progress(BarColumn(), "{task.description}", console=errors, transient=True) as bar:
            task = bar.add_task("exporting", total=1.0)
            exported = home.segmenters.export(
                name, lambda share, what: bar.update(task, completed=share, description=what)
            )
    if exported:
        console.print(f"{name} is exported: serving it needs no torch", markup=False)


@weights.command("path")
def weights_path(name: WeightsName) -> None:
    """Print where a file is, once it is verified; that may be one that was put there by hand."""
    with open_home() as home:
        console.print(str(home.weights.verify(name)), markup=False)
