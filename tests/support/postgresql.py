"""Empty schemas in a PostgreSQL that tests may write to: CLICKMASK_TEST_POSTGRESQL is its URL."""

from __future__ import annotations

import secrets

import sqlalchemy as sa


def new_schema(url: str) -> str:
    """The URL of an empty schema in the database of `url`."""
    name = f"test_{secrets.token_hex(6)}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    engine.dispose()
    found = sa.make_url(url).update_query_dict({"options": f"-csearch_path={name}"})
    return found.render_as_string(hide_password=False)
