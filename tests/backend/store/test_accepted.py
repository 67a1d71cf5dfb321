"""Which labels stand, whatever order submissions and deletions arrive in."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask.errors import StoreUnavailable
from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import Brush, rasterise
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Deleted,
    LabelKey,
    ProjectDeleted,
    ProjectDescribed,
    Region,
    Submission,
    TaskDeleted,
)
from clickmask.masks.rle import mask_to_rle
from clickmask.store import Store, database
from clickmask.store import accepted as accepted_module
from clickmask.store.database import MAX_CHARACTERS, MAX_ROWS
from support.accepting import TOOL, box, submitted
from support.drawn import checkerboard
from support.pictures import SIZE
from support.store_writes import counted_writes, killed_after

IMAGE = ImageIdentity("d" * 64, SIZE)
OTHER = ImageIdentity("e" * 64, SIZE)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrating takes longer than most of what is done here."""
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    Store(path).close()
    return path


def accept(store: Store, submission: Submission, image: ImageIdentity | None = IMAGE) -> bool:
    drawn = [
        (region, mask_to_rle(rasterise(region.geometry, image.size)))
        for region in submission.regions
        if image and not submission.skipped
    ]
    return store.accept(submission, None if submission.skipped else image, drawn)


def standing(store: Store, all_annotations: bool = False) -> list[tuple[str, str, str]]:
    found = store.labels(TOOL, "1", all_annotations)
    return [(label.key.task, label.key.annotation, label.key.region) for label in found]


def test_an_accepted_label_says_everything_again_after_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path / "store.sqlite")
    accept(first, submitted(box(2, proposal="p"), at=7.5))
    first.close()
    store = Store(tmp_path / "store.sqlite")
    (label,) = store.labels(TOOL, "1")
    assert label.key == LabelKey(TOOL, "1", "1", "1", "r")
    assert (label.image, label.size, label.category) == (IMAGE.digest, SIZE, "cat")
    assert (label.accepted_at, label.proposal, label.geometry) == (7.5, "p", box(2).geometry)
    assert label.rle == mask_to_rle(rasterise(box(2).geometry, SIZE))
    store.close()


def test_a_brush_is_kept_once_and_comes_back_as_drawn(store: Store) -> None:
    painted = Brush(mask_to_rle(checkerboard()))
    small = ImageIdentity("f" * 64, checkerboard().shape)
    accept(store, submitted(Region("b", "cat", painted)), small)
    (label,) = store.labels(TOOL, "1")
    assert label.geometry == painted
    with store._database.reading() as connection:
        assert connection.scalar(sa.text("SELECT geometry FROM labels")) == '{"kind": "brush"}'


def test_a_later_submission_replaces_the_whole_set(store: Store) -> None:
    accept(store, submitted(box(region="stays"), box(region="goes"), at=1.0))
    accept(store, submitted(box(3, region="stays"), box(region="comes"), at=2.0))
    assert standing(store) == [("1", "1", "stays"), ("1", "1", "comes")]
    assert store.labels(TOOL, "1")[0].geometry == box(3).geometry
    with store._database.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM labels")) == 2


def test_duplicates_and_late_events_change_nothing(store: Store) -> None:
    assert accept(store, submitted(box(region="new"), at=2.0))
    assert not accept(store, submitted(box(region="old"), at=1.0))
    assert not accept(store, submitted(box(region="same"), at=2.0))
    assert standing(store) == [("1", "1", "new")]
    assert not store.is_news(submitted(at=2.0))
    assert store.is_news(submitted(at=2.5))


@pytest.mark.parametrize(
    "changed", [{"project": "2"}, {"task": "2"}, {"skipped": True}, {"known_as": "seq1/0001.png"}], ids=str
)
def test_what_a_tool_changes_without_a_new_date_is_news_once(store: Store, changed: dict[str, Any]) -> None:
    before = submitted(box(), at=2.0)
    after = replace(before, **changed)
    accept(store, before)
    assert not accept(store, replace(after, updated_at=1.0))
    assert store.is_news(after)
    assert accept(store, after)
    assert not accept(store, after)
    with store._database.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM annotations")) == 1
    assert accept(store, before)


