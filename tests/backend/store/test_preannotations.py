"""What models drew, as the store keeps it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store, accepted, database
from clickmask.store.database import MAX_CHARACTERS, MAX_ROWS
from clickmask.types import Prediction, Prompt
from support.fakes import disc_mask
from support.store_writes import counted_writes, killed_after

SIZE = (60, 80)


def look(store: Store, name: str, count: int, size: tuple[int, int] = SIZE) -> None:
    """At the image "d", at which `count` objects were found that all have one mask."""
    mask = np.indices(size).sum(axis=0) % 2 == 1  # as many runs as there can be
    found = [(f"{name}{number}", "cell", Prediction(mask, 0.5, "unet")) for number in range(count)]
    store.remember_prelabels("d", size, "unet:a", found)


def seen(store: Store) -> list[str]:
    return [each.id for each in store.prelabels("d")]


def rows_of(store: Store) -> tuple[int, int]:
    """Objects, seen or not, and looks that are noted as unfinished."""
    with store._database.reading() as connection:
        counts = [
            connection.scalar(sa.text(f"SELECT count(*) FROM {t}")) for t in ("preannotated", "unfinished")
        ]
    return counts[0], counts[1]


def test_what_models_drew_is_kept_apart_from_what_clicks_were_answered_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = Prediction(disc_mask(SIZE, [(20.0, 30.5)]), 0.75, "unet")
    store.remember_proposal("clicked", "d", Prompt(((1.0, 2.0),)), prediction)
    monkeypatch.setattr(store, "_max_prelabels", 4)
    store.remember_prelabels("d", SIZE, "unet:a", [("1", "cell", prediction), ("2", "nucleus", prediction)])
    store.remember_prelabels("e", SIZE, "unet:a", [])
    store.remember_prelabels("d", SIZE, "unet:a", [("3", "cell", prediction), ("4", "cell", prediction)])
    (nothing,) = store.prelabels("e")
    assert (nothing.label, rle_to_mask(nothing.rle).any()) == ("", False)
    kept = store.prelabels("d")
    assert [each.id for each in kept] == ["2", "3", "4"]
    assert [each.label for each in kept] == ["nucleus", "cell", "cell"]
    assert kept[0].batch != kept[1].batch == kept[2].batch
    assert (kept[0].annotator, kept[0].score) == ("unet:a", 0.75)
    np.testing.assert_array_equal(rle_to_mask(kept[0].rle), prediction.mask)
    assert [proposal.id for proposal in store.proposals("d")] == ["clicked"]


def test_no_write_transaction_is_long_however_much_was_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = (600, 800)  # of 480,000 characters
    with counted_writes(store) as transactions:
        look(store, "many", 3 * MAX_ROWS)
        look(store, "heavy", 3, large)
        monkeypatch.setattr(store, "_max_prelabels", 1)
        look(store, "last", 1)
    written = [statements for statements in transactions if statements]
    assert sum(rows for statements in written for rows, _ in statements) > 6 * MAX_ROWS
    for statements in written:
        assert sum(rows for rows, _ in statements) <= MAX_ROWS
        assert sum(sent for _, sent in statements) <= MAX_CHARACTERS + 200 * MAX_ROWS
    assert seen(store) == ["last0"]
    assert rows_of(store) == (1, 0)


def test_a_proposal_is_not_written_and_another_forgotten_in_one_transaction(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", max_proposals=1)
    prediction = Prediction(disc_mask(SIZE, [(20.0, 30.5)]), 0.75, "disc")
    with counted_writes(store) as transactions:
        for name in "ab":
            store.remember_proposal(name, "d", Prompt(((1.0, 2.0),)), prediction)
    assert [len(statements) for statements in transactions if statements] == [1, 1, 1]
    assert [each.id for each in store.proposals("d")] == ["b"]
    store.close()


def test_readers_see_all_of_a_look_or_nothing(store: Store) -> None:
    look(store, "before", 2)
    sizes: list[int] = []
    sa.event.listen(store._database.engine, "commit", lambda _: sizes.append(len(seen(store))))
    look(store, "many", 2 * MAX_ROWS)
    assert set(sizes) == {2}  # asked before each commit takes hold
    assert len(seen(store)) == 2 + 2 * MAX_ROWS


def test_what_a_kill_leaves_of_a_look_is_never_seen_and_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (database, accepted):
        monkeypatch.setattr(module, "MAX_ROWS", 2)
    look(store, "before", 1)
    for writes in itertools.count():
        if not killed_after(store, writes, lambda writes=writes: look(store, f"{writes}-", 5)):
            break
        assert seen(store) == ["before0"]
        with monkeypatch.context() as patched:
            patched.setattr(accepted, "ABANDONED_AFTER_S", -1.0)
            store.forget_unfinished()
        assert rows_of(store) == (1, 0)
    assert writes == 5  # the note, three parts, and that it stands
    assert len(seen(store)) == 6
