"""The database itself: its settings, its migrations, and what happens where there is none."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from clickmask.errors import Conflict, StoreUnavailable
from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import rasterise
from clickmask.labels.submissions import ProjectDescribed
from clickmask.masks.rle import mask_to_rle
from clickmask.store import FailedEvent, Store, WriteTimes
from clickmask.store import database as database_module
from clickmask.store.database import MAX_WAL_BYTES, Database
from clickmask.store.schema import metadata
from clickmask.types import Prediction, Prompt
from support import postgresql
from support.accepting import TOOL, box, submitted
from support.fakes import disc_mask
from support.pictures import SIZE


@pytest.fixture
def in_sqlite(tmp_path: Path) -> Iterator[Store]:
    """Wherever the other tests keep theirs."""
    with closing(Store(tmp_path / "store.sqlite")) as opened:
        yield opened


DRAWN = [(box(), mask_to_rle(rasterise(box().geometry, SIZE)))]


def test_sqlite_takes_the_settings_that_it_was_given(in_sqlite: Store) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 5000, "wal_autocheckpoint": 0}
    for transaction in (in_sqlite._database.reading, in_sqlite._database.writing):
        with transaction() as connection:
            found = {name: connection.scalar(sa.text(f"PRAGMA {name}")) for name in wanted}
        assert found == wanted


def test_settings_that_sqlite_does_not_take_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "PRAGMAS", {"journal_mode": "network"})
    with pytest.raises(StoreUnavailable, match="journal_mode"):
        Store(tmp_path / "store.sqlite")


UNDO = {  # what takes a step back
    "0005": "DROP TABLE jobs",
    "0006": (
        "ALTER TABLE labels DROP COLUMN layer; ALTER TABLE annotations DROP COLUMN left_out; "
        "ALTER TABLE annotations DROP COLUMN known_as"
    ),
    "0008": "ALTER TABLE jobs DROP COLUMN network",
    "0007": "ALTER TABLE projects DROP COLUMN controls",
    "0004": "DROP TABLE unfinished",
    "0003": "DROP TABLE preannotated",
    "0002": "ALTER TABLE projects DROP COLUMN unlabelled",
}


def schema_of(connection: sa.Connection) -> dict[str, object]:
    """Columns, keys and indices of every table."""
    found = sa.inspect(connection)
    return {
        name: (
            sorted(
                (each["name"], str(each["type"]), each["nullable"], str(each["default"]))
                for each in found.get_columns(name)
            ),
            found.get_pk_constraint(name)["constrained_columns"],
            sorted((str(each["name"]), each["column_names"]) for each in found.get_indexes(name)),
            sorted(each["column_names"] for each in found.get_unique_constraints(name)),
        )
        for name in found.get_table_names()
    }


def test_a_new_database_has_all_tables_and_the_newest_version(store: Store) -> None:
    with store._database.reading() as connection:
        assert database_module.version(connection) == database_module.HEAD
        assert schema_of(connection).keys() == metadata.tables.keys() | {"alembic_version"}


@pytest.mark.parametrize("version", ["0001", *database_module.STEPS])
def test_a_database_of_every_earlier_version_is_brought_to_the_newest(store: Store, version: str) -> None:
    database = store._database
    store.describe_project(ProjectDescribed(TOOL, "1", "Pets", ("cat",)))
    with database.writing() as connection:
        new = schema_of(connection)
        for number in sorted(UNDO, reverse=True):
            if number > version:
                for statement in UNDO[number].split(";"):
                    connection.exec_driver_sql(statement)
        connection.execute(database_module.version_table.update().values(version_num=version))
    url = database.engine.url.render_as_string(hide_password=False)
    with closing(Store(url)) as opened, opened._database.reading() as connection:
        assert database_module.version(connection) == database_module.HEAD
        assert schema_of(connection) == new
        assert opened.projects()[0].title == "Pets"
        assert opened.unlabelled(TOOL, "1") == "background"


def test_a_database_of_a_newer_clickmask_is_refused(store: Store) -> None:
    with store._database.writing() as connection:
        connection.execute(database_module.version_table.update().values(version_num="9999"))
    with pytest.raises(StoreUnavailable, match="newer clickmask"):
        Store(store._database.engine.url.render_as_string(hide_password=False))


def test_a_migrated_file_is_opened_without_migrating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "store.sqlite").close()
    monkeypatch.setattr(Database, "writing", lambda _: pytest.fail("it was migrated again"))
    Store(tmp_path / "store.sqlite").close()


def test_a_migration_that_fails_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = database_module.upgrade

    def broken(connection: sa.Connection) -> None:
        upgrade(connection)
        raise sa.exc.OperationalError("full", None, sqlite3.OperationalError("disk is full"))

    monkeypatch.setattr(database_module, "upgrade", broken)
    with pytest.raises(StoreUnavailable):
        Store(tmp_path / "store.sqlite")
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()


def write_text(store: Store, megabytes: int) -> None:
    for number in range(megabytes):
        store.describe_project(ProjectDescribed(TOOL, "1", f"{number}" + "x" * 2**20, ()))


def test_the_write_ahead_log_is_emptied_and_stays_short(in_sqlite: Store, tmp_path: Path) -> None:
    """SQLite would do it inside of the transaction that makes the log long."""
    write_text(in_sqlite, 40)
    log = tmp_path / "store.sqlite-wal"
    assert log.stat().st_size < 2 * MAX_WAL_BYTES
    write_text(in_sqlite, 3)
    assert in_sqlite.projects()[0].title.startswith("2x")


def test_a_log_that_cannot_be_emptied_takes_nothing_back(
    in_sqlite: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(connection: sa.PoolProxiedConnection) -> None:
        connection.close()
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(database_module, "MAX_WAL_BYTES", 1)
    monkeypatch.setattr(database_module, "closing", refused)
    in_sqlite.describe_project(ProjectDescribed(TOOL, "1", "Pets", ()))
    assert in_sqlite.projects()[0].title == "Pets"
    assert "could not be emptied" in caplog.text


def test_a_log_that_is_being_emptied_or_is_not_there_is_left_alone(
    in_sqlite: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database_module, "MAX_WAL_BYTES", 1)
    monkeypatch.setattr(database_module, "closing", lambda _: pytest.fail("it is emptied"))
    with in_sqlite._database._emptying:
        in_sqlite.set_pull_position(TOOL, "1", "20")
    in_sqlite._database._log = tmp_path / "nothing"
    in_sqlite.set_pull_position(TOOL, "1", "40")
    assert in_sqlite.pull_position(TOOL, "1") == "40"


def test_write_transactions_are_timed(store: Store) -> None:
    before = store.write_times().count
    store.set_pull_position(TOOL, "1", "20")
    store.pull_position(TOOL, "1")
    assert store.write_times().count == before + 1
    assert store.write_times().longest_ms > 0
    assert WriteTimes().with_one(0.02).with_one(0.08).with_one(0.01) == WriteTimes(3, 80.0, 1)


def test_all_that_was_set_aside_is_due_however_much_it_is(store: Store) -> None:
    for number in range(450):
        retry_at = (None, 9e9, 1.0)[number % 3]
        store.defer("inbox", FailedEvent(number, TOOL, "gone", 0.0, 1, retry_at))
    store.defer("another", FailedEvent(1, TOOL, "gone", 0.0, 1, None))
    store.retry_set_aside("inbox", 5.0)
    assert {each.retry_at for each in store.set_aside("inbox", limit=1000)} == {1.0, 5.0}
    assert store.due("another", 5.0) is None


def test_several_processes_may_open_an_empty_file_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(tmp_path / "store.sqlite"), range(4)))
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("no url", "not the address of a known database"),
        ("oracle9://host/name", "not the address of a known database"),
        ("mysql+asyncmy://host/name", "needs the package asyncmy"),
    ],
)
def test_an_address_of_no_database_is_refused(where: str, said: str) -> None:
    with pytest.raises(StoreUnavailable, match=said):
        Store(where)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"this is a text, and a long one" * 100)
    with pytest.raises(StoreUnavailable):
        Store(path)
    with pytest.raises(StoreUnavailable):
        Store(tmp_path / "no folder" / "store.sqlite")


def test_an_exception_undoes_its_transaction(store: Store) -> None:
    with pytest.raises(KeyError), store._database.writing() as connection:
        connection.execute(sa.text("INSERT INTO origins VALUES ('a', 'b')"))
        raise KeyError
    store.require_origin("a", "c")


def test_a_mistake_of_ours_is_not_called_a_missing_database(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError), store._database.writing() as connection:
        connection.execute(sa.text("INSERT INTO origins VALUES ('a', 'b'), ('a', 'b')"))


def test_one_home_serves_one_origin_of_each_tool(store: Store) -> None:
    store.require_origin(TOOL, "http://first")
    store.require_origin("cvat", "http://second")
    store.require_origin(TOOL, "http://mistyped")  # there is no label yet
    store.require_origin(TOOL, "http://first")
    store.accept(submitted(box()), ImageIdentity("d" * 64, SIZE), [])
    store.require_origin(TOOL, "http://first")
    with pytest.raises(Conflict, match="of http://first, not of http://second: set CLICKMASK_HOME"):
        store.require_origin(TOOL, "http://second")
    store.require_origin(TOOL, "http://second", moved=True)
    store.require_origin(TOOL, "http://second")


def test_proposals_of_an_image_come_in_their_order(store: Store) -> None:
    prediction = Prediction(disc_mask((60, 80), [(20.0, 30.5)]), 0.75, "disc")
    for number, digest in enumerate(["d", "e", "d"]):
        store.remember_proposal(f"id{number}", digest, Prompt(((1.0, 2.0),)), prediction)
    assert [proposal.id for proposal in store.proposals("d")] == ["id0", "id2"]
    assert store.proposals("f") == []


def test_a_pull_remembers_where_it_was(store: Store) -> None:
    assert store.pull_position(TOOL, "1") is None
    store.set_pull_position(TOOL, "1", "20")
    store.set_pull_position(TOOL, "1", "40")
    assert store.pull_position(TOOL, "1") == "40"
    store.set_pull_position(TOOL, "1", None)
    assert store.pull_position(TOOL, "1") is None


@pytest.mark.slow
def test_postgresql_takes_several_processes_at_once() -> None:
    """With CLICKMASK_TEST_POSTGRESQL, the URL of a database that may be written to, all tests that take
    `store` run in PostgreSQL; this one alone needs it."""
    url = os.environ.get("CLICKMASK_TEST_POSTGRESQL")
    if not url:
        pytest.skip("CLICKMASK_TEST_POSTGRESQL names no database")
    schema = postgresql.new_schema(url)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(schema), range(4)))  # one of them migrates
        taken = pool.map(
            lambda number: stores[number % 4].accept(
                submitted(box(region=str(number)), at=float(number)), ImageIdentity("d" * 64, SIZE), DRAWN
            ),
            range(40),
        )
        assert sum(taken) >= 1
    assert stores[0]._database.engine.dialect.name == "postgresql"
    assert len(stores[0].labels(TOOL, "1")) == 1
    assert stores[1].images(TOOL, "1")[0].digest == "d" * 64
    for store in stores:
        store.close()
