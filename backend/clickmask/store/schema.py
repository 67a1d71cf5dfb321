"""The tables. A change of them is a new step of `clickmask.store.migrations`."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

proposals = sa.Table(
    "proposals",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("segmenter", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("counts", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

preannotated = sa.Table(
    "preannotated",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("batch", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("counts", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("tool", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("segmenter", sa.Text),
    sa.Column("title", sa.Text, nullable=False, server_default=""),
    sa.Column("categories", sa.Text, nullable=False, server_default="[]"),  # JSON, the tool's order
    sa.Column("unlabelled", sa.Text, nullable=False, server_default="background"),  # or ignore
)

origins = sa.Table(
    "origins",
    metadata,
    sa.Column("tool", sa.Text, primary_key=True),
    sa.Column("origin", sa.Text, nullable=False),
)

# One annotation on one image. Its labels are those of its revision: a new set is written beside the
# old one and then takes its place in one short step, however large the two are.
annotations = sa.Table(
    "annotations",
    metadata,
    sa.Column("tool", sa.Text, primary_key=True),
    sa.Column("annotation", sa.Text, primary_key=True),
    sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("ground_truth", sa.Boolean, nullable=False),
    sa.Column("skipped", sa.Boolean, nullable=False),
    sa.Column("address", sa.Text, nullable=False),  # a hash: an address may hold a signature
    sa.Column("digest", sa.Text),  # of the image; none for a skip
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("height", sa.Integer),
    sa.Column("width", sa.Integer),
    sa.Column("revision", sa.Text, nullable=False),
    sa.Index("annotations_of_task", "tool", "task", "item"),
    sa.Index("annotations_of_project", "tool", "project"),
    sa.Index("annotations_of_image", "digest"),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("revision", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("region", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("geometry", sa.Text, nullable=False),  # JSON; of a brush only its kind
    sa.Column("counts", sa.Text, nullable=False),  # of the mask's COCO RLE
    sa.Column("proposal", sa.Text, index=True),
)

# Sets of labels that stand for no annotation: not yet, or no more. A crash leaves them here.
unfinished = sa.Table(
    "unfinished",
    metadata,
    sa.Column("revision", sa.Text, primary_key=True),
    sa.Column("since", sa.Double, nullable=False),  # seconds since 1970
)

# What was deleted stays deleted, in whatever order its events arrive.
tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("tool", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),  # annotation, task or project
    sa.Column("name", sa.Text, primary_key=True),
)

sides = sa.Table(
    "sides",
    metadata,
    sa.Column("tool", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("side", sa.Text, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),  # of clickmask.labels.split.Fingerprint
    sa.Column("thumbnail", sa.LargeBinary, nullable=False),
)

# How far the events of an inbox were read: beside the labels, so that both survive or neither does.
inboxes = sa.Table(
    "inboxes",
    metadata,
    sa.Column("inbox", sa.Text, primary_key=True),
    sa.Column("read_to", sa.Integer, nullable=False),
)

set_aside = sa.Table(
    "set_aside",
    metadata,
    sa.Column("inbox", sa.Text, primary_key=True),
    sa.Column("event", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("retry_at", sa.Double),  # none: for good
)

# Where a pull that was interrupted goes on.
pulls = sa.Table(
    "pulls",
    metadata,
    sa.Column("tool", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("position", sa.Text, nullable=False),
)

# `owner_beats` and `trainer_beats` are counted up by processes that live; see `clickmask.store.jobs`.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("beat_at", sa.Double, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("loss", sa.Double),
    sa.Column("validation_miou", sa.Double),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("seconds_left", sa.Double),
    sa.Column("version", sa.Text),
    sa.Column("promoted", sa.Boolean),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("owner_beats", sa.Integer, nullable=False, server_default="0"),
    sa.Column("trainer", sa.Text, nullable=False, server_default=""),
    sa.Column("trainer_beats", sa.Integer, nullable=False, server_default="0"),
    sa.Index("jobs_of_project", "tool", "project", "id"),
    sa.Index("jobs_of_state", "state"),
)
