"""The tables. Every change needs a new step in `clickmask.store.database.STEPS`."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()


def _columns(
    kind: type[sa.types.TypeEngine[Any]], *names: str, nullable: bool = False, default: str | None = None
) -> Iterator[sa.Column[Any]]:
    return (sa.Column(name, kind, nullable=nullable, server_default=default) for name in names)


def _keys(*names: str) -> Iterator[sa.Column[str]]:
    return (sa.Column(name, sa.Text, primary_key=True) for name in names)


def _masks(name: str, *texts: str) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("digest", sa.Text, nullable=False, index=True),
        *_columns(sa.Text, *texts),
        sa.Column("score", sa.Double, nullable=False),
        *_columns(sa.Integer, "height", "width"),
        sa.Column("counts", sa.Text, nullable=False),  # last: SQLite reads through it to reach later columns
        sqlite_autoincrement=True,
    )


proposals = _masks("proposals", "segmenter", "prompt")
prelabels = _masks("preannotated", "batch", "annotator", "label")  # the table keeps its original name

projects = sa.Table(
    "projects",
    metadata,
    *_keys("tool", "project"),
    sa.Column("segmenter", sa.Text),
    sa.Column("title", sa.Text, nullable=False, server_default=""),
    sa.Column("categories", sa.Text, nullable=False, server_default="[]"),  # JSON, in the tool's order
    sa.Column("unlabelled", sa.Text, nullable=False, server_default="background"),
    sa.Column("controls", sa.Text, nullable=False, server_default="{}"),  # JSON: wishes by name
)

origins = sa.Table("origins", metadata, *_keys("tool"), *_columns(sa.Text, "origin"))

# An annotation on an image, with the labels of its revision: a new set is written aside, then swapped in.
annotations = sa.Table(
    "annotations",
    metadata,
    *_keys("tool", "annotation"),
    sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
    *_columns(sa.Text, "project", "task", "author", "name", "revision"),
    sa.Column("updated_at", sa.Double, nullable=False),
    *_columns(sa.Boolean, "ground_truth", "skipped"),
    sa.Column("address", sa.Text, nullable=False),  # a hash: an address may hold a signature
    sa.Column("digest", sa.Text),  # of the image; null for a skip, like its size
    *_columns(sa.Integer, "height", "width", nullable=True),
    sa.Column("left_out", sa.Text, nullable=False, server_default="{}"),  # JSON: numbers by a word
    sa.Column("known_as", sa.Text, nullable=False, server_default=""),
    sa.Index("annotations_of_task", "tool", "task", "item"),
    sa.Index("annotations_of_project", "tool", "project"),
    sa.Index("annotations_of_image", "digest"),
)

labels = sa.Table(
    "labels",
    metadata,
    *_keys("revision"),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    *_columns(sa.Text, "region", "category"),
    sa.Column("geometry", sa.Text, nullable=False),  # JSON; for a brush only its kind
    sa.Column("counts", sa.Text, nullable=False),  # of the mask's COCO RLE
    sa.Column("proposal", sa.Text, index=True),
    *_columns(sa.Integer, "layer", default="0"),
)

# Label sets that no annotation refers to yet, or any longer. A crash leaves them here.
unfinished = sa.Table("unfinished", metadata, *_keys("revision"), *_columns(sa.Double, "since"))

# Deleted objects stay deleted, in whatever order events arrive. A kind is annotation, task or project.
tombstones = sa.Table("tombstones", metadata, *_keys("tool", "kind", "name"))

# `hash` and `thumbnail` form a `clickmask.labels.split.Fingerprint`.
sides = sa.Table(
    "sides",
    metadata,
    *_keys("tool", "project", "digest"),
    *_columns(sa.Text, "side"),
    *_columns(sa.LargeBinary, "hash", "thumbnail"),
)

# Reading progress of each inbox, stored with the labels so that both survive or neither does.
inboxes = sa.Table("inboxes", metadata, *_keys("inbox"), *_columns(sa.Integer, "read_to"))

set_aside = sa.Table(
    "set_aside",
    metadata,
    *_keys("inbox"),
    sa.Column("event", sa.Integer, primary_key=True, autoincrement=False),
    *_columns(sa.Text, "tool", "reason"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("retry_at", sa.Double),  # null: never
)

pulls = sa.Table("pulls", metadata, *_keys("tool", "project"), *_columns(sa.Text, "position"))

# Live processes increment `owner_beats` and `trainer_beats`; see `clickmask.store.jobs`.
jobs = sa.Table(
    "jobs",
    metadata,
    *_keys("id"),
    *_columns(sa.Text, "tool", "project", "state", "owner", "message"),
    *_columns(sa.Double, "made_at", "beat_at", "seconds"),
    *_columns(sa.Integer, "images", "step", "steps"),
    *_columns(sa.Double, "loss", "validation_miou", "seconds_left", nullable=True),
    sa.Column("version", sa.Text),
    sa.Column("promoted", sa.Boolean),
    sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("trainer", sa.Text, nullable=False, server_default=""),
    *_columns(sa.Integer, "owner_beats", "trainer_beats", default="0"),
    *_columns(sa.Text, "network", default=""),
    sa.Index("jobs_of_project", "tool", "project", "id"),
    sa.Index("jobs_of_state", "state"),
)
