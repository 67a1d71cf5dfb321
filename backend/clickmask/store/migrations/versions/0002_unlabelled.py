"""What area without a label is, in each project."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("projects", sa.Column("unlabelled", sa.Text, nullable=False, server_default="background"))
