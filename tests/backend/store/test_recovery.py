"""A damaged store is set aside, and a new one holds what could be read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from clickmask.errors import StoreUnavailable
from clickmask.files import DamagedFiles
from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import geometry_to_rle
from clickmask.store import Store, recovery
from clickmask.store.recovery import mend_store
from support import damage
from support.accepting import TOOL, box, submitted
from support.pictures import SIZE

DIGEST = "d" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a setting of a project, and 60 labels."""
    found = tmp_path / "store.sqlite"
    with closing(Store(found)) as store:
        store.set_project_segmenter(TOOL, "1", "contours")
        for number in range(60):
            change = submitted(box(), task=str(number), annotation=str(number))
            drawn = [(region, geometry_to_rle(region.geometry, SIZE)) for region in change.regions]
            assert store.accept(change, ImageIdentity(DIGEST, SIZE), drawn)
        store.mark_read("an inbox", 7)
    return found


def mended(path: Path) -> tuple[int, str | None, str]:
    """After mending: how many labels there are, the project's segmenter, and what was said."""
    damaged = DamagedFiles(path.parent)
    mend_store(path, damaged)
    with closing(Store(path)) as store:
        found = len(store.labels(TOOL, "1", all_annotations=True)), store.project_segmenter(TOOL, "1")
        assert store.read_to("an inbox") == (7 if found[0] else 0), "labels and reading go together"
    return *found, " ".join(each.sentence for each in damaged.all())


def pages_of(path: Path, name: str) -> list[int]:
    """Numbers of the leaf pages of a table or an index."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", [name]
            )
            return [number - 1 for (number,) in rows]
        except sqlite3.OperationalError:
            pytest.skip("this SQLite does not say which page is whose")


def test_a_store_that_is_whole_stays_as_it_is(path: Path) -> None:
    before = path.read_bytes()
    assert mended(path) == (60, "contours", "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("act", [damage.empty, damage.garbage, damage.zeros, damage.folder, damage.loop])
def test_a_store_of_which_nothing_can_be_read_is_set_aside(path: Path, act: Callable[[Path], None]) -> None:
    act(path)
    labels, segmenter, said = mended(path)
    assert (labels, segmenter) == (0, None)
    assert said.startswith("store.sqlite ")
    assert "set aside as store.sqlite.damaged-" in said
    assert "`clickmask pull TOOL PROJECT`" in said
    assert "what was imported has to be imported again" in said
    (aside,) = path.parent.glob("store.sqlite.damaged-*")
    assert os.path.lexists(aside)


def test_labels_with_a_damaged_page_go_together_and_all_else_is_read_back(path: Path) -> None:
    """Half of an annotation's labels would count as all of them, and no pull would mend that."""
    damage.flipped(pages_of(path, "labels")[0])(path)
    labels, segmenter, said = mended(path)
    assert (labels, segmenter) == (0, "contours")
    assert "could not be read back: accepted labels; " in said


