"""Accepted labels: the regions of an annotation on an image form one set, which is replaced at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import Brush, geometry_from_json
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
from clickmask.store.database import Part
from clickmask.store.label_sets import (
    MAX_ROWS,
    Drawn,
    forget_sets,
    forget_unfinished,
    note_unfinished,
    replace_set,
    write_set,
)
from clickmask.store.schema import annotations, labels, tombstones


class Accepted(Part):
    """Accepted annotations. The newest submission for an image counts, in whatever order they arrive."""

    def is_news(self, submission: Submission) -> bool:
        """Whether the submission would change anything: it is not deleted and newer than the stored one."""
        with self._database.reading() as connection:
            return _is_news(connection, submission)

    def accept(self, submission: Submission, image: ImageIdentity | None, drawn: Sequence[Drawn]) -> bool:
        """Store `drawn` (regions and their masks) as the annotation's labels; return False if it is no news.

        `image` is None for a skip, which has no labels. Writes are short; readers see the old or the new set.
        """
        revision = write_set(self._database, drawn)
        height, width = image.size if image else (None, None)
        same = "tool annotation item project task author updated_at ground_truth skipped name".split()
        row: dict[str, Any] = {name: getattr(submission, name) for name in same} | {
            "address": _hashed(submission.address),
            "digest": image.digest if image else None,
            "height": height,
            "width": width,
            "revision": revision,
        }
        # Rows this submission replaces: the same image, and images the annotation no longer covers.
        covered = annotations.c.item == submission.item
        if submission.items is not None:
            covered = sa.or_(covered, annotations.c.item >= submission.items)
        own = (annotations.c.tool == submission.tool, annotations.c.annotation == submission.annotation)
        replaced = (*own, covered)
        # A task has one ground truth, the newest. Label Studio 1.23.2 sends no event about the previous one.
        others = (
            annotations.c.tool == submission.tool,
            annotations.c.task == submission.task,
            annotations.c.item == submission.item,
            annotations.c.annotation != submission.annotation,
            annotations.c.ground_truth.is_(True),
        )
        newer = sa.select(sa.literal(1)).where(*others, annotations.c.updated_at > submission.updated_at)
        with self._database.writing() as connection:
            is_news = _is_news(connection, submission)
            unwanted = [revision]
            if is_news:
                unwanted = list(connection.scalars(sa.select(annotations.c.revision).where(*replaced)))
                replace_set(connection, revision, unwanted)
                if submission.ground_truth and connection.scalar(newer.limit(1)):
                    row["ground_truth"] = False
                connection.execute(annotations.delete().where(*replaced))
                connection.execute(annotations.insert(), row)
                if row["ground_truth"]:
                    connection.execute(annotations.update().where(*others).values(ground_truth=False))
        if unwanted:
            forget_sets(self._database, unwanted)
        return is_news

    def delete(self, deleted: Deleted) -> None:
        """Withdraw all labels of the annotation, task or project for good. No later event restores them."""
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
                note_unfinished(connection, revisions)
            if not revisions:
                return
            forget_sets(self._database, revisions)

    def forget_unfinished(self) -> None:
        """Remove sets that killed processes left half written or half deleted. No reader sees them."""
        forget_unfinished(self._database)

    def labels(self, tool: str, project: str, all_annotations: bool = False) -> list[AcceptedLabel]:
        """Labels sorted by task, item and annotation, in the annotation's own order.

        The ground truth of a task's image counts, else its newest annotation; with `all_annotations`, all.
        """
        chosen = _chosen(tool, project, all_annotations)
        own = (labels.c[name] for name in ("region", "category", "geometry", "counts", "proposal"))
        joined = sa.select(chosen, *own).join(labels, labels.c.revision == chosen.c.revision)
        order = (chosen.c.task, chosen.c.item, chosen.c.annotation, labels.c.position)
        found: list[AcceptedLabel] = []
        for row in self._rows(joined.order_by(*order)):
            key = LabelKey(tool, project, row.task, row.annotation, row.region)
            image = (row.digest, (row.height, row.width))
            rle: Rle = {"size": [row.height, row.width], "counts": row.counts}
            drawn = json.loads(row.geometry)
            shape = Brush(rle) if drawn["kind"] == "brush" else geometry_from_json(drawn)
            found.append(AcceptedLabel(key, *image, row.category, shape, rle, row.updated_at, row.proposal))
        return found

    def images(self, tool: str, project: str) -> list[LabelledImage]:
        """Annotated images sorted by task and item. Some have no labels. Skips are left out."""
        chosen = _chosen(tool, project, all_annotations=False)
        columns = (chosen.c.digest, chosen.c.name, chosen.c.height, chosen.c.width, chosen.c.task)
        ordered = sa.select(*columns, chosen.c.item).order_by(chosen.c.task, chosen.c.item)
        return [
            LabelledImage(digest, name, (height, width), task, item)
            for digest, name, height, width, task, item in self._rows(ordered)
        ]

    def annotations(self, tool: str, project: str) -> list[tuple[str, str]]:
        """The task and name of each annotation, including skips, without duplicates."""
        named = (annotations.c.task, annotations.c.annotation)
        chosen = sa.select(*named).filter_by(tool=tool, project=project).distinct().order_by(*named)
        return [(task, name) for task, name in self._rows(chosen)]

    def known_image(self, submission: Submission) -> ImageIdentity | None:
        """The image at the submission's address, if another annotation of the task has covered it."""
        columns = (annotations.c.digest, annotations.c.height, annotations.c.width)
        task = {"tool": submission.tool, "task": submission.task, "item": submission.item}
        chosen = sa.select(*columns).filter_by(**task, address=_hashed(submission.address))
        chosen = chosen.where(annotations.c.digest.is_not(None))
        rows = self._rows(chosen.order_by(annotations.c.updated_at.desc()).limit(1))
        return ImageIdentity(rows[0][0], (rows[0][1], rows[0][2])) if rows else None

    def is_labelled(self, digest: str) -> bool:
        """Whether the image has an annotation."""
        chosen = sa.select(sa.literal(1)).where(annotations.c.digest == digest).limit(1)
        return self._scalar(chosen) is not None


