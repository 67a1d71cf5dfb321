"""Looking after trainings: with scripts in the worker's place, and once with the real one."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from clickmask.errors import NotReady, ToolUnavailable
from clickmask.images.archive import ImageArchive
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.store.jobs import Job
from clickmask.training import supervisor
from clickmask.training.supervisor import Supervisor, Triggers, WorkerConfig
from support.drawn_projects import accept_drawings
from support.labelled import PROJECT, TOOL
from support.waiting import until

CONFIG = WorkerConfig("", "", "", 2**24, 2**24, {"seconds": 60, "steps": 4, "crops": 1, "validate_every": 2})
WAITS = """
    while not jobs.is_cancelled(job.id) and not (folder / "go").exists():
        time.sleep(0.01)
    jobs.change(job.id, state="cancelled" if jobs.is_cancelled(job.id) else "done")
"""


@pytest.fixture
def begin(tmp_path: Path, store: Store) -> Iterator[Callable[..., Supervisor]]:
    """Supervisor whose worker is a script that knows `jobs`, its `job` and the test's `folder`."""
    begun: list[Supervisor] = []
    script = tmp_path / "worker.py"
    url = store._database.engine.url.render_as_string(hide_password=False)
    config = replace(CONFIG, models=str(tmp_path / "models"), images=str(tmp_path / "images"), database=url)

    def begin(does: str | None = WAITS, **options: Any) -> Supervisor:
        head = """
            import json, os, signal, sys, time
            from pathlib import Path
            config = json.load(sys.stdin)
            folder = Path(config["models"]).parent
            (folder / "pid").write_text(str(os.getpid()))
            from clickmask.store import Store
            jobs = Store(config["database"]).jobs
            job = jobs.get(config["job"])
        """
        if does is not None:
            script.write_text(textwrap.dedent(head) + textwrap.dedent(does))
            options["worker"] = (sys.executable, str(script))
        trainings = Supervisor(store.jobs, store, config, tmp_path / "logs", **options)
        begun.append(trainings)
        trainings.start()
        return trainings

    yield begin
    (tmp_path / "go").touch()
    for each in begun:
        each.close()


def state_of(trainings: Supervisor, job: Job) -> str:
    return trainings.jobs.get(job.id).state


def ended(trainings: Supervisor, job: Job) -> Job:
    until(lambda: state_of(trainings, job) not in ("queued", "running"), 60)
    return trainings.jobs.get(job.id)


def test_labels_become_a_served_model_in_a_process_of_its_own(
    begin: Callable[..., Supervisor], store: Store, tmp_path: Path
) -> None:
    accept_drawings(store, ImageArchive(tmp_path / "images", 2**24, lambda digest: True), 18)
    trainings = begin(None)
    job = trainings.request(TOOL, PROJECT)
    assert job.images == 18
    until(lambda: state_of(trainings, job) not in ("queued", "running"), 1200)
    done = trainings.jobs.get(job.id)
    assert done.state == "done", done.message
    assert (done.step, done.steps) == (4, 4)
    assert done.loss is not None and done.validation_miou is not None and done.seconds > 0
    (version,) = ProjectModels(tmp_path / "models").of(TOOL, PROJECT).versions()
    assert done.version == version.id
    assert done.promoted is bool(ProjectModels(tmp_path / "models").names())
    assert done.message == version.provenance.report["decision"]


def test_the_real_worker_says_what_is_wrong(begin: Callable[..., Supervisor], tmp_path: Path) -> None:
    trainings = begin(None)
    failed = trainings.request(TOOL, PROJECT)
    until(lambda: state_of(trainings, failed) == "failed", 600)
    assert "has no accepted labels" in trainings.jobs.get(failed.id).message


def test_requests_while_one_is_under_way_name_it(begin: Callable[..., Supervisor], tmp_path: Path) -> None:
    trainings = begin()
    job = trainings.request(TOOL, "1")
    until(lambda: state_of(trainings, job) == "running")
    assert {trainings.request(TOOL, "1").id for _ in range(20)} == {job.id}
    other = trainings.request(TOOL, "2")
    (tmp_path / "go").touch()
    assert (ended(trainings, job).state, ended(trainings, other).state) == ("done", "done")


def test_a_training_that_runs_is_cancelled(begin: Callable[..., Supervisor]) -> None:
    trainings = begin()
    job = trainings.request(TOOL, "1")
    until(lambda: state_of(trainings, job) == "running")
    trainings.jobs.cancel(job.id)
    assert ended(trainings, job).state == "cancelled"


