"""Sets of rows, written and removed in small steps so that no write transaction is long.

A set holds the labels of an annotation on an image, or the output of one run of a model over an image. A
transaction that puts a set out of use lists it in `unfinished`, as does the first one that writes it. That
table tells what to remove after a process was killed.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import sqlalchemy as sa

from clickmask.errors import StoreUnavailable
from clickmask.labels.geometry import Brush, geometry_to_json
from clickmask.labels.submissions import Region
from clickmask.masks.rle import Rle
from clickmask.store.database import Database
from clickmask.store.schema import labels, preannotated, unfinished

MAX_ROWS = 200  # per write transaction, so that a click waits for it only milliseconds
MAX_CHARACTERS = 2**19  # per write transaction, for the same reason
TEXTS = MappingProxyType(  # columns whose text may be long
    {"labels": ("counts", "geometry"), "preannotated": ("counts",), "proposals": ("counts",)}
)
ABANDONED_AFTER_S = 3600.0  # after this time nobody can still be working on a set

Drawn = tuple[Region, Rle]
Row = TypeVar("Row")


def write_set(database: Database, drawn: Sequence[Drawn]) -> str:
    """Write labels that nobody sees until `replace_set`. Returns the name of their set."""
    revision = secrets.token_hex(12)
    rows: list[dict[str, Any]] = []
    for position, (region, rle) in enumerate(drawn):
        written = geometry_to_json(region.geometry)
        if isinstance(region.geometry, Brush):
            del written["rle"]  # stored in `counts`
        rows.append(
            {
                "revision": revision,
                "position": position,
                "region": region.id,
                "category": region.category,
                "geometry": json.dumps(written),
                "counts": rle["counts"],
                "proposal": region.proposal,
            }
        )
    write_rows(database, revision, labels, rows)
    return revision


def write_rows(database: Database, name: str, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the set `name`, which stays unfinished until `replace_set`."""
    with database.writing() as connection:
        note_unfinished(connection, [name])
    texts = TEXTS[table.name]
    for some in _chunks((row, sum(len(row[text]) for text in texts)) for row in rows):
        with database.writing() as connection:
            connection.execute(table.insert(), some)


def replace_set(connection: sa.Connection, stands: str, replaced: Sequence[str] = ()) -> None:
    """Put the set `stands` into use in place of `replaced`. Call it in the transaction that does so.

    Raises StoreUnavailable if `stands` was removed as abandoned because a clock jumped.
    """
    finished = connection.execute(unfinished.delete().where(unfinished.c.revision == stands))
    if not finished.rowcount:
        raise StoreUnavailable("the labels took too long to be written; they will be written again")
    note_unfinished(connection, replaced)


def note_unfinished(connection: sa.Connection, revisions: Sequence[str]) -> None:
    """List sets that are not in use yet, or no longer. Call it in the transaction that makes this so."""
    if revisions:
        now = time.time()
        connection.execute(unfinished.insert(), [{"revision": name, "since": now} for name in revisions])


def forget_sets(database: Database, revisions: Sequence[str]) -> None:
    """Remove label sets that are no longer in use."""
    remove_rows(database, labels, labels.c.revision.in_(revisions))
    with database.writing() as connection:
        connection.execute(unfinished.delete().where(unfinished.c.revision.in_(revisions)))


def remove_rows(database: Database, table: sa.Table, of: sa.ColumnElement[bool]) -> None:
    key = list(table.primary_key)
    length = sum((sa.func.length(table.c[text]) for text in TEXTS[table.name]), sa.literal(0))
    with database.reading() as connection:
        found = connection.execute(sa.select(*key, length).where(of)).all()
    for keys in _chunks((tuple(row[:-1]), row[-1]) for row in found):
        with database.writing() as connection:
            connection.execute(table.delete().where(sa.tuple_(*key).in_(keys)))


def forget_unfinished(database: Database) -> None:
    """Remove the sets that killed processes left."""
    left = sa.select(unfinished.c.revision).where(unfinished.c.since < time.time() - ABANDONED_AFTER_S)
    while True:
        with database.reading() as connection:
            revisions = list(connection.scalars(left.limit(MAX_ROWS)))
        if not revisions:
            return
        remove_rows(database, preannotated, preannotated.c.batch.in_(revisions))
        forget_sets(database, revisions)


def _chunks(rows: Iterable[tuple[Row, int]]) -> Iterator[list[Row]]:
    """Split rows, given with their lengths, at MAX_ROWS and MAX_CHARACTERS. One row alone may be longer."""
    chunk: list[Row] = []
    characters = 0
    for row, length in rows:
        if chunk and (len(chunk) == MAX_ROWS or characters + length > MAX_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(row)
        characters += length
    if chunk:
        yield chunk
