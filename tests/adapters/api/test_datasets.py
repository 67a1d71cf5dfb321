"""Datasets over HTTP and on the command line, from a home that holds accepted labels."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from clickmask import plugins
from clickmask.datasets.snapshot import snapshot
from clickmask.errors import Failed
from clickmask.images.archive import ImageArchive
from clickmask.labels.submissions import ProjectDescribed
from clickmask.store import Store
from clickmask.types import Prediction, Prompt
from clickmask.workbench import Workbench
from clickmask_adapters import exports
from clickmask_adapters.api import datasets
from clickmask_adapters.cli import app
from clickmask_adapters.commands import _console
from clickmask_adapters.commands import labels as labels_command
from clickmask_adapters.exports import coco
from clickmask_adapters.server.failures import RecentFailures, install
from clickmask_adapters.settings import Settings
from support.drawn import disc, ring
from support.labelled import PROJECT, TOOL, FilesInMemory, brush, digest_of, noise, png, polygon, submit

FILES = {name: png(noise(ord(name))) for name in "abc"}
AT = f"/v1/projects/{TOOL}/{PROJECT}"


def fill(store: Store) -> None:
    store.describe_project(ProjectDescribed(TOOL, PROJECT, "cells", ("cell", "nucleus")))
    store.remember_proposal(
        "p", digest_of("a"), Prompt(foreground=((30, 24),)), Prediction(disc(), 0.9, "disc")
    )
    now = time.time()
    submit(store, "a", {"p": ("cell", brush(disc()))}, task="1", at=now, proposals=["p"])
    submit(
        store,
        "b",
        {"x": ("nucleus", brush(ring())), "y": ("cell", polygon((1, 1), (30, 2), (9, 40)))},
        task="2",
        at=now,
    )
    submit(store, "c", {}, task="3", at=now)


def client_of(workbench: Workbench, folder: Path, pictures: FilesInMemory, **settings: Any) -> TestClient:
    application, recent = FastAPI(), RecentFailures()
    install(application, recent)
    application.include_router(datasets.router(workbench, Settings(home=folder, **settings), pictures))
    return TestClient(application, raise_server_exceptions=False)


@pytest.fixture
def client(workbench: Workbench, tmp_path: Path) -> TestClient:
    fill(workbench.store)
    return client_of(workbench, tmp_path, FilesInMemory(FILES))


def unpacked(raw: bytes, into: Path) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        archive.extractall(into)
        return archive.namelist()


def test_a_zip_holds_what_the_export_to_a_folder_holds(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    answer = client.get(f"{AT}/export/coco")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert 'filename="label_studio-7-coco.zip"' in answer.headers["content-disposition"]
    names = unpacked(answer.content, tmp_path / "zip")
    assert names == ["annotations/instances.json", "images/a.png", "images/b.png", "images/c.png"]
    dataset = snapshot(store, TOOL, PROJECT, FilesInMemory(FILES))
    coco.write(dataset, tmp_path / "folder")
    for name in names:
        assert (tmp_path / "zip" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    assert client.get(f"{AT}/export/coco").content == answer.content


def test_the_options_of_an_export_are_query_parameters(client: TestClient, tmp_path: Path) -> None:
    unpacked(client.get(f"{AT}/export/coco?polygons=exact&for_cvat=true").content, tmp_path)
    made = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())
    assert [annotation["iscrowd"] for annotation in made["annotations"]] == [0, 1, 0]
    names = unpacked(client.get(f"{AT}/export/coco?by_side=true").content, tmp_path / "by side")
    assert "annotations/instances_train.json" in names
    assert "annotations/instances.json" not in names


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        (f"{AT}/export/nothing", 404, "there is no export to 'nothing'; there is: coco"),
        (f"{AT}/export/_folder", 404, "there is no export"),
        (f"{AT}/export/..%2Fcoco", 404, ""),
        (f"{AT}/export/coco?polygons=round", 422, "polygons"),
        (f"{AT}/export/png?polygons=exact", 400, "an export to png has no option polygons"),
        (f"/v1/projects/cvat/{PROJECT}/export/coco", 404, f"there are: {PROJECT} of {TOOL}"),
        (f"/v1/projects/{TOOL}/8/stats", 404, "nothing is kept here"),
        (f"/v1/projects/{TOOL}/8/assist", 404, "nothing is kept here"),
        ("/v1/projects/../../stats", 404, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(client: TestClient, path: str, status: int, says: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert says in answer.text


def test_names_never_lead_out_of_the_zip(workbench: Workbench, tmp_path: Path) -> None:
    names = ["../../evil", "C:\\evil", "/etc/passwd", "a\x00b", "..", "CON.png", "same.png", "SAME.png"]
    files = {name: png(noise(number)) for number, name in enumerate(names)}
    for number, name in enumerate(names):
        submit(workbench.store, name, {"r": ("cell", brush(disc()))}, task=str(number))
    answer = client_of(workbench, tmp_path, FilesInMemory(files)).get(f"{AT}/export/coco")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        shown = archive.namelist()
    assert len({name.lower() for name in shown}) == len(names) + 1
    assert all(re.fullmatch(r"(images|annotations)/[^/\\:\x00]+", name) for name in shown)
    assert all(".." not in name.split("/") for name in shown)


def test_more_bytes_than_the_limit_are_not_zipped(workbench: Workbench, tmp_path: Path) -> None:
    fill(workbench.store)
    limit = sum(map(len, FILES.values()))
    small = client_of(workbench, tmp_path, FilesInMemory(FILES), export_bytes=limit - 1).get(
        f"{AT}/export/coco"
    )
    assert small.status_code == 413
    assert "CLICKMASK_EXPORT_BYTES" in small.text
    enough = client_of(workbench, tmp_path, FilesInMemory(FILES), export_bytes=limit)
    assert enough.get(f"{AT}/export/coco").status_code == 200


def test_a_failed_export_is_an_error_and_makes_room_for_the_next(
    workbench: Workbench, tmp_path: Path
) -> None:
    fill(workbench.store)
    pictures = FilesInMemory(FILES)
    client = client_of(workbench, tmp_path, pictures)
    client.get(f"{AT}/stats")  # gives the images their sides
    pictures.files = dict.fromkeys(pictures.files, b"damaged")
    for _ in range(datasets.MAX_EXPORTS + 1):
        assert client.get(f"{AT}/export/coco").status_code == 422
    pictures.files = FilesInMemory(FILES).files
    assert client.get(f"{AT}/export/coco").status_code == 200


def test_a_zip_that_nobody_reads_to_its_end_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []
    abandoned, recent = tmp_path / "zips" / "abandoned", tmp_path / "zips" / "recent"
    for folder in (abandoned, recent):
        (folder / "export").mkdir(parents=True)
    os.utime(abandoned, (0, 0))

    def write(folder: Path) -> Path:
        (folder / "images").mkdir(parents=True)
        for number in range(3):
            (folder / "images" / f"{number}").write_bytes(bytes(1000))
        return folder

    made = datasets._zip(tmp_path / "zips", write)
    assert [path.name for path in made.parent.iterdir()] == ["export.zip"]
    monkeypatch.setattr(datasets, "CHUNK", 100)
    chunks = datasets._read(made, lambda: done.append(True))
    next(chunks)
    assert not done
    chunks.close()
    assert done == [True]
    assert list((tmp_path / "zips").iterdir()) == [recent]


def test_whoever_reads_too_slowly_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[bool] = []
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "export.zip").write_bytes(bytes(1000))
    monkeypatch.setattr(datasets, "CHUNK", 100)
    monkeypatch.setattr(datasets, "ZIP_TTL_S", -1.0)
    chunks = datasets._read(tmp_path / "made" / "export.zip", lambda: done.append(True))
    next(chunks)
    with pytest.raises(Failed, match="not read in time"):
        next(chunks)
    assert done == [True]
    assert list(tmp_path.iterdir()) == []


def test_slow_readers_keep_nobody_from_exporting(
    workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers who have begun hold no writer's place; there is a limit to them too."""
    fill(workbench.store)
    monkeypatch.setattr(datasets, "MAX_EXPORTS", 1)
    monkeypatch.setattr(datasets, "MAX_ZIPS", 3)
    reading: list[Any] = []
    read = datasets._read

    def slow(path: Path, done: Callable[[], None]) -> Generator[bytes]:
        chunks = read(path, done)
        if len(reading) < 3:
            reading.append(chunks)
            return iter([next(chunks)])  # type: ignore[return-value]  # it is read no further
        return chunks

    monkeypatch.setattr(datasets, "_read", slow)
    monkeypatch.setattr(datasets, "CHUNK", 64)
    client = client_of(workbench, tmp_path, FilesInMemory(FILES))
    fetch = functools.partial(client.get, f"{AT}/export/coco")
    for _ in range(3):
        assert fetch().status_code == 200
    busy = fetch()
    assert busy.status_code == 503
    assert "being read" in busy.text
    reading[0].close()
    whole = fetch()
    assert whole.status_code == 200
    assert len(whole.content) == int(whole.headers["content-length"])
    assert fetch().status_code == 200


