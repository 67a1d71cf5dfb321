"""`clickmask pull`, `project`, `stats` and `export`: the accepted labels of a project."""

import inspect
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperGroup

from clickmask import plugins
from clickmask.datasets.snapshot import Dataset, Sample, snapshot
from clickmask.errors import Failed, InvalidRequest
from clickmask.ingest.apply import PullProgress
from clickmask.labels.split import MIN_HELD_OUT, MIN_SPLIT_IMAGES
from clickmask.labels.submissions import Unlabelled
from clickmask.reports.statistics import count, find_flaws, left_out
from clickmask_adapters import exports
from clickmask_adapters.api.datasets import describe
from clickmask_adapters.commands._console import (
    AsJson,
    ProjectName,
    ToolName,
    console,
    errors,
    find_project,
    find_tool,
    new_table,
    open_home,
    progress,
    sentence_on_failure,
)
from clickmask_adapters.home import Home

SHOWN_FLAWS = 20
SHOW_EVERY_S = 0.1
COLUMNS = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")


class Watched(tuple[Sample, ...]):
    """The samples of a dataset, which tell `show` how far somebody has come with them."""

    show: Callable[[int], None]

    def __iter__(self) -> Iterator[Sample]:
        shown = time.monotonic()
        for done, sample in enumerate(super().__iter__()):
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                self.show(done)
            yield sample


class Exports(TyperGroup):
    """One command per module in `exports`, with the options of its `write`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        found = typer.Typer()
        for name in plugins.names(exports):
            try:
                command, hidden = _export_command(plugins.load(exports, name)), False
            except Exception as error:  # noqa: BLE001 - foreign code: a broken format must not hide the others
                command, hidden = _refused(f"the export {name} is broken ({type(error).__name__})"), True
            found.command(name, hidden=hidden, context_settings=ANY_ARGUMENTS if hidden else None)(command)
        self.commands = typer.main.get_group(found).commands


ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _refused(why: str) -> Callable[[], None]:
    def command() -> None:
        with sentence_on_failure():
            raise Failed(why)

    return command


cli = typer.Typer()
export = typer.Typer(
    name="export",
    cls=Exports,
    no_args_is_help=True,
    help="Write the accepted labels of a project as a dataset.",
)
cli.add_typer(export)
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder, or an earlier export.")]
Pull = Annotated[bool, typer.Option("--pull", help="Take in the tool's labels first.")]


@cli.command()
def pull(
    tool: ToolName,
    project: ProjectName,
    moved: Annotated[
        bool, typer.Option("--moved", help="The tool is the same as before, at a new address.")
    ] = False,
) -> None:
    """Take in all accepted labels of a project: those from before it was connected, or missed since.

    The same command goes on where an interrupt stopped it. Labels that are kept already cost nothing; labels
    that were deleted in the tool are deleted here too.
    """
    with open_home() as home:
        source = find_tool(home, tool, moved).labels
        if source is None:
            raise InvalidRequest(f"the labels of {tool.replace('_', '-')} cannot be taken in")
        done = PullProgress()
        steps = home.ingester.pull(tool, source, project)
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), "{task.description}")
        with progress(*columns) as show, closing(steps):
            try:
                for done in steps:
                    total = None if done.remaining is None else done.read + done.remaining
                    show(done.read, total, _summary(done))
            except KeyboardInterrupt:
                errors.print("interrupted; the same command goes on from there")
                raise typer.Exit(130) from None
        kept = home.archive.status()
    for sentence in done.left_out:
        errors.print(sentence, markup=False)
    console.print(_summary(done))
    if kept.refused:
        errors.print(f"{kept.refused} images are not kept, for want of room: raise CLICKMASK_KEPT_BYTES")
    if done.left_out:
        raise typer.Exit(1)


@cli.command()
def project(
    tool: ToolName,
    project: ProjectName,
    unlabelled: Annotated[
        Unlabelled | None,
        typer.Option(help="What area without a label is: background, or unknown, and ignored in training."),
    ] = None,
) -> None:
    """Show what is kept of a project, and say what its area without a label is."""
    with open_home() as home:
        found = find_project(home.store, tool, project)
        if unlabelled:
            home.store.set_unlabelled(tool, project, unlabelled)
        area = home.store.unlabelled(tool, project)
        imported = home.store.imports(tool, project)
    console.print(f"{found.tool.replace('_', '-')} {found.project}: {found.title}", markup=False)
    console.print(f"categories: {', '.join(found.categories) or 'not told yet'}", markup=False)
    console.print(f"{found.images} images, {found.labels} labels, of all annotators")
    for dataset, images in imported.items():
        console.print(f"imported: {images} images of {dataset}", markup=False)
    console.print(f"area without a label: {area}")


@cli.command()
def stats(
    tool: ToolName,
    project: ProjectName,
    as_json: AsJson = False,
    every: Annotated[bool, typer.Option("--all", help="Every flaw, not the first twenty.")] = False,
) -> None:
    """Count the accepted labels of a project, by category, and name what looks wrong in them.

    Areas are in pixels: small below 32 x 32, large above 96 x 96. Points are those of polygons as drawn.
    """
    with open_home() as home, watched_dataset(home, tool, project) as watch:
        dataset = watch("counting")
        counted = describe(dataset) if as_json else count(dataset)
    if isinstance(counted, dict):
        console.print_json(json.dumps(counted))
        return
    sizes = ("labels", "images", "least", "median", "most", "small", "medium", "large", "points")
    table = new_table(["category"], sizes)
    for each in counted.categories:
        numbers = (each.labels, each.images, *(each.areas or ("",) * 3), each.small, each.medium, each.large)
        points = "" if each.points is None else f"{each.points:g}"
        table.add_row(Text(each.category), *map(str, numbers), points)
    console.print(table)
    sides = ", ".join(f"{images} {side}" for side, images in counted.sides.items() if images)
    nothing = f", {counted.unlabelled_images} of them with nothing on it" if counted.unlabelled_images else ""
    console.print(f"{counted.images} images{nothing}: {sides}")
    console.print(f"dataset {dataset.digest[:12]}")
    for sentence in counted.left_out:
        errors.print(sentence, markup=False)
    if counted.too_few:
        least = f"{MIN_SPLIT_IMAGES} in all, {MIN_HELD_OUT} each for validation and test"
        errors.print(f"too few images to be split ({least}): models are cross-validated")
    shown = counted.flaws if every else counted.flaws[:SHOWN_FLAWS]
    for flaw in shown:
        errors.print(f"{flaw.kind}: {flaw.sentence}", markup=False)
    if hidden := len(counted.flaws) - len(shown):
        errors.print(f"and {hidden} more: --all")


@contextmanager
def watched_dataset(home: Home, tool: str, project: str) -> Generator[Callable[[str], Dataset]]:
    """A function that gives the project's dataset, and shows what is done while its samples are read."""
    find_project(home.store, tool, project)
    with progress(*COLUMNS) as show:
        show(0, None, "reading the labels")
        dataset = snapshot(home.store, tool, project, home.archive, home.limits)

        def watch(doing: str) -> Dataset:
            total, watched = len(dataset.samples), Watched(dataset.samples)
            watched.show = lambda done: show(done, total, doing)
            show(0, total, doing)
            return replace(dataset, samples=watched)

        yield watch


