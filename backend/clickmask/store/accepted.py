"""Accepted labels: each annotation's whole set of regions, replaced at once and settled by its time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import Brush, Geometry, geometry_from_json
from clickmask.labels.submissions import (
    AcceptedLabel,
    AnnotationDeleted,
    Deleted,
    LabelKey,
    LabelledImage,
    ProjectDeleted,
    Submission,
    TaskDeleted,
)
from clickmask.masks.rle import Rle
from clickmask.store.database import Database
from clickmask.store.label_sets import (
    MAX_ROWS,
    Drawn,
    drop_sets,
    forget_sets,
    forget_unfinished,
    replace_set,
    write_set,
)
from clickmask.store.schema import annotations, labels, tombstones

Condition = sa.ColumnElement[bool]


class Accepted:
    """Of an annotation on one image the newest submission stands, whatever order they arrive in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def is_news(self, submission: Submission) -> bool:
        """Whether it would change anything: it is not deleted, and newer than what is known."""
        with self._database.reading() as connection:
            return _is_news(connection, submission)

    def accept(self, submission: Submission, image: ImageIdentity | None, drawn: Sequence[Drawn]) -> bool:
        """Let `drawn`, its regions and their masks, stand for the annotation; False if it is no news.

        `image` is None for a skip, which has no labels. However many labels there are, each write
        transaction is short, and readers see the old set or the new one.
        """
        revision = write_set(self._database, drawn)
        row = _annotation_row(submission, image, revision)
        with self._database.writing() as connection:
            is_news = _is_news(connection, submission)
            unwanted = [revision]
            if is_news:
                replaced = _replaced(submission)
                unwanted = list(connection.scalars(sa.select(annotations.c.revision).where(*replaced)))
                replace_set(connection, revision, unwanted)
                others = _other_truths(submission)
                late = sa.select(sa.literal(1)).where(
                    *others, annotations.c.updated_at > submission.updated_at
                )
                if submission.ground_truth and connection.scalar(late.limit(1)):
                    row["ground_truth"] = False
                connection.execute(annotations.delete().where(*replaced))
                connection.execute(annotations.insert(), row)
                if row["ground_truth"]:
                    connection.execute(annotations.update().where(*others).values(ground_truth=False))
        if unwanted:
            forget_sets(self._database, unwanted)
        return is_news

    def delete(self, deleted: Deleted) -> None:
        """Withdraw all labels of the annotation, the task or the project, for good: no later event brings
        them back."""
        match deleted:
            case ProjectDeleted():
                kind, name, column = "project", deleted.project, annotations.c.project
            case TaskDeleted():
                kind, name, column = "task", deleted.task, annotations.c.task
            case AnnotationDeleted():
                kind, name, column = "annotation", deleted.annotation, annotations.c.annotation
        stone = {"tool": deleted.tool, "kind": kind, "name": name}
        with self._database.writing() as connection:
            if not connection.scalar(sa.select(tombstones.c.kind).filter_by(**stone)):
                connection.execute(tombstones.insert(), stone)
        of = (annotations.c.tool == deleted.tool, column == name)
        some = sa.select(annotations.c.revision).where(*of).limit(MAX_ROWS)
        while True:
            with self._database.writing() as connection:
                revisions = list(connection.scalars(some))
                connection.execute(annotations.delete().where(*of, annotations.c.revision.in_(revisions)))
                drop_sets(connection, revisions)
            if not revisions:
                return
            forget_sets(self._database, revisions)

    def forget_unfinished(self) -> None:
        """Remove what processes that were killed while they accepted or deleted have left; nobody sees it."""
        forget_unfinished(self._database)

    def labels(self, tool: str, project: str, all_annotations: bool = False) -> list[AcceptedLabel]:
        """The labels that stand, by task, item and annotation, each annotation's in its own order.

        Of several annotations of one task's image it is the ground truth's, else the newest one's;
        `all_annotations`: of every one.
        """
        chosen = _chosen(tool, project, all_annotations)
        joined = sa.select(
            chosen.c.project,
            chosen.c.task,
            chosen.c.annotation,
            chosen.c.digest,
            chosen.c.height,
            chosen.c.width,
            chosen.c.updated_at,
            labels.c.region,
            labels.c.category,
            labels.c.geometry,
            labels.c.counts,
            labels.c.proposal,
        ).join(labels, labels.c.revision == chosen.c.revision)
        ordered = joined.order_by(chosen.c.task, chosen.c.item, chosen.c.annotation, labels.c.position)
        with self._database.reading() as connection:
            return [_label(tool, row) for row in connection.execute(ordered).mappings()]

    def images(self, tool: str, project: str) -> list[LabelledImage]:
        """The images that an annotation which stands is on, by task and item; some without labels."""
        chosen = _chosen(tool, project, all_annotations=False)
        columns = (chosen.c.digest, chosen.c.name, chosen.c.height, chosen.c.width, chosen.c.task)
        ordered = sa.select(*columns, chosen.c.item).order_by(chosen.c.task, chosen.c.item)
        with self._database.reading() as connection:
            return [
                LabelledImage(digest, name, (height, width), task, item)
                for digest, name, height, width, task, item in connection.execute(ordered)
            ]

    def annotations(self, tool: str, project: str) -> list[tuple[str, str]]:
        """Task and name of every annotation that stands or is a skip, each once."""
        of = (annotations.c.tool == tool, annotations.c.project == project)
        chosen = sa.select(annotations.c.task, annotations.c.annotation).where(*of).distinct()
        with self._database.reading() as connection:
            ordered = chosen.order_by(annotations.c.task, annotations.c.annotation)
            return [(task, name) for task, name in connection.execute(ordered)]

    def known_image(self, submission: Submission) -> ImageIdentity | None:
        """The image at the submission's address, if an annotation of the same task was made on it."""
        chosen = sa.select(annotations.c.digest, annotations.c.height, annotations.c.width).where(
            annotations.c.tool == submission.tool,
            annotations.c.task == submission.task,
            annotations.c.item == submission.item,
            annotations.c.address == _hashed(submission.address),
            annotations.c.digest.is_not(None),
        )
        with self._database.reading() as connection:
            row = connection.execute(chosen.order_by(annotations.c.updated_at.desc()).limit(1)).first()
        return ImageIdentity(row[0], (row[1], row[2])) if row else None

    def is_labelled(self, digest: str) -> bool:
        """Whether any annotation that stands is on the image."""
        chosen = sa.select(sa.literal(1)).where(annotations.c.digest == digest).limit(1)
        with self._database.reading() as connection:
            return connection.scalar(chosen) is not None


