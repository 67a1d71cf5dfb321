"""On which side of the split an image is."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from clickmask.near_duplicates import Fingerprint
from clickmask.store.database import Database
from clickmask.store.schema import sides


class AssignedSide(NamedTuple):
    """`fingerprint` is kept with it: the image itself may be gone when its neighbours come."""

    digest: str
    side: str
    fingerprint: Fingerprint


class Splits:
    """A side is assigned once: whoever comes later is told the first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sides(self, tool: str, project: str) -> list[AssignedSide]:
        """Every image that has a side, by digest, its labels withdrawn or not."""
        chosen = sa.select(sides.c.digest, sides.c.side, sides.c.hash, sides.c.thumbnail)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.where(*_of(tool, project)).order_by(sides.c.digest)).all()
        return [
            AssignedSide(digest, side, Fingerprint(code, thumbnail)) for digest, side, code, thumbnail in rows
        ]

    def side_of(self, tool: str, project: str, digest: str) -> str | None:
        with self._database.reading() as connection:
            return _side(connection, tool, project, digest)

    def assign_side(self, tool: str, project: str, digest: str, side: str, fingerprint: Fingerprint) -> str:
        """The side of the image: `side`, unless it has another already."""
        row = {"tool": tool, "project": project, "digest": digest, "side": side}
        pictured = {"hash": fingerprint.hash, "thumbnail": fingerprint.thumbnail}
        with self._database.writing() as connection:
            there = _side(connection, tool, project, digest)
            if there is None:
                connection.execute(sides.insert(), row | pictured)
        return side if there is None else there


def _side(connection: sa.Connection, tool: str, project: str, digest: str) -> str | None:
    return connection.scalar(sa.select(sides.c.side).where(*_of(tool, project), sides.c.digest == digest))


def _of(tool: str, project: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return sides.c.tool == tool, sides.c.project == project
