"""Accepted labels, and the progress of taking them in."""

import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from clickmask.images.source import ImageIdentity
from clickmask.labels.geometry import Brush, geometry_from_json, geometry_to_json
from clickmask.labels.submissions import AcceptedLabel, Deleted, LabelKey, LabelledImage, Region, Submission
from clickmask.masks.rle import Rle
from clickmask.store.database import MAX_ROWS, Part, note_unfinished, put, replace_set
from clickmask.store.schema import annotations, inboxes, labels, prelabels, set_aside, tombstones, unfinished

ABANDONED_AFTER_S = 3600.0  # after this time nobody can still be working on a set
IN_A_TASK = ("task", "item")  # columns that name an image of a task
DELETABLE = ("annotation", "task", "project")  # named as the fields of submissions and deletions
UNDATED = ("project", "task", "skipped", "name", "known_as")  # what may change without a new date
IMPORTED = "import: "  # begins the author of what came from a dataset instead of a tool
AS_SUBMITTED = ("tool", "annotation", "item", "author", "updated_at", "ground_truth", *UNDATED)
Drawn = tuple[Region, Rle]


class Accepted(Part):
    """Accepted annotations. The newest submission for an image counts, in whatever order they arrive."""

    def is_news(self, submission: Submission) -> bool:
        """Whether the submission would change anything: it is not deleted, and newer than the stored one, or
        of the same time and moved, skipped, or no longer skipped. What a tool says replaces an import,
        and no import replaces that."""
        with self._database.reading() as connection:
            return _is_news(connection, submission)

    def accept(self, submission: Submission, image: ImageIdentity | None, drawn: Sequence[Drawn]) -> bool:
        """Store `drawn`, regions with masks, as the annotation's labels. Returns False if it is no news."""
        revision = self._write_set(drawn)
        row: dict[str, Any] = {name: getattr(submission, name) for name in AS_SUBMITTED}
        row |= {"address": _hashed(submission.address), "revision": revision}
        row["left_out"] = json.dumps(dict(submission.left_out))
        if image:  # a skip has none
            row |= {"digest": image.digest, "height": image.size[0], "width": image.size[1]}
        of, item = annotations.c, submission.item
        # Rows this submission replaces: the same image, and images the annotation no longer covers.
        covered = of.item == item
        if submission.items is not None:
            covered = sa.or_(covered, of.item >= submission.items)
        replaced = (of.tool == submission.tool, of.annotation == submission.annotation, covered)
        # A task has one ground truth, the newest. Label Studio 1.23.2 sends no event about the previous one.
        others = (of.tool == submission.tool, of.task == submission.task, of.item == item)
        others += (of.annotation != submission.annotation, of.ground_truth.is_(True))
        newer = sa.select(sa.literal(1)).where(*others, of.updated_at > submission.updated_at)
        with self._database.writing() as connection:
            is_news = _is_news(connection, submission)
            unwanted = [revision]
            if is_news:
                unwanted = list(connection.scalars(sa.select(of.revision).where(*replaced)))
                replace_set(connection, revision, unwanted)
                if submission.ground_truth and connection.scalar(newer.limit(1)):
                    row["ground_truth"] = False
                if unwanted:
                    connection.execute(annotations.delete().where(*replaced))
                connection.execute(annotations.insert(), row)
                if row["ground_truth"]:
                    connection.execute(annotations.update().where(*others).values(ground_truth=False))
        if unwanted:
            self._database.removals += 1
            self._forget_sets(unwanted)
        return is_news

    def delete(self, deleted: Deleted) -> None:
        """Withdraw all labels of the annotation, task or project for good. No later event restores them."""
        kind = next(name for name in DELETABLE if hasattr(deleted, name))
        stone = {"tool": deleted.tool, "kind": kind, "name": getattr(deleted, kind)}
        with self._database.writing() as connection:
            if not connection.scalar(sa.select(tombstones.c.kind).filter_by(**stone)):
                connection.execute(tombstones.insert(), stone)
        of = (annotations.c.tool == stone["tool"], annotations.c[kind] == stone["name"])
        some = sa.select(annotations.c.revision).where(*of).limit(MAX_ROWS)
        while True:
            with self._database.writing() as connection:
                revisions = list(connection.scalars(some))
                connection.execute(annotations.delete().where(*of, annotations.c.revision.in_(revisions)))
                note_unfinished(connection, revisions)
            self._database.removals += 1
            if not revisions:
                return
            self._forget_sets(revisions)

    def forget_unfinished(self) -> None:
        """Remove sets that killed processes left half written or half deleted. No reader sees them."""
        left = sa.select(unfinished.c.revision).where(unfinished.c.since < time.time() - ABANDONED_AFTER_S)
        while True:
            with self._database.reading() as connection:
                revisions = list(connection.scalars(left.limit(MAX_ROWS)))
            if not revisions:
                return
            self._database.remove_rows(prelabels, prelabels.c.batch.in_(revisions))
            self._forget_sets(revisions)

    def labels(self, tool: str, project: str, all_annotations: bool = False) -> list[AcceptedLabel]:
        """Labels sorted by task, item and annotation, in the annotation's own order.

        Of each image of a task, and then of each image whatever shows it, the newest ground truth counts,
        else the newest annotation of the tool, else the newest import; with `all_annotations`, all.
        """
        chosen = _chosen(tool, project, *(() if all_annotations else (IN_A_TASK, ("digest",))))
        own = (labels.c[name] for name in ("region", "category", "geometry", "counts", "proposal", "layer"))
        joined = sa.select(chosen, *own).join(labels, labels.c.revision == chosen.c.revision)
        order = (chosen.c.task, chosen.c.item, chosen.c.annotation, labels.c.position)
        found: list[AcceptedLabel] = []
        for row in self._rows(joined.order_by(*order)):
            key = LabelKey(tool, project, row.task, row.annotation, row.region)
            image = (row.digest, (row.height, row.width))
            rle: Rle = {"size": [row.height, row.width], "counts": row.counts}
            drawn = json.loads(row.geometry)
            shape = Brush(rle) if drawn["kind"] == "brush" else geometry_from_json(drawn)
            accepted = (row.category, shape, rle, row.updated_at, row.proposal, row.item, row.layer)
            found.append(AcceptedLabel(key, *image, *accepted))
        return found

    def images(self, tool: str, project: str) -> list[LabelledImage]:
        """Annotated images sorted by task and item. Some have no labels. Skips are left out."""
        chosen = _chosen(tool, project, IN_A_TASK)
        return [
            LabelledImage(
                row.digest,
                row.name,
                (row.height, row.width),
                row.task,
                row.item,
                row.annotation,
                row.updated_at,
                row.ground_truth,
                json.loads(row.left_out),
                row.known_as,
                not row.submitted,
            )
            for row in self._rows(sa.select(chosen).order_by(chosen.c.task, chosen.c.item))
        ]

    def annotations(self, tool: str, project: str) -> list[tuple[str, str]]:
        """The task and name of each annotation of the tool, including skips, without duplicates, and without
        what was imported."""
        named = (annotations.c.task, annotations.c.annotation)
        chosen = sa.select(*named).filter_by(tool=tool, project=project).distinct().order_by(*named)
        chosen = chosen.where(annotations.c.author.not_like(f"{IMPORTED}%"))
        return [(task, name) for task, name in self._rows(chosen)]

    def authors(self, tool: str) -> dict[tuple[str, int], tuple[str, float]]:
        """The author and time of each annotation on an image, by the annotation's name and the item."""
        own = (annotations.c[name] for name in ("annotation", "item", "author", "updated_at"))
        rows = self._rows(sa.select(*own).filter_by(tool=tool))
        return {(name, item): (author, at) for name, item, author, at in rows}

    def imports(self, tool: str, project: str) -> dict[str, int]:
        """Numbers of images by the dataset that their labels were imported from, by the author's words."""
        own = (annotations.c.author, sa.func.count())
        chosen = sa.select(*own).filter_by(tool=tool, project=project).group_by(annotations.c.author)
        found = Counter[str]()
        for author, count in self._rows(chosen.where(annotations.c.author.like(f"{IMPORTED}%"))):
            found[author.removeprefix(IMPORTED).rpartition(" ")[0]] += count
        return dict(found)

    def known_image(self, submission: Submission) -> ImageIdentity | None:
        """The image at the submission's address, if another annotation of the task has covered it."""
        task = {"tool": submission.tool, "task": submission.task, "item": submission.item}
        with self._database.reading() as connection:
            row = connection.execute(_SHOWN, task | {"address": _hashed(submission.address)}).first()
        return ImageIdentity(row.digest, (row.height, row.width)) if row else None

    def left_out(self) -> dict[str, int]:
        """Numbers of regions, of all projects, of which no label can be made, by a word for them."""
        some = (annotations.c.left_out != "{}", annotations.c.skipped.is_(False))
        found = Counter[str]()
        for (written,) in self._rows(sa.select(annotations.c.left_out).where(*some)):
            found.update(json.loads(written))
        return dict(found)

    def is_labelled(self, digest: str) -> bool:
        """Whether the image has an annotation."""
        return bool(self._rows(sa.select(annotations.c.item).where(annotations.c.digest == digest).limit(1)))

    def _write_set(self, drawn: Sequence[Drawn]) -> str:
        """Write labels that nobody sees until `replace_set`. Returns the name of their set."""
        revision = secrets.token_hex(12)
        rows: list[dict[str, Any]] = []
        for position, (region, rle) in enumerate(drawn):
            geometry = geometry_to_json(region.geometry)
            if isinstance(region.geometry, Brush):
                del geometry["rle"]  # stored in `counts`
            row = {"revision": revision, "position": position, "region": region.id}
            row |= {"category": region.category, "geometry": json.dumps(geometry)}
            rows.append(row | {"counts": rle["counts"], "proposal": region.proposal, "layer": region.layer})
        self._database.write_rows(revision, labels, rows)
        return revision

    def _forget_sets(self, revisions: Sequence[str]) -> None:
        """Remove label sets that are no longer in use."""
        self._database.remove_rows(labels, labels.c.revision.in_(revisions))
        self._execute(unfinished.delete().where(unfinished.c.revision.in_(revisions)))