@pytest.mark.parametrize(
    "deleted", [AnnotationDeleted(TOOL, "1"), TaskDeleted(TOOL, "1"), ProjectDeleted(TOOL, "1")]
)
@pytest.mark.parametrize("first", [True, False])
def test_what_was_deleted_stays_deleted(store: Store, deleted: Deleted, first: bool) -> None:
    if not first:
        accept(store, submitted(box()))
    store.delete(deleted)
    store.delete(deleted)
    assert standing(store) == []
    assert not accept(store, submitted(box(), at=9.0))
    assert standing(store) == []
    assert store.images(TOOL, "1") == []
    assert accept(store, submitted(box(), annotation="2", task="2", project="2"))
    with store._database.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM labels")) == 1


def test_a_deletion_is_of_its_tool_alone(store: Store) -> None:
    accept(store, submitted(box()))
    store.delete(AnnotationDeleted("another", "1"))
    store.delete(TaskDeleted("another", "1"))
    store.delete(ProjectDeleted("another", "1"))
    store.delete(ProjectDeleted(TOOL, "2"))
    assert standing(store) == [("1", "1", "r")]


@pytest.mark.parametrize(
    ("truth_of_first", "truth_of_second", "counts"),
    [(False, False, "2"), (True, False, "1"), (True, True, "2")],
)
def test_of_several_annotators_the_ground_truth_counts_else_the_newest(
    store: Store, truth_of_first: bool, truth_of_second: bool, counts: str
) -> None:
    accept(store, submitted(box(region="a"), annotation="1", at=1.0, ground_truth=truth_of_first))
    accept(store, submitted(box(region="a"), annotation="2", at=2.0, ground_truth=truth_of_second))
    assert [annotation for _, annotation, _ in standing(store)] == [counts]
    assert standing(store, all_annotations=True) == [("1", "1", "a"), ("1", "2", "a")]


def test_a_new_ground_truth_takes_the_place_of_the_one_before(store: Store) -> None:
    accept(store, submitted(box(region="a"), annotation="1", at=1.0, ground_truth=True))
    accept(store, submitted(box(region="b"), annotation="2", at=2.0, ground_truth=True))
    accept(store, submitted(box(region="b"), annotation="2", at=3.0))
    assert standing(store) == [("1", "2", "b")]


def test_a_ground_truth_that_comes_late_is_the_one_before(store: Store) -> None:
    accept(store, submitted(box(region="b"), annotation="2", at=2.0, ground_truth=True))
    accept(store, submitted(box(region="a"), annotation="1", at=1.0, ground_truth=True))
    assert standing(store) == [("1", "2", "b")]
    accept(store, submitted(box(region="b"), annotation="2", at=3.0))
    assert standing(store) == [("1", "2", "b")]


def test_an_empty_annotation_that_is_newest_says_that_there_is_nothing(store: Store) -> None:
    accept(store, submitted(box(), annotation="1", at=1.0))
    accept(store, submitted(annotation="2", at=2.0), OTHER)
    assert standing(store) == []
    assert [image.digest for image in store.images(TOOL, "1")] == [OTHER.digest]


def test_of_an_image_that_several_tasks_and_pages_show_one_annotation_counts(store: Store) -> None:
    for task, item, at in (("1", 0, 1.0), ("1", 3, 3.0), ("2", 0, 2.0)):
        accept(store, submitted(box(region=f"{task}-{item}"), task=task, annotation=task, item=item, at=at))
    accept(store, submitted(box(region="other"), task="3", annotation="3"), OTHER)
    assert [region for *_, region in standing(store)] == ["1-3", "other"]
    assert len(standing(store, all_annotations=True)) == 4
    accept(store, submitted(task="4", annotation="4", at=4.0))
    assert [region for *_, region in standing(store)] == ["other"]
    truth = submitted(box(region="truth"), task="5", annotation="5", at=0.5, ground_truth=True)
    accept(store, truth)
    assert [region for *_, region in standing(store)] == ["other", "truth"]
    assert len(store.images(TOOL, "1")) == 6


def test_a_skip_does_not_hide_the_annotation_of_another(store: Store) -> None:
    accept(store, submitted(box(), annotation="1", at=1.0))
    accept(store, submitted(annotation="2", at=2.0, skipped=True))
    assert standing(store) == [("1", "1", "r")]


