"""`clickmask train`, `rollback` and `prelabel`: models trained on a project's labels."""

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from clickmask.ingest.reader import InboxReader
from clickmask.store.jobs import UNDER_WAY
from clickmask_adapters.commands._console import (
    ProjectName,
    ToolName,
    console,
    end,
    errors,
    find_project,
    find_tool,
    open_home,
    progress,
)
from clickmask_adapters.tools._prelabel import Step

POLL_S = 0.3
Device = Literal["auto", "cpu", "cuda", "mps"]

cli = typer.Typer()


@cli.command()
def train(
    tool: ToolName,
    project: ProjectName,
    network: Annotated[
        str, typer.Option(help="The network, such as `unet_lite`. Default: CLICKMASK_NETWORK.")
    ] = "",
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="A safetensors file of weights that its encoder starts from. Default: CLICKMASK_ENCODER, "
            "else those of installed packages.",
        ),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="What trains. Default: CLICKMASK_DEVICE, which is auto.")
    ] = None,
) -> None:
    """Train a model on the accepted labels of a project, and serve it if it is the better one.

    If a training of the project is under way, it is followed. After an interrupt, the same command goes on
    from the last validation; so does the server when it starts. CLICKMASK_TRAIN_SECONDS limits its time,
    counted as its own processor time, so that it takes longer on a busy machine.
    """
    times = (TimeElapsedColumn(), "at most", TimeRemainingColumn(), "more")
    columns = (BarColumn(20), "{task.description}", *times)
    asked = {"encoder": encoder, "device": device}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value}
    with open_home(**given) as home, ExitStack() as stack:
        find_project(home.store, tool, project)
        # A server may read the same events: nothing is ingested twice.
        reader = InboxReader(home.inbox, home.store, home.ingester, home.label_sources)
        stack.enter_context(closing(reader)).start()
        supervisor = home.supervisor(lambda: reader.status().waiting)
        stack.enter_context(closing(supervisor)).start(adopting=False)
        begun = {each.id for each in supervisor.jobs.under_way()}
        job = supervisor.request(tool, project, network)
        if given and job.id in begun:
            said = "--encoder and --device count for the next one"
            errors.print(f"a training is under way, and goes on as it began: {said}")
        plain = "{done:.0f} s of at most {total:.0f} s: "
        show = stack.enter_context(progress(*columns, plain=plain, every=0))
        try:
            while job.state in UNDER_WAY:
                total = None if job.seconds_left is None else job.seconds + job.seconds_left
                said: str = job.state
                if job.loss is not None:
                    miou = "-" if job.validation_miou is None else f"{job.validation_miou:.3f}"
                    said = f"step {job.step}/{job.steps}, loss {job.loss:.3f}, validation mIoU {miou}"
                    said += f". {job.message}" * bool(job.message)
                show(job.seconds, total, said)
                time.sleep(POLL_S)
                job = supervisor.jobs.get(job.id)
        except KeyboardInterrupt:
            errors.print("interrupted; the same command goes on from the last validation")
            raise typer.Exit(130) from None
    said = f"model {job.version}: {job.message}" if job.version else job.message
    (console if job.state == "done" else errors).print(said, markup=False)
    if job.state != "done":
        raise typer.Exit(1)


@cli.command()
def rollback(tool: ToolName, project: ProjectName) -> None:
    """Serve the model that was served before the present one."""
    with open_home() as home:
        find_project(home.store, tool, project)
        served = home.models.of(tool, project).roll_back()
    console.print(f"model {served.id} is served again", markup=False)


@cli.command()
def prelabel(
    tool: ToolName,
    project: ProjectName,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Show the default segmenter each object, and keep the better outline of the two. Default: "
            "CLICKMASK_REFINE.",
        ),
    ] = None,
    annotator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One of /v1/annotators whose labels the project has, such as unprompted:selfie. Default: "
            "the project's trained model.",
        ),
    ] = None,
) -> None:
    """Let the project's trained model draw in every task that nobody has touched.

    Label Studio gets predictions in tasks without annotations and drafts; CVAT gets shapes in new jobs
    without annotations. Tasks and jobs that have them are left alone, so after an interrupt the same command
    goes on where it stopped.
    """
    given: dict[str, Any] = {} if refine is None else {"refine": refine}
    with open_home(**given) as home:
        done, interrupted = Step(0), False
        steps = find_tool(home, tool).prelabel(home.workbench, project, annotator)
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), "{task.description}")
        with progress(*columns) as show:
            try:
                for step in steps:
                    done = done.then(step)
                    show(done.images, done.images + done.remaining, _summary(done))
            except KeyboardInterrupt:
                interrupted = True
    end(_summary(done), done.left_out, interrupted, most=len(done.left_out))


def _summary(done: Step) -> str:
    return (
        f"{done.objects} objects drawn in {done.containers}, {done.untouched} left as they were, "
        f"{len(done.left_out)} left out"
    )