# Composed once, as this takes longer than their answers: each submission asks them.
_BURIED = sa.select(tombstones.c.kind).where(
    tombstones.c.tool == sa.bindparam("tool"),
    sa.or_(*((tombstones.c.kind == kind) & (tombstones.c.name == sa.bindparam(kind)) for kind in DELETABLE)),
)
_OF_ANNOTATION = tuple(annotations.c[name] == sa.bindparam(name) for name in ("tool", "annotation"))
_SAVED = sa.select(*(annotations.c[name] for name in ("author", "updated_at", *UNDATED))).where(
    *_OF_ANNOTATION, annotations.c.item == sa.bindparam("item")
)
_LAST_SAVED = sa.select(sa.func.max(annotations.c.updated_at)).where(
    *_OF_ANNOTATION, annotations.c.author.not_like(f"{IMPORTED}%")
)
_SHOWN = (
    sa.select(annotations.c.digest, annotations.c.height, annotations.c.width)
    .where(*(annotations.c[name] == sa.bindparam(name) for name in ("tool", "task", "item", "address")))
    .where(annotations.c.digest.is_not(None))
    .order_by(annotations.c.updated_at.desc())
    .limit(1)
)


def _is_news(connection: sa.Connection, submission: Submission) -> bool:
    of = {"tool": submission.tool, "annotation": submission.annotation}
    stones = {kind: getattr(submission, kind) for kind in DELETABLE}
    if connection.scalar(_BURIED, of | stones):
        return False
    known = connection.execute(_SAVED, of | {"item": submission.item}).first()
    if known:
        # CVAT 2.73 moves a task to another project, deletes a frame and restores it, all without a new date.
        # What an older version stored may have another name, no `known_as`, and no objects of several parts.
        author, at, *undated = tuple(known)
        if author.startswith(IMPORTED) != submission.author.startswith(IMPORTED):
            return author.startswith(IMPORTED)
        changed = undated != [getattr(submission, name) for name in UNDATED]
        return submission.updated_at > at or (changed and submission.updated_at == at)
    if submission.items is None:
        return True
    # The annotation was saved since then without this image.
    newest = connection.scalar(_LAST_SAVED, of)
    return newest is None or submission.updated_at >= newest


