"""Brings a database to the newest schema, one numbered step after the other.

A database notes in `alembic_version` which step it has reached. The table has its name from the time
when alembic kept it. A new database is made as `schema` has it, without the steps.

A step creates its table as `schema` has it today. Whoever changes such a table later writes its first
form into the step that creates it, and the change into a new step.
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
    """The step that the database has reached; None for a new one."""
    if not sa.inspect(connection).has_table(version_table.name):
        return None
    return connection.scalar(sa.select(version_table.c.version_num))


def upgrade(connection: sa.Connection) -> None:
    """Take the steps that are missing, inside the transaction of `connection`.

    Raises StoreUnavailable for a database that a newer clickmask has written.
    """
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


def _add_unlabelled(connection: sa.Connection) -> None:
    column = "unlabelled TEXT NOT NULL DEFAULT 'background'"
    connection.execute(sa.text(f"ALTER TABLE projects ADD COLUMN {column}"))


def _add_preannotated(connection: sa.Connection) -> None:
    preannotated.create(connection)


def _add_unfinished(connection: sa.Connection) -> None:
    unfinished.create(connection)


def _add_jobs(connection: sa.Connection) -> None:
    """Trained annotators of the family `unet` were renamed to `trained` in this version, too."""
    jobs.create(connection)
    old = preannotated.c.annotator.like("unet:%")
    renamed = sa.literal("trained:") + sa.func.substr(preannotated.c.annotator, len("unet:") + 1)
    connection.execute(preannotated.update().where(old).values(annotator=renamed))


STEPS: Mapping[str, Callable[[sa.Connection], None]] = MappingProxyType(
    {"0002": _add_unlabelled, "0003": _add_preannotated, "0004": _add_unfinished, "0005": _add_jobs}
)
HEAD = max(STEPS)