def _is_news(connection: sa.Connection, submission: Submission) -> bool:
    buried = sa.select(tombstones.c.kind).where(
        tombstones.c.tool == submission.tool,
        sa.tuple_(tombstones.c.kind, tombstones.c.name).in_(
            (kind, getattr(submission, kind)) for kind in ("annotation", "task", "project")
        ),
    )
    if connection.scalar(buried):
        return False
    of = {"tool": submission.tool, "annotation": submission.annotation}
    at = annotations.c.updated_at
    known = connection.scalar(sa.select(at).filter_by(**of, item=submission.item))
    if known is not None or submission.items is None:
        return known is None or submission.updated_at > known
    # The annotation was saved since then without this image.
    newest = connection.scalar(sa.select(sa.func.max(at)).filter_by(**of))
    return newest is None or submission.updated_at >= newest


def _chosen(tool: str, project: str, all_annotations: bool) -> sa.Subquery:
    """Annotations without skips; for each image of a task only the one that counts."""
    place = sa.func.row_number().over(
        partition_by=(annotations.c.task, annotations.c.item),
        order_by=(
            annotations.c.ground_truth.desc(),
            annotations.c.updated_at.desc(),
            annotations.c.annotation.desc(),
        ),
    )
    of = {"tool": tool, "project": project, "skipped": False}
    ranked = sa.select(annotations, place.label("place")).filter_by(**of).subquery()
    chosen = sa.select(ranked)
    return (chosen if all_annotations else chosen.where(ranked.c.place == 1)).subquery()


def _hashed(address: str) -> str:
    return hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
