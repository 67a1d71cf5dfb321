"""Jobs as files that several processes share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clickmask.errors import UnknownJob
from clickmask.store.jobs import Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs")


def test_a_job_is_what_was_last_noted_of_it(jobs: Jobs) -> None:
    with jobs.owning() as owner:
        made, mine = jobs.request("cvat", "3", 12, owner)
        assert (mine, made.state, made.images) == (True, "queued", 12)
        changed = jobs.change(made.id, state="running", step=5)
        assert Jobs(jobs.folder).get(made.id) == changed
        assert (changed.step, changed.beat_at >= made.beat_at) == (5, True)


def test_many_requests_at_once_make_one_job(jobs: Jobs) -> None:
    with jobs.owning() as owner, ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: jobs.request("cvat", "3", 0, owner), range(40)))
    assert len({job.id for job, _ in asked}) == 1
    assert sum(mine for _, mine in asked) == 1


def test_each_project_has_its_own_job_and_a_new_one_once_it_ended(jobs: Jobs) -> None:
    with jobs.owning() as owner:
        one, other = (jobs.request("cvat", project, 0, owner)[0] for project in "34")
        assert one.id != other.id
        jobs.change(one.id, state="done")
        again, mine = jobs.request("cvat", "3", 0, owner)
        assert mine and again.id not in (one.id, other.id)
        assert [each.id for each in jobs.of("cvat", "3")] == [one.id, again.id]


def test_the_job_of_another_process_is_left_to_it_while_it_lives(jobs: Jobs) -> None:
    with jobs.owning() as mine:
        with Jobs(jobs.folder).owning() as theirs:
            made, _ = jobs.request("cvat", "3", 0, theirs)
            assert jobs.request("cvat", "3", 0, mine) == (made, False)
            assert jobs.adopt(mine) == []
        (adopted,) = jobs.adopt(mine)
        assert (adopted.id, adopted.owner, adopted.state) == (made.id, mine, "queued")


def test_a_request_takes_over_what_a_dead_process_left(jobs: Jobs) -> None:
    with jobs.owning() as theirs:
        made, _ = jobs.request("cvat", "3", 0, theirs)
        jobs.change(made.id, state="running", step=7)
    with jobs.owning() as mine:
        job, is_mine = jobs.request("cvat", "3", 0, mine)
    assert (job.id, is_mine, job.state, job.step) == (made.id, True, "queued", 7)


def test_what_waits_is_cancelled_at_once_and_what_runs_is_told(jobs: Jobs) -> None:
    with jobs.owning() as owner:
        waits = jobs.request("cvat", "3", 0, owner)[0].id
        assert jobs.cancel(waits).state == "cancelled"
        runs = jobs.request("cvat", "3", 0, owner)[0].id
        jobs.change(runs, state="running")
        assert not jobs.is_cancelled(runs)
        assert jobs.cancel(runs).state == "running"
        assert jobs.is_cancelled(runs)


def test_a_job_that_has_ended_does_not_change(jobs: Jobs) -> None:
    with jobs.owning() as owner:
        job = jobs.request("cvat", "3", 0, owner)[0]
        done = jobs.change(job.id, state="done")
        assert jobs.change(job.id, state="running") == done
        assert jobs.cancel(job.id) == done


@pytest.mark.parametrize("name", ["20260101000000-abcd", "../secret", "", "a b", "x" * 300])
def test_other_ids_are_unknown(jobs: Jobs, name: str) -> None:
    with pytest.raises(UnknownJob):
        jobs.get(name)
