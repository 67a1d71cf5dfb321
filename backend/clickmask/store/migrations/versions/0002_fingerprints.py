"""Fingerprints of images, and what a project's unlabelled area is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "fingerprints",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("thumbnail", sa.LargeBinary, nullable=False),
    )
    op.add_column("projects", sa.Column("unlabelled", sa.Text, nullable=False, server_default="background"))
