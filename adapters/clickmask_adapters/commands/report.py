"""`clickmask report assist`, `miou` and `segmenters`: what the assistance and the models are worth."""

import json
from typing import Annotated

import typer
from rich.text import Text

from clickmask.reports.assistance import Axis, read, summarise
from clickmask_adapters.api.datasets import assistance, proposal_reports
from clickmask_adapters.api.projects import describe_report
from clickmask_adapters.commands._console import (
    AsJson,
    ProjectName,
    ToolName,
    console,
    errors,
    find_project,
    new_table,
    open_home,
)

NAMELESS: dict[Axis, str] = {"category": "(no object)", "segmenter": "(by hand)", "week": "-"}
ASSISTED = (
    "One line for each {by}. objects: accepted. untouched, edited, by hand: accepted as proposed, changed, "
    "or drawn without a proposal. rejected: clicks and drawings of models of which nothing was accepted. "
    "first IoU, last IoU: mean overlap of the first and the last answer with what was accepted, from 0 to 1. "
    "clicks: the mean of an object. seconds: median, from the first to the last answer."
)
MEASURED = (
    "objects: accepted ones that came from it, on so many images. IoU, Dice: overlap with what was accepted, "
    "from 0 to 1, over all pixels. first: of its first answers. last: of those that were accepted. mIoU: the "
    "mean of the categories' IoUs."
)

cli = typer.Typer()
report = typer.Typer(
    name="report", no_args_is_help=True, help="What the assistance and the models are worth."
)
cli.add_typer(report)


@report.command()
def assist(
    tool: ToolName,
    project: ProjectName,
    by: Annotated[Axis, typer.Option(help="One line for each of these.")] = "category",
    as_json: AsJson = False,
) -> None:
    """Compare what was proposed with what was accepted.

    Untouched objects have an IoU of at least 0.99 with their proposal. Click sessions, and objects that a
    model drew, are rejected if nothing of them was accepted. The IoUs of a session's first and last answers
    and its clicks are means over assisted objects; its seconds from first to last answer are a median.
    """
    with open_home() as home:
        find_project(home.store, tool, project)
        if as_json:
            console.print_json(json.dumps(assistance(home.store, tool, project)))
            return
        entries = read(home.store, tool, project)
    if not entries:
        console.print("nothing was accepted and nothing proposed on the images of this project yet")
        return
    counted = ("objects", "untouched", "edited", "by hand", "rejected", "first\nIoU", "last\nIoU", "clicks")
    table = new_table([by], (*counted, "seconds"))
    rows = [(each.name or NAMELESS[by], each) for each in summarise(entries, by)]
    for name, each in [*rows, *(("all", each) for each in summarise(entries))]:
        counts = (each.objects, each.untouched, each.edited, each.unassisted, each.rejected)
        means = ((each.first_iou, ".3f"), (each.last_iou, ".3f"), (each.clicks, ".1f"), (each.seconds, ".1f"))
        numbers = ["" if value is None else f"{value:{form}}" for value, form in means]
        table.add_row(Text(name), *map(str, counts), *numbers)
    table.rows[-1].style = "bold"
    console.print(table)
    console.print(ASSISTED.format(by=by))
    if not any(entry.outcome in ("untouched", "edited") for entry in entries):
        console.print("no accepted object came from a proposal, so there is nothing to compare")


@report.command()
def miou(tool: ToolName, project: ProjectName, as_json: AsJson = False) -> None:
    """Say how good the model in service is on the images that were held out.

    All numbers but the mean over images come from one confusion matrix; mIoU is the mean over categories.
    """
    with open_home() as home:
        find_project(home.store, tool, project)
        found = describe_report(home.models.of(tool, project))
    if as_json:
        console.print_json(json.dumps(found))
        return
    table = new_table(["category"], ["IoU", "Dice"])
    for category, iou in found["iou"].items():
        table.add_row(Text(category), f"{iou:.3f}", f"{found['dice'][category]:.3f}")
    console.print(table)
    low, high = (found["interval"][end] for end in ("low", "high"))
    between = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    for heading, value in (
        ("mIoU", found["miou"]),
        ("with the background", found["miou_with_background"]),
        ("mean over images", found["per_image_miou"]),
        ("pixel accuracy", found["pixel_accuracy"]),
        (f"boundary F1 (within {found['boundary_tolerance']:.1%} of the diagonal)", found["boundary_f1"]),
        ("boundary IoU", found["boundary_iou"]),
    ):
        console.print(f"{heading}: {_written(value)}{between if heading == 'mIoU' else ''}")
    started = found.get("started_from")
    start = f", trained on {found['device']} from {started}" if started else ""  # not written earlier
    console.print(f"network {found['network']}{start}", markup=False)
    console.print(f"model {found['version']}, {found['images']} images, {found['split']}")
    if few := found.get("too_few"):
        errors.print(few)
    if found["absent"]:
        errors.print(f"not in these images, and left out: {', '.join(found['absent'])}", markup=False)


@report.command()
def segmenters(tool: ToolName, project: ProjectName, as_json: AsJson = False) -> None:
    """Measure what was proposed against what was accepted, as models are measured.

    A segmenter has a confusion matrix for its first answers and one for the accepted ones. An annotator is
    measured on whole images, which flatters it: people began with its drawings.
    """
    with open_home() as home:
        find_project(home.store, tool, project)
        found = proposal_reports(home.store, tool, project)
    if as_json:
        console.print_json(json.dumps(found))
        return
    if not found["segmenters"]:
        console.print(
            "no accepted object of this project came from a click, a box or a model: nothing can be measured"
        )
        return
    numbers = ["objects", "images", "first IoU", "last IoU", "last Dice"]
    table = new_table(["segmenter", "category"], numbers)
    for each in found["segmenters"]:
        first, last = each["first"], each["last"] or each["first"]
        for category, iou in last["iou"].items():
            values = (first["iou"].get(category), iou, last["dice"][category])
            table.add_row(Text(each["name"]), Text(category), "", "", *map(_written, values))
        counts = str(each["objects"]), str(last["images"])
        means = (_written(first["miou"]), _written(last["miou"]), "")
        table.add_row(Text(each["name"]), "mean (mIoU)", *counts, *means, style="bold")
    console.print(table)
    console.print(MEASURED)


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