def test_images_of_one_task_are_labelled_apart(store: Store) -> None:
    accept(store, submitted(box(region="first"), item=0))
    accept(store, submitted(box(region="second"), item=1, name="b.png"), OTHER)
    assert [(image.digest, image.name, image.item) for image in store.images(TOOL, "1")] == [
        (IMAGE.digest, "grey.png", 0),
        (OTHER.digest, "b.png", 1),
    ]
    assert store.is_labelled(OTHER.digest)
    store.delete(AnnotationDeleted(TOOL, "1"))
    assert standing(store) == []
    assert not store.is_labelled(OTHER.digest)


def test_an_image_is_known_by_the_address_that_its_task_had(store: Store) -> None:
    accept(store, submitted(box(), at=1.0))
    assert store.known_image(submitted(annotation="2")) == IMAGE
    assert store.known_image(submitted(address="http://elsewhere")) is None
    assert store.known_image(submitted(task="2")) is None
    assert store.known_image(submitted(item=1)) is None


def test_an_image_that_an_annotation_is_on_no_more_is_withdrawn_for_good(store: Store) -> None:
    """Of two images of a task, one was taken out of it, or out of its project's labeling interface."""
    both = [submitted(box(region=f"on {item}"), item=item, items=2, at=1.0) for item in (0, 1)]
    for each in both:
        accept(store, each)
    accept(store, submitted(box(region="alone"), items=1, at=2.0))
    assert standing(store) == [("1", "1", "alone")]
    assert not any(accept(store, each) for each in both)  # they come late, and again
    assert standing(store) == [("1", "1", "alone")]
    assert rows_of(store) == (1, 0)


def test_pages_that_an_import_lacked_are_news_to_a_pull_however_new_the_import_is(store: Store) -> None:
    """A file's time is that of its copy, and says nothing of the tool's."""
    imported = submitted(box(region="imported"), item=2, at=9.0, author=f"{accepted_module.IMPORTED}coco x")
    assert accept(store, imported)
    pages = [submitted(box(region=f"on {item}"), item=item, items=3, at=1.0) for item in range(3)]
    assert all(accept(store, each) for each in pages)
    assert [region for _, _, region in standing(store, all_annotations=True)] == ["on 0", "on 1", "on 2"]


def test_no_import_replaces_what_a_tool_said_meanwhile(store: Store) -> None:
    accept(store, submitted(box(region="by hand"), at=1.0))
    imported = submitted(box(region="imported"), at=9.0, author=f"{accepted_module.IMPORTED}coco x")
    assert not store.is_news(imported)
    assert not accept(store, imported)
    assert standing(store) == [("1", "1", "by hand")]


Save = tuple[Submission, ...]  # of an annotation: one of each of its images
Happening = Save | AnnotationDeleted | TaskDeleted


def happen(store: Store, happenings: Sequence[Happening]) -> None:
    for happening in happenings:
        if isinstance(happening, tuple):
            for submission in happening:
                accept(store, submission)
        else:
            store.delete(happening)


saves = st.builds(
    lambda annotation, at, skipped, items: tuple(
        submitted(
            box(region=f"{annotation} at {at}"),
            annotation=annotation,
            task=annotation[0],
            at=float(at),
            skipped=skipped and at % 3 == 0,
            item=item,
            items=items,
        )
        for item in range(items)
    ),
    st.sampled_from(["1a", "1b", "2a"]),
    st.integers(1, 9),
    st.booleans(),
    st.integers(1, 2),
)
deletions = st.sampled_from([AnnotationDeleted(TOOL, "1a"), TaskDeleted(TOOL, "2")])


def consistent(happenings: Sequence[Happening]) -> list[Happening]:
    """Without two saves of one annotation at one time that say different things: no tool sends them."""
    told: dict[tuple[str, float], Happening] = {}
    return [
        told.setdefault((each[0].annotation, each[0].updated_at), each) if isinstance(each, tuple) else each
        for each in happenings
    ]


