"""Jobs as rows that several processes share."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa

from clickmask.errors import NotFound
from clickmask.store import Store
from clickmask.store import jobs as jobs_module
from clickmask.store.jobs import MAX_JOBS, MISSED_BEATS, Job, Jobs, Pulse
from support.waiting import until


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return store.jobs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come, and are looked for, many times a second."""
    monkeypatch.setattr(jobs_module, "BEAT_S", 0.05)


def url_of(store: Store) -> str:
    return store._database.engine.url.render_as_string(hide_password=False)


def test_a_job_is_what_was_last_noted_of_it(store: Store, jobs: Jobs) -> None:
    with jobs.owning() as owner:
        made, mine = jobs.request("cvat", "3", 12, owner)
        assert (mine, made.state, made.images) == (True, "queued", 12)
        changed = jobs.change(made.id, state="running", step=5)
        with closing(Store(url_of(store))) as other:
            assert other.jobs.get(made.id) == changed
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
        assert [each.id for each in jobs.under_way()] == [other.id, again.id]
        assert {key: each.id for key, each in jobs.newest().items()} == {
            ("cvat", "3"): again.id,
            ("cvat", "4"): other.id,
        }


def test_the_job_of_another_process_is_left_to_it_while_it_lives(jobs: Jobs) -> None:
    with jobs.owning() as mine:
        with jobs.owning() as theirs:
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
    with pytest.raises(NotFound):
        jobs.get(name)


def test_the_last_jobs_of_a_project_stay_and_older_ones_that_ended_go(jobs: Jobs) -> None:
    with jobs.owning() as owner:
        other, _ = jobs.request("cvat", "4", 0, owner)
        made = list[Job]()
        for _ in range(MAX_JOBS + 3):
            made.append(jobs.request("cvat", "3", 0, owner)[0])
            jobs.change(made[-1].id, state="done")
    for job in made[:3]:
        with pytest.raises(NotFound):
            jobs.get(job.id)
    assert [jobs.get(job.id).state for job in (*made[3:], other)] == ["done"] * MAX_JOBS + ["queued"]


def test_looking_for_jobs_reads_by_an_index_and_writes_nothing(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "store.sqlite")) as store, store.jobs.owning() as owner:
        asked: list[str] = []
        sa.event.listen(
            store._database.engine, "before_cursor_execute", lambda *given: asked.append(given[2])
        )
        assert store.jobs.adopt(owner) == []
        begin, query = asked
        assert begin == "BEGIN"
        with store._database.reading() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", ("queued", "running")).all()
    assert "jobs_of_state" in str(plan)


def test_what_counts_on_lives_and_what_stands_still_at_many_looks_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pulse: Pulse[str] = Pulse()
    for number in range(3 * MISSED_BEATS):
        assert pulse.lost({"alive": number, "late": number // (MISSED_BEATS - 1)}) == []
        now[0] += jobs_module.BEAT_S
    assert pulse.lost({}) == []
    for _ in range(20):
        assert pulse.lost({"gone": 7}) == [], "looks that follow each other at once are one"
    for _ in range(MISSED_BEATS - 1):
        now[0] += jobs_module.BEAT_S
        assert pulse.lost({"gone": 7}) == []
    now[0] += jobs_module.BEAT_S
    assert pulse.lost({"gone": 7}) == ["gone"]


def test_a_pause_of_the_whole_machine_takes_no_job_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pulse: Pulse[str] = Pulse()
    assert pulse.lost({"job": 1}) == []
    now[0] += 3600
    assert pulse.lost({"job": 1}) == []
    now[0] += jobs_module.BEAT_S
    assert pulse.lost({"job": 2}) == []


OWNS = """
import sys, time
from pathlib import Path
from clickmask.store import Store, jobs
jobs.BEAT_S = 0.05
store = Store(sys.argv[1])
with store.jobs.owning() as owner:
    job, _ = store.jobs.request("cvat", "3", 0, owner)
    store.jobs.start(job)
    with store.jobs.training(job):
        print(job.id, flush=True)
        time.sleep(600)
"""


def test_the_job_of_a_killed_process_is_gone_on_with_and_only_then(
    store: Store, jobs: Jobs, quick: None
) -> None:
    process = subprocess.Popen([sys.executable, "-c", OWNS, url_of(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    id = process.stdout.readline().strip()  # noqa: A001
    with process, jobs.owning() as owner:
        assert jobs.request("cvat", "3", 0, owner) == (jobs.get(id), False)
        for _ in range(4 * MISSED_BEATS):
            assert jobs.adopt(owner) == []
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: [job.id for job in jobs.adopt(owner)] == [id])
        job = jobs.get(id)
        assert (job.owner, job.state) == (owner, "queued")
        with jobs.training(job):  # waits until the dead trainer has been looked at often enough
            pass


def test_only_the_jobs_that_are_asked_for_are_taken_over(jobs: Jobs) -> None:
    with jobs.owning() as theirs:
        one, other = (jobs.request("cvat", project, 0, theirs)[0] for project in "34")
    with jobs.owning() as mine:
        assert jobs.adopt(mine, ()) == []
        assert [job.id for job in jobs.adopt(mine, {other.id})] == [other.id]
        assert [job.id for job in jobs.adopt(mine)] == [one.id, other.id]


def test_one_process_at_a_time_trains_a_project(jobs: Jobs, quick: None) -> None:
    with jobs.owning() as owner, ThreadPoolExecutor(2) as pool:
        job, _ = jobs.request("cvat", "3", 0, owner)
        other, _ = jobs.request("cvat", "4", 0, owner)
        order: list[str] = []

        def train(job: Job) -> None:
            with jobs.training(job):
                order.append("second")

        with jobs.training(job), jobs.training(other):
            waits = pool.submit(train, job)
            time.sleep(0.05 * 3 * MISSED_BEATS)
            order.append("first")
        waits.result(60)
    assert order == ["first", "second"]


def test_a_job_that_was_taken_over_is_neither_started_nor_settled(jobs: Jobs) -> None:
    with jobs.owning() as theirs:
        job, _ = jobs.request("cvat", "3", 0, theirs)
    with jobs.owning() as mine:
        (adopted,) = jobs.adopt(mine)
        assert not jobs.start(job)
        assert jobs.start(adopted) and not jobs.start(adopted)
        assert jobs.settle(job, "it was killed").state == "running"
        assert jobs.settle(adopted, "").state == "queued"
        assert jobs.start(adopted)
        ended = jobs.settle(adopted, "it was killed")
        assert (ended.state, ended.message) == ("failed", "it was killed")


def test_a_folder_of_jobs_is_taken_in_once(jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    done = Job("20260101000000000000-00000001", "cvat", "3", "done", 1.0, 4, "old", 2.0, version="0001-a")
    waits = Job("20260101000000000000-00000002", "cvat", "3", "running", 1.0, 4, "old", 2.0, step=7)
    for job in (done, waits):
        (folder / f"{job.id}.json").write_text(json.dumps(asdict(job)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(jobs.import_folder, [folder] * 4))
    assert not folder.exists()
    assert len(list(tmp_path.glob("jobs-imported-*/*.json"))) == 2, "nothing is thrown away"
    assert (jobs.get(done.id).version, jobs.get(done.id).state) == ("0001-a", "done")
    with jobs.owning() as owner:
        (adopted,) = jobs.adopt(owner)
    assert (adopted.id, adopted.step, adopted.state) == (waits.id, 7, "queued")
