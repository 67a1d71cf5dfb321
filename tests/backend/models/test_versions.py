from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clickmask.errors import Failed, NotFound
from clickmask.models import versions
from clickmask.models.versions import Models, ModelVersion, ProjectModels, verify
from support.model_drafts import PIXELS, draft, network, save_and_promote


@pytest.fixture
def kept(tmp_path: Path) -> Models:
    return Models(tmp_path / "models")


def test_a_version_is_kept_with_all_that_made_it(kept: Models) -> None:
    import safetensors.numpy

    saved = kept.save(draft())
    (again,) = Models(kept.folder).versions()
    assert again == saved
    assert saved.provenance == draft().provenance
    assert saved.id.startswith("0001-")
    assert saved.parent is None
    assert {"numpy", "onnxruntime"} <= set(saved.packages)
    assert saved.network.read_bytes() == network(2.0)
    weights = safetensors.numpy.load_file(saved.path / versions.WEIGHTS)
    assert weights["weight"].tolist() == [2.0]
    with np.load(saved.path / versions.GOLDEN) as golden:
        np.testing.assert_array_equal(golden["output:logits"], golden["input:pixels"] * 2)


def test_a_version_is_served_once_it_is_promoted(kept: Models) -> None:
    assert kept.served() is None
    first = kept.save(draft())
    assert kept.served() is None
    kept.promote(first.id)
    assert kept.served() == first
    second = kept.save(draft(3.0))
    assert second.id.startswith("0002-")
    assert second.parent == first.id
    assert kept.served() == first
    kept.promote(second.id)
    assert Models(kept.folder).served() == second


def test_rolling_back_before_the_first_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model of this project is served yet: `clickmask train` makes one"):
        Models(tmp_path / "none").roll_back()


def test_rolling_back_goes_through_what_was_served(kept: Models) -> None:
    first, second, third = (kept.save(draft(weight)) for weight in (1.0, 2.0, 3.0))
    for each in (first, third, third, second):
        kept.promote(each.id)
    assert kept.roll_back() == third
    assert kept.roll_back() == first
    with pytest.raises(NotFound, match="no other model was served before"):
        kept.roll_back()
    assert kept.served() == first


def test_names_that_are_no_versions_are_refused(kept: Models) -> None:
    kept.save(draft())
    for name in ("", "nothing", "..", ".aside-0001", "../versions"):
        with pytest.raises(NotFound):
            kept.promote(name)
    assert kept.served() is None


def test_a_network_that_answers_otherwise_than_in_training_is_not_kept(kept: Models) -> None:
    with pytest.raises(Failed, match=r"logits .* off what it was in training"):
        kept.save(replace(draft(2.0), network=network(2.01)))
    with pytest.raises(Failed, match="cannot be loaded"):
        kept.save(replace(draft(), network=b"no network"))
    with pytest.raises(Failed, match="does not answer with other"):
        kept.save(replace(draft(), golden_outputs={"other": PIXELS}))
    assert kept.versions() == []
    assert list((kept.folder / "versions").iterdir()) == []


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [versions.WEIGHTS, versions.NETWORK, versions.GOLDEN])
@pytest.mark.parametrize("change", [spoil, Path.unlink], ids=["changed", "gone"])
def test_a_damaged_version_is_never_promoted(kept: Models, name: str, change: Callable[[Path], None]) -> None:
    first, second = kept.save(draft()), kept.save(draft(3.0))
    kept.promote(first.id)
    change(second.path / name)
    with pytest.raises(Failed, match=second.id):
        kept.promote(second.id)
    assert kept.served() == first


def test_a_version_without_a_manifest_is_left_out(kept: Models, caplog: pytest.LogCaptureFixture) -> None:
    first, second = kept.save(draft()), kept.save(draft(3.0))
    (first.path / versions.MANIFEST).write_text("{")
    assert kept.versions() == [second]
    assert f"{first.id} has no manifest" in caplog.text
    with pytest.raises(Failed):
        kept.version(first.id)


def test_every_file_is_on_the_disk_before_its_version_is_there(
    kept: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename, over = os.fsync, Path.rename, Path.replace

    def flushed(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append("rename"), rename(self, to))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("replace"), over(self, to))[1])
    saved = kept.save(draft())
    names = sorted([versions.WEIGHTS, versions.NETWORK, versions.GOLDEN, versions.MANIFEST])
    assert sorted(done[-7:-3]) == names
    assert done[-3:] == [f".aside-{saved.id}", "rename", "versions"]
    assert "models" in done[:-7]  # the folder of the versions has a name in it now
    done.clear()
    kept.promote(saved.id)
    assert [name.split(".")[0] for name in done] == ["served", "replace", "models"]