def _chosen(tool: str, project: str, *rankings: Sequence[str]) -> sa.Subquery:
    """Annotations without skips. Of those that agree in a ranking's columns, only the one that counts."""
    # Of pages and frames that were saved at one time, those count on which something is.
    drawn = sa.exists().where(labels.c.revision == annotations.c.revision).label("drawn")
    marked = (annotations.c.left_out != "{}").label("marked")
    submitted = annotations.c.author.not_like(f"{IMPORTED}%").label("submitted")
    every = sa.select(annotations, drawn, marked, submitted)
    chosen = every.filter_by(tool=tool, project=project, skipped=False).subquery()
    order = ("ground_truth", "submitted", "updated_at", "drawn", "marked", "task", "item", "annotation")
    for columns in rankings:
        best = (chosen.c[name].desc() for name in order)
        place = sa.func.row_number().over(
            partition_by=tuple(chosen.c[name] for name in columns), order_by=tuple(best)
        )
        ranked = sa.select(chosen, place.label("place")).subquery()
        own = (column for column in ranked.c if column.key != "place")
        chosen = sa.select(*own).where(ranked.c.place == 1).subquery()
    return chosen


def _hashed(address: str) -> str:
    return hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()


class FailedEvent(NamedTuple):
    """An event that could not be applied. It is not retried if `retry_at` is None."""

    event: int
    tool: str
    reason: str
    at: float  # seconds since 1970
    attempts: int
    retry_at: float | None


