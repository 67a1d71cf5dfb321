from __future__ import annotations

from pathlib import Path

from clickmask.labels.split import Assigned, fingerprint
from clickmask.labels.submissions import ProjectDescribed
from clickmask.store import Store
from support.drawn import scene

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
