"""Which sets of labels are being written or removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "unfinished",
        sa.Column("revision", sa.Text, primary_key=True),
        sa.Column("since", sa.Double, nullable=False),
    )
