"""Alembic runs this for each command; the connection comes from `clickmask.store.migrating`."""

from __future__ import annotations

from alembic import context

from clickmask.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
context.run_migrations()
