"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "proposals",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("segmenter", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_proposals_digest", "proposals", ["digest"])
    op.create_table(
        "projects",
        sa.Column("tool", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("segmenter", sa.Text),
        sa.Column("title", sa.Text, nullable=False, server_default=""),
        sa.Column("categories", sa.Text, nullable=False, server_default="[]"),
    )
    op.create_table(
        "origins",
        sa.Column("tool", sa.Text, primary_key=True),
        sa.Column("origin", sa.Text, nullable=False),
    )
    _create_labels()
    _create_progress()


def _create_labels() -> None:
    op.create_table(
        "annotations",
        sa.Column("tool", sa.Text, primary_key=True),
        sa.Column("annotation", sa.Text, primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("ground_truth", sa.Boolean, nullable=False),
        sa.Column("skipped", sa.Boolean, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("digest", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("height", sa.Integer),
        sa.Column("width", sa.Integer),
        sa.Column("revision", sa.Text, nullable=False),
    )
    op.create_index("annotations_of_task", "annotations", ["tool", "task", "item"])
    op.create_index("annotations_of_project", "annotations", ["tool", "project"])
    op.create_index("annotations_of_image", "annotations", ["digest"])
    op.create_table(
        "labels",
        sa.Column("revision", sa.Text, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("category", sa.Text, nullable=False),
        sa.Column("geometry", sa.Text, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("proposal", sa.Text),
    )
    op.create_index("ix_labels_proposal", "labels", ["proposal"])
    op.create_table(
        "tombstones",
        sa.Column("tool", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
    )
    op.create_table(
        "sides",
        sa.Column("tool", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("side", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("thumbnail", sa.LargeBinary, nullable=False),
    )


def _create_progress() -> None:
    op.create_table(
        "inboxes",
        sa.Column("inbox", sa.Text, primary_key=True),
        sa.Column("read_to", sa.Integer, nullable=False),
    )
    op.create_table(
        "set_aside",
        sa.Column("inbox", sa.Text, primary_key=True),
        sa.Column("event", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tool", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("retry_at", sa.Double),
    )
    op.create_table(
        "pulls",
        sa.Column("tool", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("position", sa.Text, nullable=False),
    )