def test_writers_wait_for_each_other(kept: Models) -> None:
    threads = [threading.Thread(target=kept.save, args=(draft(float(weight)),)) for weight in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [each.id[:4] for each in kept.versions()] == ["0001", "0002", "0003", "0004"]


def test_old_versions_are_pruned_but_not_those_that_are_needed(kept: Models) -> None:
    saved = [kept.save(draft(1.0)).id]
    kept.promote(saved[0])
    for weight in range(2, 5):
        saved.append(kept.save(draft(float(weight))).id)
        kept.promote(saved[-1])
    served = kept.served()
    assert served and served.parent == saved[2]
    saved += [kept.save(draft(float(weight))).id for weight in range(5, 8)]
    assert kept.prune(newest=2) == [*saved[:2], saved[4]]
    assert [each.id for each in kept.versions()] == [saved[2], saved[3], *saved[5:]]
    assert kept.prune(newest=2) == []
    assert not list((kept.folder / "versions").glob(".aside*"))
    assert kept.roll_back().id == saved[2]
    with pytest.raises(NotFound, match="no other model was served before"):
        kept.roll_back()
    assert kept.save(draft(9.0)).id.startswith("0008")


def test_what_a_rollback_leads_to_and_what_is_damaged_is_pruned_with_care(kept: Models) -> None:
    first, second, third = (kept.save(draft(weight)) for weight in (1.0, 2.0, 3.0))
    for each in (first, third, second):
        kept.promote(each.id)
    (first.path / versions.MANIFEST).unlink()
    assert kept.prune(newest=1) == [first.id]
    assert kept.roll_back() == third, "it was no parent of the second"
    (third.path / versions.MANIFEST).write_text("{")
    assert kept.prune(newest=1) == [second.id]
    assert ProjectModels(kept.folder.parent).names() == [kept.folder.name]


def test_a_version_that_is_being_opened_is_not_pruned(kept: Models) -> None:
    saved = [kept.save(draft(weight)) for weight in (1.0, 2.0, 3.0)]
    kept.promote(saved[0].id)
    with kept.lock_served() as opened:
        assert opened == saved[0]
        (kept.folder / "served.json").write_text(json.dumps({"served": saved[1].id, "before": []}))
        assert Models(kept.folder).prune(newest=1) == []
        whole(opened)
    assert kept.prune(newest=1) == [saved[0].id]


def test_what_is_opened_follows_the_pointer_when_its_version_is_pruned(
    kept: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept.lock_served() as nothing:
        assert nothing is None
    first, second = kept.save(draft()), kept.save(draft(3.0))
    kept.promote(second.id)
    shutil.rmtree(first.path)
    answers = iter([first, second])
    monkeypatch.setattr(kept, "served", lambda: next(answers))
    with kept.lock_served() as opened:
        assert opened == second


# --- kill -9


def run(folder: Path, weight: float, death: int | None = None, after: float | None = None) -> bool:
    """`save_and_promote` in a process of its own, killed -9 after so many seconds; whether it ended."""
    server = multiprocessing.get_context("forkserver")  # clean: no thread of ours is missing in the child
    server.set_forkserver_preload(["model_drafts", "onnxruntime"])
    child = server.Process(target=save_and_promote, args=(folder, weight, death))
    child.start()
    child.join(after)
    if child.is_alive():
        child.kill()
    child.join(30)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def whole(version: ModelVersion | None) -> ModelVersion:
    """`version`, which is as it was saved, byte by byte."""
    assert version is not None
    verify(version)
    assert version.network.read_bytes() == network(version.provenance.report["weight"])
    return version


@pytest.mark.slow
def test_a_writer_killed_at_any_step_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert run(folder, 1.0)
    served, deaths = [1.0], 0
    while not run(folder, 2.0 + deaths, death=deaths):
        now = whole(Models(folder).served()).provenance.report["weight"]
        assert now in {served[-1], 2.0 + deaths}
        served.append(now)
        deaths += 1
    assert deaths > 12  # four files, their folder, its name, the pointer, ...
    assert served[-1] > 1.0  # killed after the pointer was replaced
    assert whole(Models(folder).served()).provenance.report["weight"] == 2.0 + deaths
    assert not list((folder / "versions").glob(".aside*"))


@pytest.mark.slow
def test_sixty_writers_killed_at_random_leave_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert run(folder, 0.5)
    started = time.monotonic()
    assert run(folder, 1.0)
    takes = time.monotonic() - started
    dice, served, killed = random.Random(0), 1.0, 0
    for weight in np.arange(2.0, 62.0):
        killed += not run(folder, float(weight), after=dice.uniform(0, takes))
        now = whole(Models(folder).served()).provenance.report["weight"]
        assert now in {served, weight}
        served = now
    assert killed >= 30
    assert run(folder, 1000.0)
    for version in Models(folder).versions():
        whole(version)
