"""What the process that trains tells of itself, and when it ends."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from clickmask.errors import InvalidRequest, StoreUnavailable
from clickmask.store import Store
from clickmask.store.jobs import Job
from clickmask.training import worker
from clickmask.training.fit import Progress
from clickmask.training.worker import AUTOGROUP, HEARTBEAT_S, LOWEST_PRIORITY, RunningJob, work


@pytest.fixture
def working(store: Store) -> Iterator[RunningJob]:
    jobs = store.jobs
    with jobs.owning() as owner:
        job, _ = jobs.request("cvat", "3", 5, owner)
        yield RunningJob(jobs, jobs.change(job.id, state="running"), os.getppid())


def test_progress_is_noted_in_plain_numbers(working: RunningJob) -> None:
    working.report(Progress(20, 100, 0.5, math.nan, 8.0, 32.0))
    job = working.jobs.get(working.job.id)
    assert (job.step, job.steps, job.loss, job.validation_miou) == (20, 100, 0.5, None)
    assert (job.seconds, job.seconds_left) == (8.0, 32.0)


def test_a_busy_machine_is_told_while_the_training_goes_on(working: RunningJob) -> None:
    busy = Progress(9, 3000, 0.5, math.nan, 9.0, 111.0, waited=111.0)
    working.report(busy)
    assert working.jobs.get(working.job.id).message == busy.busy != ""
    working.report(replace(busy, seconds=112.0))
    assert working.jobs.get(working.job.id).message == ""


def test_signs_of_life_are_given_now_and_then(working: RunningJob, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[str] = []

    def change(id: str) -> Job:  # noqa: A002
        changed.append(id)
        return working.job

    monkeypatch.setattr(working.jobs, "change", change)
    for _ in range(5):
        working.beat()
    assert len(changed) == 1
    working.beaten_at -= HEARTBEAT_S
    working.beat()
    assert len(changed) == 2
    assert not working.ends()


def test_it_ends_when_it_is_cancelled_and_says_so(working: RunningJob) -> None:
    working.jobs.cancel(working.job.id)
    assert working.ends()
    working.finish(None)
    assert working.jobs.get(working.job.id).state == "cancelled"


def test_it_ends_with_its_parent_and_is_left_to_be_gone_on_with(working: RunningJob) -> None:
    working.parent = -1  # another one has adopted it
    working.beat()
    assert working.ends()
    working.finish(None)
    assert working.jobs.get(working.job.id).state == "queued"


def test_what_another_has_taken_over_is_left_to_it(store: Store) -> None:
    jobs = store.jobs
    with jobs.owning() as owner:
        job, _ = jobs.request("cvat", "3", 5, owner)
        working = RunningJob(jobs, jobs.change(job.id, state="running"), -1)
    with jobs.owning() as heir:
        assert jobs.adopt(heir)
        jobs.change(job.id, state="running")  # it waits for this one to be gone
        working.parent = os.getppid()
        working.beat()
        assert working.ends()
        working.finish(None)
        assert jobs.get(job.id).state == "running"


def test_a_store_that_is_away_for_a_while_ends_no_training(
    working: RunningJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.01)
    change, left = working.jobs.change, [3]

    def away(*_: object, **__: object) -> bool:
        raise StoreUnavailable("just now")

    def away_at_first(id: str, **values: object) -> Job:  # noqa: A002
        left[0] -= 1
        return change(id, **values) if left[0] < 0 else away()  # type: ignore[return-value]  # it raises

    monkeypatch.setattr(working.jobs, "change", away)
    monkeypatch.setattr(working.jobs, "is_cancelled", away)
    working.beat()
    working.report(Progress(20, 100, 0.5, math.nan, 8.0, 32.0))
    assert not working.ends()
    monkeypatch.setattr(working.jobs, "change", away_at_first)
    working.end("failed", "for a reason")
    ended = working.jobs.get(working.job.id)
    assert (ended.state, ended.message, left) == ("failed", "for a reason", [-1])
    monkeypatch.setattr(worker, "MAX_STORE_WAIT_S", 0.05)
    monkeypatch.setattr(working.jobs, "change", away)
    with pytest.raises(StoreUnavailable):
        working.end("failed", "for a reason")


PRIORITY = (
    "from clickmask.training import worker; import os; worker.lower_priority(); print(os.nice(0), end=' ');\
print(worker.AUTOGROUP.exists() and worker.AUTOGROUP.read_text().split()[-1])"
)


def test_it_gives_way_to_other_sessions_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRIORITY], capture_output=True, text=True, check=True, start_new_session=True
    )
    nice, of_the_session = done.stdout.split()
    assert int(nice) == LOWEST_PRIORITY
    if AUTOGROUP.exists():
        assert int(of_the_session) == LOWEST_PRIORITY


def test_a_training_uses_no_more_threads_than_it_may(
    working: RunningJob, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", used.append)
    config = {"images": str(tmp_path), "models": str(tmp_path), "max_image_bytes": 1, "max_image_pixels": 1}
    for threads in (None, 3):
        with pytest.raises(InvalidRequest, match="has no accepted labels"):
            work(working, store, {**config, "plan": {}, "threads": threads})
    assert used == [3]