def test_one_that_does_not_heed_is_killed(begin: Callable[..., Supervisor]) -> None:
    trainings = begin("time.sleep(600)", grace=0.3)
    job = trainings.request(TOOL, "1")
    until(lambda: state_of(trainings, job) == "running")
    trainings.jobs.cancel(job.id)
    assert ended(trainings, job).state == "cancelled"


def test_one_that_is_killed_is_known_to_be_dead(begin: Callable[..., Supervisor], tmp_path: Path) -> None:
    trainings = begin("os.kill(os.getpid(), signal.SIGKILL)")
    job = ended(trainings, trainings.request(TOOL, "1"))
    assert (job.state, job.message) == (
        "failed",
        "the training's process ended with status -9; its log has the details",
    )


def test_one_that_hangs_is_ended(begin: Callable[..., Supervisor], tmp_path: Path) -> None:
    trainings = begin("time.sleep(600)", hung_after=2.0)
    job = ended(trainings, trainings.request(TOOL, "1"))
    assert (job.state, "no sign of life" in job.message) == ("failed", True)
    until((tmp_path / "pid").exists)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_is_stopped_with_the_server_is_gone_on_with_by_the_next(
    begin: Callable[..., Supervisor], tmp_path: Path
) -> None:
    first = begin()
    job = first.request(TOOL, "1")
    until(lambda: state_of(first, job) == "running")
    first.close()
    assert state_of(first, job) == "queued"
    second = begin()
    until(lambda: state_of(second, job) == "running")
    (tmp_path / "go").touch()
    assert ended(second, job).state == "done"


def test_a_training_waits_for_events_that_have_arrived(begin: Callable[..., Supervisor]) -> None:
    waiting = [3]
    trainings = begin('jobs.change(job.id, state="done")', waiting=lambda: waiting[0])
    job = trainings.request(TOOL, "1")
    with pytest.raises(AssertionError):
        until(lambda: state_of(trainings, job) != "queued", 0.5)
    waiting[0] = 0
    assert ended(trainings, job).state == "done"


def test_missing_images_are_fetched_once_all_events_are_read(begin: Callable[..., Supervisor]) -> None:
    waiting, done = [1], list[tuple[str, str, int]]()

    def fetch(tool: str, project: str, stopped: Callable[[], bool]) -> None:
        assert not stopped()
        done.append((tool, project, waiting[0]))
        raise ToolUnavailable("it is away")

    trains = 'jobs.change(job.id, state="done")'
    trainings = begin(trains, waiting=lambda: waiting[0], fetch=fetch)
    job = trainings.request(TOOL, "1")
    waiting[0] = 0
    assert ended(trainings, job).state == "done", "less to train on is no reason not to"
    assert done == [(TOOL, "1", 0)]


def test_a_training_that_is_cancelled_stops_the_fetching(begin: Callable[..., Supervisor]) -> None:
    fetching = threading.Event()

    def fetch(tool: str, project: str, stopped: Callable[[], bool]) -> None:
        fetching.set()
        until(stopped, 60)

    trainings = begin(fetch=fetch)
    job = trainings.request(TOOL, "1")
    assert fetching.wait(60)
    trainings.jobs.cancel(job.id)
    assert ended(trainings, job).message == "cancelled before it began"


def test_enough_new_images_begin_one_training_after_a_quiet_time(
    begin: Callable[..., Supervisor], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_TICK_S", 0.02)
    now = [0.0]
    kept = ImageArchive(tmp_path / "images", 2**24, lambda digest: True)
    done = 'jobs.change(job.id, state="done")'
    trainings = begin(done, triggers=Triggers(images=3, quiet=60), clock=lambda: now[0])

    def none_yet() -> None:
        with pytest.raises(AssertionError):
            until(lambda: set(trainings.jobs.newest().values()) != made, 0.3)

    def passed_until(begun: bool) -> bool:
        now[0] += 0.0 if begun else 61.0  # again and again: the change may not have been noticed yet
        return begun

    made: set[Job] = set()
    accept_drawings(store, kept, 2)
    now[0] += 1000
    none_yet()  # two are not enough
    accept_drawings(store, kept, 1, first=2)
    none_yet()  # and three not quiet
    until(lambda: passed_until(len(trainings.jobs.newest()) == 1))
    (first,) = trainings.jobs.newest().values()
    made = {ended(trainings, first)}
    assert first.images == 3
    now[0] += 1000
    none_yet()  # there is nothing new
    accept_drawings(store, kept, 3, first=3)
    none_yet()
    until(lambda: passed_until(first.id not in {job.id for job in trainings.jobs.newest().values()}))


def test_without_torch_it_is_said_what_to_install(
    begin: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "NEEDED", ("json", "no_such_torch"))
    with pytest.raises(NotReady, match=r"needs no_such_torch: install clickmask\[torch\]"):
        begin().request(TOOL, "1")
