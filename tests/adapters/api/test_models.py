"""Supervisor and models over HTTP and by command, with a script in the worker's place."""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from clickmask.images.archive import ImageArchive
from clickmask.models.versions import Models
from clickmask.store import Store
from clickmask.training import supervisor
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.cli import app
from clickmask_adapters.commands.models import POLL_S
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.drawn_projects import accept_drawings
from support.labelled import PROJECT, TOOL
from support.model_drafts import draft
from support.waiting import until

WORKER = """
    import json, sys, time
    from pathlib import Path
    from clickmask.store import Store
    config = json.load(sys.stdin)
    jobs = Store(Path(config["database"])).jobs
    job = jobs.get(config["job"])
    folder = Path(config["models"]).parent
    jobs.change(job.id, step=50, steps=100, loss=0.5, validation_miou=0.7, seconds=9.0, seconds_left=9.0)
    while not jobs.is_cancelled(job.id) and not (folder / "go").exists():
        time.sleep(0.01)
    if jobs.is_cancelled(job.id):
        jobs.change(job.id, state="cancelled", message="cancelled")
    else:
        jobs.change(job.id, state="done", version="0001-abcd", promoted=True, message="promoted: it is good")
"""
OF = f"/v1/projects/{TOOL}/{PROJECT}"
REPORT = {
    "split": "test",
    "images": 3,
    "miou": 0.75,
    "interval": {"estimate": 0.75, "low": 0.7, "high": 0.8},
    "miou_with_background": 0.8,
    "per_image_miou": 0.74,
    "iou": {"disc": 0.7, "square": 0.8},
    "dice": {"disc": 0.82, "square": 0.89},
    "pixel_accuracy": 0.97,
    "boundary_f1": 0.9,
    "boundary_tolerance": 0.008,
    "boundary_iou": None,
    "absent": ["moon"],
    "started_from": "random weights",
    "device": "cpu",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture(autouse=True)
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    worker = (sys.executable, str(script))
    monkeypatch.setitem(supervisor.Supervisor.__init__.__kwdefaults__, "worker", worker)
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path))
    yield


@pytest.fixture
def client(settings: Settings, workbench: Workbench, tmp_path: Path) -> Iterator[TestClient]:
    kept = ImageArchive(tmp_path / "images", 2**24, lambda digest: True)
    accept_drawings(workbench.store, kept, 2)
    served = create_app(Home(settings, workbench))
    with TestClient(served, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        yield client


@pytest.fixture
def models(settings: Settings) -> Models:
    return Home(settings).models.of(TOOL, PROJECT)


def serve(models: Models, weight: float = 2.0, report: dict[str, Any] | None = None) -> str:

    made = draft(weight)
    provenance = replace(made.provenance, report=report or REPORT)
    return models.promote(models.save(replace(made, provenance=provenance)).id).id


def running(client: TestClient, job: str) -> bool:
    return client.get(f"/v1/jobs/{job}").json()["step"] == 50


def test_a_training_is_asked_for_followed_and_done(client: TestClient, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    answer = client.post(f"{OF}/train")
    assert answer.status_code == 202
    job = answer.json()["job"]
    until(lambda: running(client, job), 30)
    again = client.post(f"{OF}/train")
    assert (again.status_code, again.json()) == (202, {"job": job})
    seen = client.get(f"/v1/jobs/{job}").json()
    assert (seen["state"], seen["loss"], seen["validation_miou"]) == ("running", 0.5, 0.7)
    assert [each["id"] for each in client.get("/v1/status").json()["trainings"]] == [job]
    (tmp_path / "go").touch()
    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "done", 30)
    assert client.get("/v1/status").json()["trainings"] == []


def test_a_training_is_of_the_network_that_is_named(client: TestClient, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    unknown = client.post(f"{OF}/train", params={"network": "vgg"})
    assert unknown.status_code == 400
    assert "there is no network 'vgg'; installed: deeplabv3plus, fcn, mask2former, segformer" in unknown.text
    job = client.post(f"{OF}/train", params={"network": "fcn"}).json()["job"]
    assert client.get(f"/v1/jobs/{job}").json()["network"] == "fcn"
    other = client.post(f"{OF}/train", params={"network": "unet"})
    assert (other.status_code, "a training of fcn is under way" in other.text) == (409, True)
    for network in ("", "fcn"):  # whichever, and the same one
        assert client.post(f"{OF}/train", params={"network": network}).json() == {"job": job}
    (tmp_path / "go").touch()
    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "done", 30)
    again = client.post(f"{OF}/train").json()["job"]
    assert client.get(f"/v1/jobs/{again}").json()["network"] == "unet"


def test_a_training_is_cancelled(client: TestClient) -> None:
    pytest.importorskip("torch")
    job = client.post(f"{OF}/train").json()["job"]
    until(lambda: running(client, job), 30)
    assert client.delete(f"/v1/jobs/{job}").status_code == 200
    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled", 30)


def test_a_hundred_webhooks_at_once_cause_one_training(
    client: TestClient, workbench: Workbench, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    event = {"action": "START_TRAINING", "project": {"id": int(PROJECT)}}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post("/webhook", json=event), range(100)))
    assert {answer.status_code for answer in answers} == {202}
    (job,) = {answer.json()["job"] for answer in answers}
    (tmp_path / "go").touch()
    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "done", 30)
    jobs = workbench.supervisor.jobs
    assert ([each.id for each in jobs.newest().values()], jobs.under_way()) == ([job], [])