def _summary(done: PullProgress) -> str:
    return (
        f"{done.taken} taken in, {done.known} known already, {done.gone} gone, {len(done.left_out)} left out"
    )


def _export_command(module: Any) -> Callable[..., None]:
    """The command of a format, with the options of its `write` after those of all formats."""

    def command(
        tool: ToolName, project: ProjectName, out: Out, pull_first: Pull = False, **options: Any
    ) -> None:
        if pull_first:
            try:
                pull(tool, project)
            except typer.Exit as ended:
                if ended.exit_code:
                    errors.print("nothing was exported; without --pull, what is kept already can be")
                raise
        with open_home() as home, watched_dataset(home, tool, project) as watch:
            written = module.write(watch("writing"), out, **options)
            known = inspect.signature(module.losses).parameters
            given = {key: value for key, value in options.items() if key in known}
            losses = module.losses(watch("comparing"), **given)
            dataset = watch("looking for flaws")
            flaws = sum(1 for _ in find_flaws(dataset))
        labels = sum(len(sample.labels) for sample in dataset.samples)
        console.print(str(written), markup=False)
        said = f"{len(dataset.samples)} images, {labels} labels, {len(dataset.categories)} categories"
        console.print(f"{said}, dataset {dataset.digest[:12]}")
        for sentence in (*left_out(dataset), *losses):
            errors.print(sentence, markup=False)
        if flaws:
            stats = f"clickmask stats {tool.replace('_', '-')} {project}"
            errors.print(f"{flaws} things look wrong in the labels: `{stats}` names them", markup=False)

    hints = get_type_hints(module.write, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(module.write).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    signature = inspect.signature(command)
    common = list(signature.parameters.values())[:-1]
    merged = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*common, *own)]
    vars(command)["__signature__"] = signature.replace(parameters=merged)
    command.__annotations__ = {each.name: each.annotation for each in merged}
    command.__doc__ = (module.__doc__ or "").splitlines()[0]
    return command
