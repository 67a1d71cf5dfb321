"""Migrations of a database to the newest schema, in numbered steps.

`alembic_version`, named when alembic kept it, holds the last step taken. A new database is created from
`schema` directly. A step creates its table as `schema` has it today: before changing such a table, copy its
first form into that step, and put the change into a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import sqlalchemy as sa

from clickmask.errors import StoreUnavailable
from clickmask.store.schema import jobs, metadata, preannotated, unfinished

version_table = sa.Table(
    "alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True)
)


def version(connection: sa.Connection) -> str | None:
    """The last step the database has taken; None for a new database."""
    if not sa.inspect(connection).has_table(version_table.name):
        return None
    return connection.scalar(sa.select(version_table.c.version_num))


def upgrade(connection: sa.Connection) -> None:
    """Take the missing steps in this transaction. Raises StoreUnavailable for a newer clickmask's data."""
    reached = version(connection)
    if reached is None:
        metadata.create_all(connection)
        version_table.create(connection, checkfirst=True)
        connection.execute(version_table.insert(), {"version_num": HEAD})
        return
    if reached > HEAD:
        raise StoreUnavailable(f"the database was written by a newer clickmask (its schema is {reached})")
    for number, step in STEPS.items():
        if number > reached:
            step(connection)
    connection.execute(version_table.update().values(version_num=HEAD))


def _add_jobs(connection: sa.Connection) -> None:
    """Create the table of jobs, and rename trained annotators from the family `unet` to `trained`."""
    jobs.create(connection)
    old = preannotated.c.annotator.like("unet:%")
    renamed = sa.literal("trained:") + sa.func.substr(preannotated.c.annotator, len("unet:") + 1)
    connection.execute(preannotated.update().where(old).values(annotator=renamed))


STEPS: Mapping[str, Callable[[sa.Connection], object]] = MappingProxyType(
    {
        "0002": lambda connection: connection.execute(
            sa.text("ALTER TABLE projects ADD COLUMN unlabelled TEXT NOT NULL DEFAULT 'background'")
        ),
        "0003": preannotated.create,
        "0004": unfinished.create,
        "0005": _add_jobs,
    }
)
HEAD = max(STEPS)
