from __future__ import annotations

from pathlib import Path

from clickmask.labels.split import SIDES, Assigned, SideCounts, fingerprint
from clickmask.labels.submissions import ProjectDescribed, TaskDeleted
from clickmask.store import Store
from support.drawn import disc, scene
from support.labelled import PROJECT, TOOL, brush, digest_of, submit

PRINT, OTHER = fingerprint(scene(seed=1).pixels), fingerprint(scene(seed=2).pixels[::-1])


def test_the_first_side_of_an_image_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    assert store.side_of("cvat", "1", "a") is None
    assert store.assign_side("cvat", "1", "a", "test", PRINT, known=0) == "test"
    assert store.assign_side("cvat", "1", "a", "train", OTHER, known=1) == "test"
    assert store.assign_side("label_studio", "1", "a", "train", PRINT, known=0) == "train"
    store.close()
    reopened = Store(tmp_path / "store.sqlite")
    assert reopened.sides("cvat", "1") == [Assigned("a", "test", PRINT)]
    assert reopened.sides("cvat", "1", among=["a", "b"]) == [Assigned("a", "test", PRINT)]
    assert reopened.sides("cvat", "1", among=["b"]) == []
    assert reopened.hashes("cvat", "1") == [("a", PRINT.hash)]
    assert reopened.sides("cvat", "2") == []
    reopened.close()


def test_unlabelled_area_is_background_until_a_project_says_otherwise(store: Store) -> None:
    assert store.unlabelled("cvat", "1") == "background"
    store.set_unlabelled("cvat", "1", "ignore")
    store.describe_project(ProjectDescribed("cvat", "1", "cells", ("cell",)))
    assert store.unlabelled("cvat", "1") == "ignore"
    assert store.categories("cvat", "1") == ("cell",)
    store.set_unlabelled("cvat", "1", "background")
    assert store.unlabelled("cvat", "1") == "background"


def test_what_another_process_places_and_what_is_withdrawn_and_comes_back_counts(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "store.sqlite"), Store(tmp_path / "store.sqlite")

    def place(store: Store, name: str, at: float = 1000.0) -> None:
        known = len(store.hashes(TOOL, PROJECT))
        if not store.side_of(TOOL, PROJECT, digest_of(name)):
            assert store.assign_side(TOOL, PROJECT, digest_of(name), "train", PRINT, known) == "train"
        submit(store, name, {"r": ("cell", brush(disc()))}, task=name, at=at)

    def counted(store: Store) -> SideCounts:
        store.hashes(TOOL, PROJECT)
        return store.side_counts(TOOL, PROJECT, {"cell"})["train"]

    place(here, "a")
    assert counted(here) == counted(there) == SideCounts(1, frozenset({"cell"}))
    place(here, "b")
    assert counted(here).images == counted(there).images == 2
    assert len(here.hashes(TOOL, PROJECT)) == len(there.hashes(TOOL, PROJECT)) == 2
    here.delete(TaskDeleted(TOOL, "a"))
    assert counted(here).images == 1
    submit(here, "b", {}, task="b", at=2000.0, skipped=True)
    assert counted(here) == SideCounts()
    place(here, "b", at=3000.0)
    assert counted(here) == SideCounts(1, frozenset({"cell"}))
    here.close()
    there.close()


def test_a_category_is_sought_on_each_side_however_large_the_project(store: Store) -> None:
    for number, side in enumerate(SIDES):
        name = str(number)
        store.assign_side(TOOL, PROJECT, digest_of(name), side, PRINT, known=number)
        submit(store, name, {"r": (side, brush(disc())), "s": ("all", brush(disc()))}, task=name)
    for _ in range(2):
        counts = store.side_counts(TOOL, PROJECT, {"all", "train", "test", "none"})
        found = {side: counts[side].categories for side in SIDES}
        assert found == {"train": {"all", "train"}, "validation": {"all"}, "test": {"all", "test"}}
