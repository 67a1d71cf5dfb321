from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from clickmask.masks import rle_to_mask
from clickmask.store import Store
from clickmask.types import Prediction, Prompt
from fakes import disc_mask

PROMPT = Prompt(foreground=((20.0, 30.5),), background=((1.0, 2.0),), box=(0.0, 0.0, 50.0, 60.0))


def prediction() -> Prediction:
    return Prediction(disc_mask((60, 80), [(20.0, 30.5)]), 0.75, "disc")


def test_a_proposal_is_remembered_across_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    store.remember_proposal("id", "digest", PROMPT, prediction())
    store.close()
    reopened = Store(tmp_path / "store.sqlite")
    remembered = reopened.proposal("id")
    assert remembered is not None
    assert (remembered.digest, remembered.segmenter, remembered.score) == ("digest", "disc", 0.75)
    assert json.loads(remembered.prompt) == {
        "foreground": [[20.0, 30.5]],
        "background": [[1.0, 2.0]],
        "box": [0.0, 0.0, 50.0, 60.0],
    }
    assert np.array_equal(rle_to_mask(remembered.rle), prediction().mask)
    assert reopened.proposal("another") is None
    reopened.close()


def test_the_oldest_proposals_leave_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", kept_proposals=3)
    for number in range(5):
        store.remember_proposal(f"id{number}", "digest", PROMPT, prediction())
    assert [store.proposal(f"id{number}") is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    store.close()


def test_what_a_project_asked_for_is_kept_until_it_asks_for_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    assert store.project_segmenter("label_studio", "1") is None
    store.set_project_segmenter("label_studio", "1", "grabcut")
    store.set_project_segmenter("label_studio", "1", "sam:vit_b")
    store.set_project_segmenter("cvat", "1", "grabcut")
    assert store.project_segmenter("label_studio", "1") == "sam:vit_b"
    store.set_project_segmenter("label_studio", "1", None)
    assert store.project_segmenter("label_studio", "1") is None
    assert store.project_segmenter("cvat", "1") == "grabcut"
    store.close()