@pytest.mark.parametrize("column", ["category", "counts", "geometry"])
def test_a_label_whose_text_is_damaged_costs_its_own_annotation_alone(path: Path, column: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (revision,) = connection.execute("SELECT revision FROM labels LIMIT 1").fetchone()
        connection.execute(
            f"UPDATE labels SET {column} = CAST(X'63FF74' AS TEXT) WHERE revision = ?", [revision]
        )
        connection.commit()
    damage.flipped(pages_of(path, "annotations_of_task")[0])(path)
    damaged = DamagedFiles(path.parent)
    mend_store(path, damaged)
    (said,) = (each.sentence for each in damaged.all())
    assert "These could not be read back: 1 of the accepted labels; " in said
    with closing(Store(path)) as store:
        assert len(store.labels(TOOL, "1", all_annotations=True)) == 59
        assert store.read_to("an inbox") == 0  # which brings it back
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(
            "SELECT count(*) FROM labels WHERE revision = ?", [revision]
        ).fetchone() == (0,)


def test_an_annotation_or_a_setting_whose_text_is_damaged_costs_no_other(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE annotations SET author = CAST(X'FF' AS TEXT) WHERE task = '7'")
        connection.execute("UPDATE projects SET title = CAST(X'FF' AS TEXT)")
        connection.commit()
    damage.flipped(pages_of(path, "annotations_of_task")[0])(path)
    damaged = DamagedFiles(path.parent)
    mend_store(path, damaged)
    with closing(Store(path)) as store:
        assert len(store.labels(TOOL, "1", all_annotations=True)) == 59
    (said,) = (each.sentence for each in damaged.all())
    assert "1 of the projects, 1 of the accepted labels" in said


def test_a_damaged_index_costs_no_label(path: Path) -> None:
    damage.flipped(pages_of(path, "annotations_of_task")[0])(path)
    labels, segmenter, said = mended(path)
    assert (labels, segmenter) == (60, "contours")
    assert "Everything could be read back" in said


def test_a_damaged_write_ahead_log_is_set_aside_alone(path: Path) -> None:
    damage.garbage_log(path)
    labels, _, said = mended(path)
    assert labels == 60
    assert "store.sqlite-wal is damaged" in said
    assert "last changes may be lost" in said


def test_another_programs_database_is_set_aside(path: Path) -> None:
    damage.other_schema(path)
    assert "holds the tables of another program" in mended(path)[2]


def test_a_newer_clickmasks_store_is_left_alone(path: Path) -> None:
    damage.newer_schema(path)
    with pytest.raises(StoreUnavailable, match=r"newer clickmask .* CLICKMASK_HOME"):
        mend_store(path, DamagedFiles(path.parent))
    assert [each.name for each in path.parent.iterdir()] == ["store.sqlite"]


def test_a_store_that_this_user_may_not_read_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *given: False)
    with pytest.raises(StoreUnavailable, match="chown or chmod"):
        mend_store(path, DamagedFiles(path.parent))
    assert [each.name for each in path.parent.iterdir()] == ["store.sqlite"]


def test_what_was_set_aside_is_remembered_until_it_is_moved_away(path: Path) -> None:
    damage.garbage(path)
    mended(path)
    again = DamagedFiles(path.parent)
    again.find_earlier(path.parent)
    (found,) = again.all()
    assert found.name == "store.sqlite"
    assert "set aside earlier" in found.sentence


def killed(*given: object) -> None:
    raise KeyboardInterrupt


def test_a_mending_that_is_killed_begins_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage.flipped(pages_of(path, "annotations_of_task")[0])(path)
    copied = recovery._copy
    with monkeypatch.context() as patched:
        patched.setattr(recovery, "_copy", lambda *of: killed() if of[2] == "labels" else copied(*of))
        with pytest.raises(KeyboardInterrupt):
            mend_store(path, DamagedFiles(path.parent))
    assert not list(path.parent.glob("*.damaged-*"))
    labels, _, said = mended(path)
    assert labels == 60
    assert "Everything could be read back" in said


def test_a_mending_that_is_killed_before_its_last_step_is_finished(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage.flipped(pages_of(path, "annotations_of_task")[0])(path)
    rename = Path.rename
    with monkeypatch.context() as patched:
        patched.setattr(
            Path, "rename", lambda one, to: killed() if one.suffix == ".mended" else rename(one, to)
        )
        with pytest.raises(KeyboardInterrupt):
            mend_store(path, DamagedFiles(path.parent))
    assert not path.exists()
    assert mended(path) == (60, "contours", "")
    assert len(list(path.parent.glob("store.sqlite.damaged-*"))) == 1


def test_what_finds_no_room_is_not_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage.flipped(pages_of(path, "annotations_of_task")[0])(path)
    connect = sqlite3.connect

    def small(database: object, **options: object) -> sqlite3.Connection:
        connection = connect(database, **options)
        if str(database).endswith(".mending"):
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(recovery.sqlite3, "connect", small)
        with pytest.raises(StoreUnavailable, match="is there room in CLICKMASK_HOME"):
            mend_store(path, DamagedFiles(path.parent))
    assert not list(path.parent.glob("*.damaged-*"))
    assert mended(path)[0] == 60


def test_an_older_store_is_read_back_though_it_lacks_tables(path: Path) -> None:
    pages = pages_of(path, "annotations_of_task")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "DROP TABLE unfinished; DROP TABLE jobs; UPDATE alembic_version SET version_num = '0003'"
        )
    damage.flipped(pages[0])(path)
    assert mended(path)[0] == 60


def test_a_first_start_that_was_killed_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
    damaged = DamagedFiles(tmp_path)
    mend_store(path, damaged)
    assert damaged.all() == []


def test_a_store_on_a_disk_that_is_not_there_is_left_alone(path: Path) -> None:
    damage.dangling(path)
    with pytest.raises(StoreUnavailable, match="is its disk there"):
        mend_store(path, DamagedFiles(path.parent))
    assert path.is_symlink()


def test_a_store_that_cannot_be_opened_now_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

    def cannot(connection: sqlite3.Connection) -> None:
        raise error

    monkeypatch.setattr(recovery, "_require_ours", cannot)
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        mend_store(path, DamagedFiles(path.parent))
    assert [each.name for each in path.parent.iterdir()] == ["store.sqlite"]
