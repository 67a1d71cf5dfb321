"""`clickmask train` and `clickmask rollback`."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clickmask.ingest.reader import InboxReader
from clickmask.store.jobs import UNDER_WAY, Job
from clickmask.training.supervisor import Supervisor
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    console,
    errors,
    find_project,
    sentence_on_failure,
)
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings

POLL_S = 0.3  # seconds between looks at the job


def add_to(cli: typer.Typer) -> None:
    cli.command()(train)
    cli.command()(rollback)


def train(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="`label-studio` or `cvat`.")],
    project: ProjectName,
) -> None:
    """Train a model on the accepted labels of a project, and serve it if it is the better one.

    Where a training of the project is under way, it is followed. Interrupted, the same command goes on
    from the last validation; so does the server when it starts. CLICKMASK_TRAIN_SECONDS is how long
    it takes at most.
    """
    with sentence_on_failure(), closing(Home(Settings())) as home, _drained(home) as reader:
        chosen, name = find_project(home.store, project, tool)
        trainings = home.supervisor(lambda: reader.status().waiting)
        with closing(trainings):
            trainings.start(adopting=False)
            job = _follow(trainings, trainings.request(chosen, name))
    said = f"model {job.version}: {job.message}" if job.version else job.message
    (console if job.state == "done" else errors).print(said, markup=False)
    if job.state != "done":
        raise typer.Exit(1)


def rollback(project: ProjectName, tool: ToolName = None) -> None:
    """Serve the model that was served before the present one."""
    with sentence_on_failure(), closing(Home(Settings())) as home:
        served = home.models.of(*find_project(home.store, project, tool)).roll_back()
    console.print(f"model {served.id} is served again", markup=False)


@contextmanager
def _drained(home: Home) -> Generator[InboxReader]:
    """A reader of the tools' events. A server may read them too: nothing is taken in twice."""
    reader = InboxReader(home.inbox, home.store, home.ingester, home.label_sources)
    reader.start()
    try:
        yield reader
    finally:
        reader.close()


def _follow(trainings: Supervisor, job: Job) -> Job:
    """Show a bar until the job has ended; an interrupt ends it with status 130."""
    columns = (
        BarColumn(20),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("more"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        shown = bar.add_task(job.state, total=None)
        try:
            while job.state in UNDER_WAY:
                left = job.seconds_left
                total = None if left is None else job.seconds + left
                bar.update(shown, completed=job.seconds, total=total, description=_described(job))
                time.sleep(POLL_S)
                job = trainings.jobs.get(job.id)
        except KeyboardInterrupt:
            errors.print("interrupted; the same command goes on from the last validation")
            raise typer.Exit(130) from None
    return job


def _described(job: Job) -> str:
    if job.loss is None:
        return job.state
    miou = "-" if job.validation_miou is None else f"{job.validation_miou:.3f}"
    return f"step {job.step}/{job.steps}, loss {job.loss:.3f}, validation mIoU {miou}"