@settings(max_examples=25, deadline=None)
@given(
    happenings=st.lists(saves | deletions, max_size=9).map(consistent),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_and_repetitions_do_not_matter(
    empty_store: Path, happenings: list[Happening], random
) -> None:  # type: ignore[no-untyped-def]  # hypothesis has no name for it
    shuffled = [*happenings, *random.sample(happenings, len(happenings) // 2)]
    random.shuffle(shuffled)
    with TemporaryDirectory() as folder:
        copies = [shutil.copy(empty_store, Path(folder) / name) for name in ("one.sqlite", "other.sqlite")]
        one, other = map(Store, map(Path, copies))
        happen(one, happenings)
        happen(other, shuffled)
        assert one.labels(TOOL, "1", True) == other.labels(TOOL, "1", True)
        assert one.images(TOOL, "1") == other.images(TOOL, "1")
        one.close()
        other.close()


def test_no_write_transaction_is_long_however_much_is_drawn(store: Store) -> None:
    many = submitted(*(box(number % 40, region=str(number)) for number in range(3 * MAX_ROWS)))
    speckles = Brush({"size": list(SIZE), "counts": "0" * (MAX_CHARACTERS // 3)})  # of the right length only
    heavy = submitted(*(Region(str(number), "cat", speckles) for number in range(10)), at=3.0)
    with counted_writes(store) as transactions:
        accept(store, many)
        accept(store, replace(many, updated_at=2.0))
        store.accept(heavy, IMAGE, [(region, speckles.rle) for region in heavy.regions])
        store.delete(TaskDeleted(TOOL, "1"))
    written = [statements for statements in transactions if statements]
    assert sum(rows for statements in written for rows, _ in statements) > 8 * MAX_ROWS
    removed = [rows for statements in written[-6:] for rows, _ in statements]
    assert max(removed) <= 3  # of the heavy ones at once
    for statements in written:
        assert sum(rows for rows, _ in statements) <= MAX_ROWS + 3
        assert sum(sent for _, sent in statements) <= MAX_CHARACTERS + 100 * MAX_ROWS
        assert len(statements) <= 4


def rows_of(store: Store) -> tuple[int, int]:
    """Labels, seen or not, and sets that are noted as unfinished."""
    with store._database.reading() as connection:
        numbers = (connection.scalar(sa.text(f"SELECT count(*) FROM {t}")) for t in ("labels", "unfinished"))
        return next(numbers), next(numbers)


MANY = tuple(box(region=str(number)) for number in range(3))


@pytest.mark.parametrize("act", ["accept", "replace", "delete"])
def test_what_a_kill_leaves_behind_is_removed(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    for module in (database, accepted_module):
        monkeypatch.setattr(module, "MAX_ROWS", 2)
    for writes in itertools.count():
        path = Path(shutil.copy(empty_store, tmp_path / f"{writes}.sqlite"))
        store = Store(path)
        if act != "accept":
            accept(store, submitted(*MANY[:-1], at=1.0))

        def action(store: Store = store) -> None:
            if act == "delete":
                store.delete(TaskDeleted(TOOL, "1"))
            else:
                accept(store, submitted(*MANY, at=2.0))

        killed = killed_after(store, writes, action)
        store.close()
        reopened = Store(path)
        assert len(standing(reopened)) in (0, len(MANY), len(MANY) - (act != "accept"))
        left = rows_of(reopened)
        reopened.forget_unfinished()
        assert rows_of(reopened) == left  # another process might be at work on it
        with monkeypatch.context() as patched:
            patched.setattr(accepted_module, "ABANDONED_AFTER_S", -1.0)
            reopened.forget_unfinished()
        assert rows_of(reopened) == (len(standing(reopened)), 0)
        action(reopened)
        assert len(standing(reopened)) == (0 if act == "delete" else len(MANY))
        assert rows_of(reopened) == (len(standing(reopened)), 0)
        reopened.close()
        if not killed:
            break
    assert writes >= 4


def test_a_set_that_was_taken_for_abandoned_is_written_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that jumped: an annotation must never stand without its labels."""
    write = store._write_set

    def slow(*arguments: Any) -> str:
        revision = write(*arguments)
        monkeypatch.setattr(accepted_module, "ABANDONED_AFTER_S", -1.0)
        store.forget_unfinished()
        return revision

    monkeypatch.setattr(store, "_write_set", slow)
    with pytest.raises(StoreUnavailable, match="too long"):
        accept(store, submitted(box()))
    assert store.images(TOOL, "1") == []
    monkeypatch.undo()
    assert accept(store, submitted(box()))
    assert rows_of(store) == (1, 0)


# Accepts, replaces and deletes large sets until it is killed.
WRITER = """
import itertools, sys
from pathlib import Path
from support.accepting import TOOL, box, submitted
from clickmask.images.source import ImageIdentity
from clickmask.labels.submissions import TaskDeleted
from clickmask.store import Store
store = Store(Path(sys.argv[1]))
rle = {"size": [60, 80], "counts": "0" * 3000}
print("writing", flush=True)
for number in itertools.count(int(sys.argv[2])):
    task = str(number % 7) if number % 9 else f"deleted {number}"
    regions = [box(region=str(each)) for each in range(600)]
    change = submitted(*regions, annotation=task, task=task, at=float(number))
    store.accept(change, ImageIdentity("d" * 64, (60, 80)), [(region, rle) for region in regions])
    if task.startswith("deleted"):
        store.delete(TaskDeleted(TOOL, task))
"""


@pytest.mark.slow
def test_real_kills_leave_nothing_that_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = random.Random(5)
    left: set[int] = set()
    monkeypatch.setattr(accepted_module, "ABANDONED_AFTER_S", -1.0)
    for number in range(6):
        writing = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "store.sqlite"), str(1000 * number)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writing.stdout
        writing.stdout.readline()
        time.sleep(points.uniform(0, 0.5))
        writing.kill()
        writing.wait()
        writing.stdout.close()
        with sqlite3.connect(tmp_path / "store.sqlite") as connection:
            left.add(connection.execute("SELECT count(*) FROM unfinished").fetchone()[0])
        connection.close()
        store = Store(tmp_path / "store.sqlite")
        assert rows_of(store) == (len(standing(store, all_annotations=True)), 0)
        assert len(standing(store, all_annotations=True)) % 600 == 0
        store.close()
    assert max(left) > 0, "none of the kills came in between"


def test_readers_see_the_old_set_until_the_new_one_stands(store: Store) -> None:
    accept(store, submitted(box(region="old")))
    seen: list[list[tuple[str, str, str]]] = []
    engine = store._database.engine

    def committed(connection: sa.Connection) -> None:
        seen.append(standing(store))

    many = submitted(*(box(region=f"{number:04}") for number in range(2 * MAX_ROWS)), at=2.0)
    sa.event.listen(engine, "commit", committed)
    accept(store, many)
    sa.event.remove(engine, "commit", committed)
    sizes = [len(regions) for regions in itertools.chain(seen, [standing(store)])]
    assert set(sizes) == {1, 2 * MAX_ROWS}
    assert sizes == sorted(sizes)


def test_projects_are_listed_with_what_stands_in_them(store: Store) -> None:
    store.describe_project(ProjectDescribed(TOOL, "1", "Pets", ("dog", "cat")))
    store.set_project_segmenter(TOOL, "1", "disc")
    store.describe_project(ProjectDescribed(TOOL, "2", "Empty", ()))
    accept(store, submitted(box(region="a"), box(region="b"), at=5.0))
    accept(store, submitted(box(region="a"), annotation="2", at=4.0))
    accept(store, submitted(annotation="3", skipped=True, at=9.0))
    accept(store, submitted(box(), annotation="4", task="4", project="3"))
    found = store.projects()
    assert [(each.project, each.title, each.categories, each.images, each.labels) for each in found] == [
        ("1", "Pets", ("dog", "cat"), 1, 3),
        ("2", "Empty", (), 0, 0),
        ("3", "", (), 1, 1),
    ]
    assert [each.updated_at for each in found] == [5.0, None, 1.0]
    assert store.project_segmenter(TOOL, "1") == "disc"
    assert store.categories(TOOL, "1") == ("dog", "cat")
    assert [store.knows_project(TOOL, name) for name in ("1", "2", "3", "4")] == [True, True, True, False]


def test_every_annotation_is_listed_once(store: Store) -> None:
    accept(store, submitted(box(), item=0))
    accept(store, submitted(box(), item=1))
    accept(store, submitted(annotation="2", task="2", skipped=True))
    assert store.annotations(TOOL, "1") == [("1", "1"), ("2", "2")]
