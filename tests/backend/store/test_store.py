from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clickmask.errors import StoreUnavailable
from clickmask.masks.controls import Controls
from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store
from clickmask.store.database import Database
from clickmask.store.proposals import MAX_PENDING
from clickmask.types import Mask, Prediction, Prompt
from support.fakes import disc_mask
from support.waiting import until

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
    store = Store(tmp_path / "store.sqlite", max_proposals=3)
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


def test_any_number_of_ids_can_be_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    for name in ("id 0", "id 29999"):
        store.remember_proposal(name, "digest", PROMPT, prediction())
    many = {f"id {number}" for number in range(300_000)}  # a statement of SQLite takes 250,000 at most
    assert store.proposed("digest", many) == {"id 0", "id 29999"}
    assert store.proposed("digest", []) == set()
    assert store.sides("cvat", "1", among=many) == []
    store.close()


class Held:
    """A mask that takes its time; `asked` once somebody waits for it."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def prediction(self) -> Prediction:
        return Prediction(self._mask, 0.75, "disc")

    def _mask(self) -> Mask:
        self.asked.set()
        assert self.released.wait(60)
        return prediction().mask


def test_what_is_remembered_soon_is_known_to_whoever_asks(tmp_path: Path) -> None:
    store, held = Store(tmp_path / "store.sqlite"), Held()
    store.remember_soon("a", "digest", PROMPT, held.prediction())
    assert held.asked.wait(60)  # nobody waited for it to be written
    store.remember_soon("b", "digest", PROMPT, prediction())
    with ThreadPoolExecutor(2) as pool:
        one, all_of_them = pool.submit(store.proposal, "b"), pool.submit(store.proposals, "digest")
        held.released.set()
        assert one.result(60) is not None
        assert [proposal.id for proposal in all_of_them.result(60)] == ["a", "b"]
    store.close()


def test_what_is_still_to_be_remembered_is_written_before_the_end(tmp_path: Path) -> None:
    store, held = Store(tmp_path / "store.sqlite"), Held()
    store.remember_soon("a", "digest", PROMPT, held.prediction())
    store.remember_soon("b", "digest", PROMPT, prediction())
    assert held.asked.wait(60)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(store.close)
        held.released.set()
        closing.result(60)
    reopened = Store(tmp_path / "store.sqlite")
    assert [proposal.id for proposal in reopened.proposals("digest")] == ["a", "b"]
    reopened.close()


def test_only_a_few_proposals_wait_to_be_written(tmp_path: Path) -> None:
    store, held = Store(tmp_path / "store.sqlite"), Held()
    for number in range(MAX_PENDING):
        store.remember_soon(f"id{number}", "digest", PROMPT, held.prediction())
    with ThreadPoolExecutor(1) as pool:
        one_more = pool.submit(store.remember_soon, "last", "digest", PROMPT, prediction())
        assert held.asked.wait(60)
        assert not one_more.done()
        held.released.set()
        one_more.result(60)
    assert store.proposal("last") is not None
    store.close()


def test_a_proposal_that_cannot_be_written_is_said_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store.sqlite")

    def refuse(self: Database) -> None:
        raise StoreUnavailable("no room")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "writing", refuse)
        store.remember_soon("a", "digest", PROMPT, prediction())
        until(lambda: "a proposal could not be remembered: no room" in caplog.text)
    store.remember_soon("b", "digest", PROMPT, prediction())
    assert [proposal.id for proposal in store.proposals("digest")] == ["b"]
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
    assert store.project_controls("label_studio", "1") == store.project_controls("cvat", "2") == Controls()
    wishes = Controls(smooth=1.5, fill_holes=9, min_part_share=0.25, max_parts=2)
    store.set_project_controls("label_studio", "1", wishes)
    store.set_project_controls("cvat", "3", wishes)
    assert store.project_controls("label_studio", "1") == store.project_controls("cvat", "3") == wishes
    store.set_project_controls("label_studio", "1", Controls())
    assert store.project_controls("label_studio", "1") == Controls()
    store.close()
