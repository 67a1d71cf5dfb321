"""The split side of each image."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from clickmask.labels.split import SIDES, Assigned, Fingerprint, Side, SideCounts
from clickmask.store.database import Part
from clickmask.store.schema import annotations, labels, sides


class Splits(Part):
    """Split sides, each assigned once. Stored fingerprints still find near duplicates of a lost image."""

    def sides(self, tool: str, project: str, among: Collection[str] | None = None) -> list[Assigned]:
        """Images with a side, labelled or not, sorted by digest; only those in `among`, if given."""
        chosen = sa.select(sides.c.digest, sides.c.side, sides.c.hash, sides.c.thumbnail)
        if among is not None:
            chosen = chosen.where(sides.c.digest.in_(among))
        rows = self._rows(chosen.filter_by(tool=tool, project=project).order_by(sides.c.digest))
        return [Assigned(row.digest, _side(row.side), Fingerprint(row.hash, row.thumbnail)) for row in rows]

    def hashes(self, tool: str, project: str) -> list[tuple[str, bytes]]:
        """The digest and fingerprint hash of every image with a side."""
        chosen = sa.select(sides.c.digest, sides.c.hash).filter_by(tool=tool, project=project)
        return [(digest, code) for digest, code in self._rows(chosen)]

    def side_of(self, tool: str, project: str, digest: str) -> Side | None:
        with self._database.reading() as connection:
            return _side_of(connection, tool, project, digest)

    def side_counts(self, tool: str, project: str, categories: Collection[str]) -> dict[Side, SideCounts]:
        """The number of annotated images on each side, and which of `categories` their labels use."""
        there = (annotations.c.tool == tool, annotations.c.project == project)
        on_it = (*there, annotations.c.digest == sides.c.digest, annotations.c.skipped.is_(False))
        of = (sides.c.tool == tool, sides.c.project == project)
        counted = sa.select(sides.c.side, sa.func.count()).where(*of, sa.exists().where(*on_it))
        drawn = annotations.join(labels, labels.c.revision == annotations.c.revision)
        labelled = sa.select(labels.c.category).select_from(drawn).where(*on_it).correlate(sides)
        found: dict[Side, set[str]] = {side: set() for side in SIDES}
        with self._database.reading() as connection:
            images = {_side(name): n for name, n in connection.execute(counted.group_by(sides.c.side))}
            for side in SIDES:
                # One query per category that stops at the first image: most categories have many images.
                for category in categories:
                    has = sa.exists(labelled.where(labels.c.category == category))
                    first = sa.select(sides.c.digest).where(*of, sides.c.side == side, has).limit(1)
                    if connection.scalar(first) is not None:
                        found[side].add(category)
        return {side: SideCounts(images.get(side, 0), frozenset(found[side])) for side in SIDES}

    def assign_side(
        self, tool: str, project: str, digest: str, side: Side, fingerprint: Fingerprint, known: int
    ) -> Side | None:
        """Assign `side` unless the image already has one. Returns the image's side.

        Assigns nothing and returns None if more than `known` images have a side: `side` ignored some of them.
        """
        of = {"tool": tool, "project": project}
        row = {"digest": digest, "side": side, "hash": fingerprint.hash, "thumbnail": fingerprint.thumbnail}
        counted = sa.select(sa.func.count()).select_from(sides).filter_by(**of)
        with self._database.writing() as connection:
            if there := _side_of(connection, tool, project, digest):
                return there
            if connection.scalar(counted) != known:
                return None
            connection.execute(sides.insert(), of | row)
        return side


def _side_of(connection: sa.Connection, tool: str, project: str, digest: str) -> Side | None:
    found = connection.scalar(sa.select(sides.c.side).filter_by(tool=tool, project=project, digest=digest))
    return None if found is None else _side(found)


def _side(name: str) -> Side:
    return next(side for side in SIDES if side == name)
