"""What the process that trains tells of itself, and when it ends."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickmask.jobs import Jobs
from clickmask.training.fit import Progress
from clickmask.training.worker import BEAT, Working, _finish


@pytest.fixture
def working(tmp_path: Path) -> Iterator[Working]:
    jobs = Jobs(tmp_path / "jobs")
    with jobs.owning() as owner:
        job, _ = jobs.request("cvat", "3", 5, owner)
        yield Working(jobs, jobs.change(job.id, state="running"), os.getppid())


def test_progress_is_noted_in_plain_numbers(working: Working) -> None:
    working.report(Progress(20, 100, 0.5, math.nan, 8.0, 32.0))
    job = working.jobs.get(working.job.id)
    assert (job.step, job.steps, job.loss, job.validation_miou) == (20, 100, 0.5, None)
    assert (job.seconds, job.seconds_left) == (8.0, 32.0)


def test_signs_of_life_are_given_now_and_then(working: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[str] = []
    monkeypatch.setattr(working.jobs, "change", changed.append)
    for _ in range(5):
        working.beat()
    assert len(changed) == 1
    working.beaten_at -= BEAT
    working.beat()
    assert len(changed) == 2
    assert not working.ends()


def test_it_ends_when_it_is_cancelled_and_says_so(working: Working) -> None:
    working.jobs.cancel(working.job.id)
    assert working.ends()
    _finish(working, None)
    assert working.jobs.get(working.job.id).state == "cancelled"


def test_it_ends_with_its_parent_and_is_left_to_be_gone_on_with(working: Working) -> None:
    working.parent = -1  # another one has adopted it
    working.beat()
    assert working.ends()
    _finish(working, None)
    assert working.jobs.get(working.job.id).state == "queued"