_FAILED = sa.select(*(set_aside.c[name] for name in FailedEvent._fields))


class Progress(Part):
    """Progress of reading an inbox, and the events that failed."""

    def read_to(self, inbox: str) -> int:
        """The id of the last event that was read; 0 if none was."""
        return self._scalar(sa.select(inboxes.c.read_to).filter_by(inbox=inbox)) or 0

    def mark_read(self, inbox: str, event: int, failed: FailedEvent | None = None) -> None:
        """Record that events up to this one are done, and that this one `failed`, if it did."""
        with self._database.writing() as connection:
            put(connection, inboxes, {"inbox": inbox}, {"read_to": event})
            if failed:
                put(connection, set_aside, {"inbox": inbox, "event": failed.event}, failed._asdict())

    def defer(self, inbox: str, failed: FailedEvent) -> None:
        """Record that the event failed, for the first time or again."""
        with self._database.writing() as connection:
            put(connection, set_aside, {"inbox": inbox, "event": failed.event}, failed._asdict())

    def resolve(self, inbox: str, event: int) -> None:
        """Forget the event's failure: it was applied after all."""
        self._execute(set_aside.delete().filter_by(inbox=inbox, event=event))

    def set_aside(self, inbox: str, limit: int = 50) -> list[FailedEvent]:
        """At most `limit` failed events, newest first."""
        newest = _FAILED.filter_by(inbox=inbox).order_by(set_aside.c.event.desc())
        return [FailedEvent(*row) for row in self._rows(newest.limit(limit))]

    def count_set_aside(self, inbox: str) -> int:
        return self._scalar(sa.select(sa.func.count()).where(set_aside.c.inbox == inbox)) or 0

    def retry_set_aside(self, inbox: str, now: float) -> None:
        """Make all failed events due now."""
        of = (set_aside.c.inbox == inbox, sa.or_(set_aside.c.retry_at.is_(None), set_aside.c.retry_at > now))
        some = sa.select(set_aside.c.event).where(*of).limit(MAX_ROWS)
        while True:
            with self._database.writing() as connection:
                events = list(connection.scalars(some))
                these = (set_aside.c.inbox == inbox, set_aside.c.event.in_(events))
                connection.execute(set_aside.update().where(*these).values(retry_at=now))
            if len(events) < MAX_ROWS:
                return

    def due(self, inbox: str, now: float) -> FailedEvent | None:
        """The failed event that is most overdue."""
        overdue = _FAILED.filter_by(inbox=inbox).where(set_aside.c.retry_at <= now)
        rows = self._rows(overdue.order_by(set_aside.c.retry_at).limit(1))
        return FailedEvent(*rows[0]) if rows else None