def _is_news(connection: sa.Connection, submission: Submission) -> bool:
    buried = sa.select(tombstones.c.kind).where(
        tombstones.c.tool == submission.tool,
        sa.or_(
            sa.and_(tombstones.c.kind == "annotation", tombstones.c.name == submission.annotation),
            sa.and_(tombstones.c.kind == "task", tombstones.c.name == submission.task),
            sa.and_(tombstones.c.kind == "project", tombstones.c.name == submission.project),
        ),
    )
    if connection.scalar(buried):
        return False
    known = connection.scalar(
        sa.select(annotations.c.updated_at).where(
            *_annotation(submission), annotations.c.item == submission.item
        )
    )
    if known is not None or submission.items is None:
        return known is None or submission.updated_at > known
    # It was saved without this image since.
    newest = connection.scalar(
        sa.select(sa.func.max(annotations.c.updated_at)).where(*_annotation(submission))
    )
    return newest is None or submission.updated_at >= newest


def _annotation(submission: Submission) -> tuple[Condition, ...]:
    return annotations.c.tool == submission.tool, annotations.c.annotation == submission.annotation


def _replaced(submission: Submission) -> tuple[Condition, ...]:
    """What was said of its image before, and of images that the annotation is on no more."""
    this = annotations.c.item == submission.item
    if submission.items is not None:
        this = sa.or_(this, annotations.c.item >= submission.items)
    return *_annotation(submission), this


def _other_truths(submission: Submission) -> tuple[Condition, ...]:
    """A task has one ground truth, the newest: Label Studio takes it from the one before without an event
    (1.23.2)."""
    return (
        annotations.c.tool == submission.tool,
        annotations.c.task == submission.task,
        annotations.c.item == submission.item,
        annotations.c.annotation != submission.annotation,
        annotations.c.ground_truth.is_(True),
    )


def _annotation_row(submission: Submission, image: ImageIdentity | None, revision: str) -> dict[str, Any]:
    return {
        "tool": submission.tool,
        "annotation": submission.annotation,
        "item": submission.item,
        "project": submission.project,
        "task": submission.task,
        "author": submission.author,
        "updated_at": submission.updated_at,
        "ground_truth": submission.ground_truth,
        "skipped": submission.skipped,
        "address": _hashed(submission.address),
        "digest": image.digest if image else None,
        "name": submission.name,
        "height": image.size[0] if image else None,
        "width": image.size[1] if image else None,
        "revision": revision,
    }


def _chosen(tool: str, project: str, all_annotations: bool) -> sa.Subquery:
    """The annotations that stand; of one task's image only the one that counts."""
    of = (annotations.c.tool == tool, annotations.c.project == project, annotations.c.skipped.is_(False))
    place = sa.func.row_number().over(
        partition_by=(annotations.c.task, annotations.c.item),
        order_by=(
            annotations.c.ground_truth.desc(),
            annotations.c.updated_at.desc(),
            annotations.c.annotation.desc(),
        ),
    )
    ranked = sa.select(annotations, place.label("place")).where(*of).subquery()
    chosen = sa.select(ranked)
    return (chosen if all_annotations else chosen.where(ranked.c.place == 1)).subquery()


def _label(tool: str, row: sa.RowMapping) -> AcceptedLabel:
    size = (row["height"], row["width"])
    rle: Rle = {"size": list(size), "counts": row["counts"]}
    written = json.loads(row["geometry"])
    geometry: Geometry = Brush(rle) if written["kind"] == "brush" else geometry_from_json(written)
    return AcceptedLabel(
        LabelKey(tool, row["project"], row["task"], row["annotation"], row["region"]),
        row["digest"],
        size,
        row["category"],
        geometry,
        rle,
        row["updated_at"],
        row["proposal"],
    )


def _hashed(address: str) -> str:
    return hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