def test_an_export_that_ends_meanwhile_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    listed = [tmp_path / "ended", tmp_path / "there"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    os.utime(listed[1], (0, 0))
    datasets._remove_abandoned(tmp_path)
    assert not listed[1].exists()


def test_a_home_without_room_is_said(tmp_path: Path) -> None:
    (tmp_path / "zips").write_text("in the way")
    with pytest.raises(Failed, match="nothing can be written in CLICKMASK_HOME"):
        datasets._zip(tmp_path / "zips", lambda folder: folder)
    (tmp_path / "zips").unlink()

    def full(folder: Path) -> Path:
        folder.mkdir()
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(Failed, match="CLICKMASK_HOME: No space left"):
        datasets._zip(tmp_path / "zips", full)
    assert list((tmp_path / "zips").iterdir()) == []


def test_no_more_than_two_exports_run_at_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []
    write = coco.write

    def nested(*given: Any, **options: Any) -> Path:
        if len(statuses) == 0:
            statuses.append(0)
            statuses.append(client.get(f"{AT}/export/coco").status_code)
        elif len(statuses) == 1:
            statuses.append(client.get(f"{AT}/export/coco").status_code)
        return write(*given, **options)

    monkeypatch.setattr(coco, "write", nested)
    assert client.get(f"{AT}/export/coco").status_code == 200
    assert statuses == [0, 503, 200]


def test_stats_and_assistance_are_told(client: TestClient) -> None:
    stats = client.get(f"{AT}/stats").json()
    assert (stats["images"], stats["labels"], stats["unlabelled_images"]) == (3, 3, 1)
    assert [(each["category"], each["labels"]) for each in stats["categories"]] == [
        ("cell", 2),
        ("nucleus", 1),
    ]
    assert len(stats["digest"]) == 64
    assert (stats["flaw_count"], stats["flaws"]) == (0, [])
    assist = client.get(f"{AT}/assist").json()
    assert (assist["all"]["objects"], assist["all"]["untouched"], assist["all"]["unassisted"]) == (3, 1, 2)
    assert [each["name"] for each in assist["category"]] == ["cell", "nucleus"]
    assert [each["name"] for each in assist["segmenter"]] == ["", "disc"]
    assert len(assist["week"]) == 1
    (measured,) = client.get(f"{AT}/segmenters").json()["segmenters"]
    assert (measured["name"], measured["objects"], measured["first"]["iou"]) == ("disc", 1, {"cell": 1.0})
    assert measured["last"]["miou"] == 1.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with the labels and their pictures, and no tool that is configured."""
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    for name in ("LABEL_STUDIO_URL", "CVAT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    store = Store(tmp_path / "home" / "store.sqlite")
    fill(store)
    kept = ImageArchive(tmp_path / "home" / "images", 10**9, store.is_labelled)
    for name, raw in FILES.items():
        kept.keep(digest_of(name), raw)
    store.close()
    yield tmp_path


OF = ("label-studio", PROJECT)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), terminal_width=200)


def test_an_export_is_written_from_what_is_kept(home: Path) -> None:
    done = run("export", "coco", *OF, "--out", str(home / "out"))
    assert done.exit_code == 0, done.output
    assert f"{home / 'out' / 'annotations' / 'instances.json'}\n" in done.stdout
    assert "3 images, 3 labels, 2 categories, dataset " in done.stdout
    assert sorted(path.name for path in (home / "out" / "images").iterdir()) == ["a.png", "b.png", "c.png"]
    again = run("export", "coco", *OF, "--out", str(home / "out"), "--polygons", "exact", "--for-cvat")
    assert again.exit_code == 0
    made = json.loads((home / "out" / "annotations" / "instances_default.json").read_text())
    assert [annotation["iscrowd"] for annotation in made["annotations"]] == [0, 1, 0]


def test_losses_are_said_on_standard_error(home: Path) -> None:
    done = run("export", "coco", *OF, "--out", str(home / "out"), "--polygons", "simplified")
    assert "polygons are written as what they cover" in done.stderr
    assert "polygons" not in done.stdout


def test_a_folder_with_other_files_is_refused_in_one_sentence(home: Path) -> None:
    done = run("export", "coco", *OF, "--out", str(home))
    assert done.exit_code == 1
    assert "which is no export's: give a new folder" in done.stderr
    assert (home / "home" / "store.sqlite").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("export", "coco", "label-studio", "99", "--out", "x"),
        ("stats", "label-studio", "99"),
        ("project", "label-studio", "99"),
        ("report", "assist", "cvat", "7"),
        ("report", "miou", "cvat", "7"),
        ("report", "segmenters", "cvat", "7"),
        ("rollback", "cvat", "7"),
        ("train", "cvat", "7"),
    ],
)
def test_an_unknown_project_is_said_with_those_that_there_are(home: Path, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.exit_code == 1
    tool, project = words[-2:] if "--out" not in words else words[2:4]
    said = f"no labels of a project {project} of {tool} are kept here; there are: 7 of label-studio"
    assert said in done.stderr


def test_projects_of_one_number_are_told_apart_by_their_tools(home: Path) -> None:
    store = Store(home / "home" / "store.sqlite")
    store.describe_project(ProjectDescribed("cvat", PROJECT, "other", ("car",)))
    store.close()
    assert run("stats", *OF).exit_code == 0
    empty = run("stats", "cvat", PROJECT)
    assert "the cvat project '7' has no accepted labels" in empty.stderr


def test_labels_are_pulled_before_the_export_that_asks_for_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[tuple[str, str]] = []
    monkeypatch.setattr(labels_command, "pull", lambda tool, project: pulled.append((tool, project)))
    done = run("export", "coco", *OF, "--out", str(home / "out"), "--pull")
    assert done.exit_code == 0
    assert pulled == [("label_studio", PROJECT)]

    def failing(tool: str, project: str) -> None:
        raise typer.Exit(1)

    monkeypatch.setattr(labels_command, "pull", failing)
    failed = run("export", "coco", *OF, "--out", str(home / "never"), "--pull")
    assert failed.exit_code == 1
    assert "nothing was exported" in failed.stderr
    assert not (home / "never").exists()


def test_a_tool_that_is_not_configured_cannot_be_pulled_from(home: Path) -> None:
    done = run("export", "coco", *OF, "--out", str(home / "out"), "--pull")
    assert done.exit_code == 1
    assert "LABEL_STUDIO_URL" in done.stderr


def test_stats_are_a_table_with_the_flaws_beside_it(home: Path) -> None:
    store = Store(home / "home" / "store.sqlite")
    thin = {str(n): ("cell", polygon((2, 2 * n), (60, 2 * n), (60, 2 * n + 1))) for n in range(22)}
    submit(store, "a", thin, task="1", at=time.time() + 1)
    store.close()
    done = run("stats", *OF)
    assert done.exit_code == 0, done.output
    assert re.search(r"cell +23 +2 ", done.stdout)
    assert re.search(
        r"3 images, 1 of them with nothing on it: (\d (train|validation|test)(, )?)+\n", done.stdout
    )
    assert "too few images to be split (16 in all, 3 each for validation and test)" in done.stderr
    assert done.stderr.count("sliver:") == 20
    assert "and 2 more: --all" in done.stderr
    assert run("stats", *OF, "--all").stderr.count("sliver:") == 22
    assert json.loads(run("stats", *OF, "--json").stdout)["flaw_count"] == 22
    exported = run("export", "coco", *OF, "--out", str(home / "out"))
    assert (
        "22 things look wrong in the labels: `clickmask stats label-studio 7` names them" in exported.stderr
    )


def test_the_ledger_is_reported_by_category_segmenter_or_week(home: Path) -> None:
    done = run("report", "assist", *OF)
    assert done.exit_code == 0, done.output
    assert re.search(r"cell +2 +1 +0 +1 +0 +1\.000 +1\.000 +1\.0 +0\.0", done.stdout)
    assert re.search(r"disc +1 +1 ", run("report", "assist", *OF, "--by", "segmenter").stdout)
    assert re.search(r"20\d\d-W\d\d +3 ", run("report", "assist", *OF, "--by", "week").stdout)
    assert json.loads(run("report", "assist", *OF, "--json").stdout)["all"]["objects"] == 3


def test_what_segmenters_proposed_is_measured(home: Path) -> None:
    done = run("report", "segmenters", *OF)
    assert done.exit_code == 0, done.output
    assert re.search(r"disc +cell +1\.000 +1\.000 +1\.000", done.stdout)
    assert re.search(r"disc +mean \(mIoU\) +1 +1 +1\.000 +1\.000", done.stdout)
    (measured,) = json.loads(run("report", "segmenters", *OF, "--json").stdout)["segmenters"]
    assert measured["last"]["absent"] == ["nucleus"]


def test_reports_explain_their_columns_and_say_a_sentence_if_they_are_empty(home: Path) -> None:
    assist = run("report", "assist", *OF).stdout
    heads = assist.splitlines()[:2]
    assert [" ".join(head.split()) for head in heads] == [
        "first last",
        "category objects untouched edited by hand rejected IoU IoU clicks seconds",
    ]
    assert re.search(r"\nall +3 +1 ", assist)
    assert "seconds: median, from the first to the last answer" in assist
    assert "nothing to compare" not in assist
    assert "(by hand)" in run("report", "assist", *OF, "--by", "segmenter").stdout
    assert "last: of those that were accepted" in run("report", "segmenters", *OF).stdout
    store = Store(home / "home" / "store.sqlite")
    store.describe_project(ProjectDescribed("cvat", "8", "empty", ("car",)))
    store.close()
    assert run("report", "assist", "cvat", "8").stdout == (
        "nothing was accepted and nothing proposed on the images of this project yet\n"
    )
    assert run("report", "segmenters", "cvat", "8").stdout.startswith(
        "no accepted object of this project came"
    )


def test_long_work_on_a_dataset_shows_its_progress_and_short_work_does_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = (("stats", *OF), ("stats", *OF, "--json"), ("export", "coco", *OF, "--out", str(home / "a")))
    assert not any(" of 3: " in run(*words).stderr for words in commands)
    monkeypatch.setattr(_console, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(labels_command, "SHOW_EVERY_S", -1.0)
    for words, doings in zip(
        commands, (["counting"], ["counting"], ["writing", "looking for flaws"]), strict=True
    ):
        said = run(*words).stderr.splitlines()
        assert said[0] == "reading the labels"
        for doing in doings:
            assert {f"{done} of 3: {doing}" for done in range(3)} <= set(said)


def test_an_export_of_another_package_is_a_command(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    foreign = ModuleType("foreign", "Plain text, one line an image.")

    def write(dataset: Any, folder: Path, *, capitals: bool = False) -> Path:
        text = "\n".join(sample.name for sample in dataset.samples)
        folder.write_text(text.upper() if capitals else text)
        return folder

    vars(foreign).update(write=write, losses=lambda dataset: ["everything but names"])
    names, load = plugins.names, plugins.load
    monkeypatch.setattr(plugins, "names", lambda of: ["foreign"] if of is exports else names(of))
    monkeypatch.setattr(plugins, "load", lambda of, name: foreign if of is exports else load(of, name))
    done = run("export", "foreign", *OF, "--out", str(home / "out"), "--capitals")
    assert done.exit_code == 0, done.output
    assert (home / "out").read_text() == "A.PNG\nB.PNG\nC.PNG"
    assert "everything but names" in done.stderr


def test_the_size_of_a_kept_picture_is_known_without_reading_it(home: Path) -> None:
    kept = ImageArchive(home / "home" / "images", 10**9, lambda digest: True)
    assert kept.size_of(digest_of("a")) == len(FILES["a"])
    assert kept.size_of(digest_of("never kept")) == 0


def test_a_project_says_once_what_its_unlabelled_area_is(home: Path) -> None:
    shown = run("project", *OF)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == (
        "label-studio 7: cells\ncategories: cell, nucleus\n3 images, 3 labels, of all annotators\n"
        "area without a label: background\n"
    )
    before = json.loads(run("stats", *OF, "--json").stdout)
    assert "area without a label: ignore\n" in run("project", *OF, "--unlabelled", "ignore").stdout
    after = json.loads(run("stats", *OF, "--json").stdout)
    assert (before["unlabelled"], after["unlabelled"]) == ("background", "ignore")
    assert before["digest"] != after["digest"]
    exported = run("export", "coco", *OF, "--out", str(home / "out"))
    assert "area without a label is unknown in this project, but background in COCO" in exported.stderr
    assert run("project", *OF, "--unlabelled", "nothing").exit_code == 2
    assert run("project", "label-studio", "99").exit_code == 1