def test_report_and_versions_are_those_of_what_is_served(client: TestClient, models: Models) -> None:
    assert client.get(f"{OF}/report").status_code == 404
    first = serve(models)
    found = client.get(f"{OF}/report").json()
    assert (found["version"], found["miou"], found["split"]) == (first, 0.75, "test")
    about = (found["network"], found["started_from"], found["device"])
    assert about == ("unet", "random weights", "cpu")
    assert found["interval"] == {"estimate": 0.75, "low": 0.7, "high": 0.8}
    second = serve(models, 3.0, REPORT | {"miou": 0.9})
    listed = client.get(f"{OF}/versions").json()
    assert (listed["served"], [each["version"] for each in listed["versions"]]) == (second, [first, second])
    assert listed["versions"][1]["parent"] == first
    assert client.post(f"{OF}/rollback").json() == {"served": first}
    assert client.get(f"{OF}/report").json()["miou"] == 0.75
    assert client.post(f"{OF}/rollback").status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/jobs/none", "/v1/projects/cvat/99/report", "/v1/projects/cvat/99/versions"]
)
def test_what_is_not_known_is_404(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post("/v1/projects/cvat/99/train").status_code == 404


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with closing(Store(tmp_path / "store.sqlite")) as store:
        accept_drawings(store, ImageArchive(tmp_path / "images", 2**24, lambda digest: True), 2)
    return tmp_path


def test_a_training_by_command_ends_with_what_became_of_it(home: Path) -> None:
    pytest.importorskip("torch")
    (home / "go").touch()
    done = run("train", "label-studio", PROJECT)
    assert (done.exit_code, done.stdout) == (0, "model 0001-abcd: promoted: it is good\n"), done.output
    unknown = run("train", "label-studio", "99")
    assert unknown.exit_code == 1
    assert "no labels of a project 99" in unknown.output
    other = run("train", "label-studio", PROJECT, "--network", "vgg")
    assert (other.exit_code, "there is no network 'vgg'" in other.output) == (1, True)


def test_a_training_without_a_terminal_prints_its_progress_as_lines(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done: list[Result] = []
    thread = threading.Thread(target=lambda: done.append(run("train", "label-studio", PROJECT)))
    thread.start()
    with closing(Store(tmp_path / "store.sqlite")) as store:
        until(lambda: any(each.step == 50 for each in store.jobs.under_way()), 30)
    time.sleep(2 * POLL_S)
    threading.Timer(2 * POLL_S, (home / "go").touch).start()
    joined = run("train", "label-studio", PROJECT, "--device", "cpu")
    assert "goes on as it began: --encoder and --device count for the next one" in joined.stderr
    thread.join()
    *before, line = done[0].stderr.splitlines()
    assert line == "9 s of at most 18 s: step 50/100, loss 0.500, validation mIoU 0.700"
    assert set(before) <= {"queued", "running"}


def test_a_declined_model_says_why_nothing_is_served(home: Path, models: Models) -> None:
    made = draft()
    report = {"decision": "not promoted: it is poor", "promoted": False}
    version = models.save(replace(made, provenance=replace(made.provenance, report=report)))
    said = run("report", "miou", "label-studio", PROJECT).output
    assert (
        f"is served yet: the newest, {version.id}, was not promoted: it is poor. Accept more labels" in said
    )


def test_a_training_that_fails_by_command_is_a_failure(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    failed = run("train", "label-studio", PROJECT)
    assert failed.exit_code == 1
    assert "ended with status 3" in failed.output


def test_the_report_is_printed_and_a_rollback_is_one_command(home: Path, models: Models) -> None:
    assert "no model of this project is served yet" in run("report", "miou", "label-studio", PROJECT).output
    first, _ = serve(models), serve(models, 3.0)
    printed = run("report", "miou", "label-studio", PROJECT)
    assert printed.exit_code == 0, printed.output
    assert "mIoU: 0.750 (0.700 to 0.800)" in printed.stdout
    assert "boundary F1 (within 0.8% of the diagonal): 0.900" in printed.stdout
    assert "boundary IoU: -" in printed.stdout
    assert "3 images, test" in printed.stdout
    assert "network unet, trained on cpu from random weights" in printed.output
    assert "too few" not in printed.output
    assert "left out: moon" in printed.output
    assert '"miou": 0.75' in run("report", "miou", "label-studio", PROJECT, "--json").stdout
    serve(models, 4.0, REPORT | {"split": "cross-validation", "too_few": "too few: only 3"})
    assert (
        "3 images, cross-validation\ntoo few: only 3" in run("report", "miou", "label-studio", PROJECT).output
    )
    run("rollback", "label-studio", PROJECT)
    assert run("rollback", "label-studio", PROJECT).stdout == f"model {first} is served again\n"
    assert run("rollback", "label-studio", PROJECT).exit_code == 1
