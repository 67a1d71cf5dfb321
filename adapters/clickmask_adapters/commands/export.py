"""`clickmask export FORMAT PROJECT --out DIR`: one command a module in `exports`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from clickmask import plugins
from clickmask.reports.statistics import find_flaws
from clickmask_adapters import exports
from clickmask_adapters.api.datasets import open_dataset
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    console,
    errors,
    find_project,
    sentence_on_failure,
)
from clickmask_adapters.commands.pull import pull
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder, or an earlier export.")]
From = Annotated[
    str | None, typer.Option("--from", metavar="TOOL", help="label-studio or cvat: pull from it first.")
]


def add_to(cli: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Write the accepted labels of a project as a dataset.")
    for name in plugins.names(exports):
        group.command(name)(_command(plugins.load(exports, name)))
    cli.add_typer(group, name="export")


def _command(module: Any) -> Callable[..., None]:
    """`_export` with the options of the module's `write` among its own."""

    def command(
        project: ProjectName, out: Out, tool: ToolName = None, from_: From = None, **options: Any
    ) -> None:
        _export(module, project, out, tool, from_, options)

    hints = get_type_hints(module.write, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(module.write).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    signature = inspect.signature(command, eval_str=True)
    common = list(signature.parameters.values())[:-1]
    merged = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*common, *own)]
    vars(command)["__signature__"] = signature.replace(parameters=merged)
    command.__annotations__ = {each.name: each.annotation for each in merged}
    command.__doc__ = (module.__doc__ or "").splitlines()[0]
    return command


def _export(
    module: Any, project: str, out: Path, tool: str | None, from_: str | None, options: dict[str, Any]
) -> None:
    if from_:
        _pull_first(from_, project)
        tool = from_
    settings = Settings()
    with sentence_on_failure(), closing(Home(settings)) as home:
        chosen, name = find_project(home.store, project, tool)
        dataset = open_dataset(home.store, chosen, name, home.archive, settings)
        written = module.write(dataset, out, **options)
        known = inspect.signature(module.losses).parameters
        losses = module.losses(dataset, **{key: value for key, value in options.items() if key in known})
    labels = sum(len(sample.labels) for sample in dataset.samples)
    console.print(str(written), markup=False)
    said = f"{len(dataset.samples)} images, {labels} labels, {len(dataset.categories)} categories"
    console.print(f"{said}, dataset {dataset.digest[:12]}")
    for sentence in losses:
        errors.print(sentence, markup=False)
    if flaws := sum(1 for _ in find_flaws(dataset)):
        errors.print(
            f"{flaws} things look wrong in the labels: `clickmask stats {project}` names them", markup=False
        )


def _pull_first(tool: str, project: str) -> None:
    try:
        pull(tool, project)
    except typer.Exit as ended:
        if ended.exit_code:
            errors.print("nothing was exported; without --from, what is kept already can be")
        raise
