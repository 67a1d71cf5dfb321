"""What is seen of a preparation in a terminal."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from clickmask_adapters.preparing import Prepared


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} images/s" if task.speed else "")


def follow(prepared: Generator[Prepared], total: int, out: Console, err: Console) -> bool:
    """Show a bar, then what became of the images; whether all are prepared.

    An interrupt ends it early, without an exception.
    """
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    encoded = kept = 0
    failed: list[Prepared] = []
    interrupted = False
    began = time.perf_counter()
    with Progress(*columns, console=err, speed_estimate_period=300) as bar, closing(prepared):
        task = bar.add_task("", total=total)
        try:
            for image in prepared:
                encoded += not image.was_there and not image.error
                kept += image.was_there
                failed += [image] if image.error else []
                said = f"{encoded} encoded, {kept} there already, {len(failed)} failed"
                bar.update(task, advance=1, description=said)
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.perf_counter() - began
    for image in failed:
        err.print(f"{image.name}: {image.error}", markup=False)
    out.print(f"{encoded} encoded, {kept} there already, {len(failed)} failed, in {seconds:.0f} s")
    if interrupted:
        err.print("interrupted, once the image under way is done; the same command goes on from there")
    return not interrupted and not failed
