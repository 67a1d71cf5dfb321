"""On which side of the split an image is."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from clickmask.labels.split import SIDES, Assigned, Fingerprint, Side, SideCounts
from clickmask.store.database import Database
from clickmask.store.schema import annotations, labels, sides


class Splits:
    """A side is assigned once: whoever comes later is told the first. Fingerprints are kept with them:
    an image itself may be gone when its neighbours come."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sides(self, tool: str, project: str, among: Collection[str] | None = None) -> list[Assigned]:
        """Every image that has a side, by digest, its labels withdrawn or not; of those `among`, if given."""
        chosen = sa.select(sides.c.digest, sides.c.side, sides.c.hash, sides.c.thumbnail)
        if among is not None:
            chosen = chosen.where(sides.c.digest.in_(among))
        with self._database.reading() as connection:
            rows = connection.execute(chosen.where(*_of(tool, project)).order_by(sides.c.digest)).all()
        return [
            Assigned(digest, _side(side), Fingerprint(code, thumbnail))
            for digest, side, code, thumbnail in rows
        ]

    def hashes(self, tool: str, project: str) -> list[tuple[str, bytes]]:
        """Digest, and hash of the fingerprint, of every image that has a side."""
        chosen = sa.select(sides.c.digest, sides.c.hash).where(*_of(tool, project))
        with self._database.reading() as connection:
            return [(digest, code) for digest, code in connection.execute(chosen)]

    def side_of(self, tool: str, project: str, digest: str) -> Side | None:
        with self._database.reading() as connection:
            return _side_of(connection, tool, project, digest)

    def standing(self, tool: str, project: str, categories: Collection[str]) -> dict[Side, SideCounts]:
        """What is on each side now; of categories, which of `categories`."""
        there = (annotations.c.tool == tool, annotations.c.project == project)
        on_it = (*there, annotations.c.digest == sides.c.digest, annotations.c.skipped.is_(False))
        of = _of(tool, project)
        counted = sa.select(sides.c.side, sa.func.count()).where(*of, sa.exists().where(*on_it))
        drawn = annotations.join(labels, labels.c.revision == annotations.c.revision)
        labelled = sa.select(labels.c.category).select_from(drawn).where(*on_it).correlate(sides)
        found: dict[Side, set[str]] = {side: set() for side in SIDES}
        with self._database.reading() as connection:
            images = {
                _side(side): count for side, count in connection.execute(counted.group_by(sides.c.side))
            }
            for side in SIDES:
                # One at a time, each to its first image: of most categories there are many.
                for category in categories:
                    has = sa.exists(labelled.where(labels.c.category == category))
                    first = sa.select(sides.c.digest).where(*of, sides.c.side == side, has).limit(1)
                    if connection.scalar(first) is not None:
                        found[side].add(category)
        return {side: SideCounts(images.get(side, 0), frozenset(found[side])) for side in SIDES}

    def assign_side(
        self, tool: str, project: str, digest: str, side: Side, fingerprint: Fingerprint, known: int
    ) -> Side | None:
        """The side of the image: `side`, unless it has another already.

        None, and nothing is assigned, where other than `known` images of the project have a side by
        now: `side` was chosen without looking at all of them.
        """
        row = {"tool": tool, "project": project, "digest": digest, "side": side}
        pictured = {"hash": fingerprint.hash, "thumbnail": fingerprint.thumbnail}
        counted = sa.select(sa.func.count()).select_from(sides).where(*_of(tool, project))
        with self._database.writing() as connection:
            if there := _side_of(connection, tool, project, digest):
                return there
            if connection.scalar(counted) != known:
                return None
            connection.execute(sides.insert(), row | pictured)
        return side


def _side_of(connection: sa.Connection, tool: str, project: str, digest: str) -> Side | None:
    found = connection.scalar(sa.select(sides.c.side).where(*_of(tool, project), sides.c.digest == digest))
    return None if found is None else _side(found)


def _side(name: str) -> Side:
    return next(side for side in SIDES if side == name)


def _of(tool: str, project: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return sides.c.tool == tool, sides.c.project == project
