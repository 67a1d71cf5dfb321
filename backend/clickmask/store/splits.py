"""On which side of the split an image is."""

from __future__ import annotations

import sqlalchemy as sa

from clickmask.store.database import Database
from clickmask.store.schema import sides


class Splits:
    """A side is assigned once: whoever comes later is told the first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sides(self, tool: str, project: str) -> dict[str, str]:
        """The side of every image that has one, by digest."""
        chosen = sa.select(sides.c.digest, sides.c.side).where(*_of(tool, project))
        with self._database.reading() as connection:
            return dict(row.tuple() for row in connection.execute(chosen))

    def side_of(self, tool: str, project: str, digest: str) -> str | None:
        chosen = sa.select(sides.c.side).where(*_of(tool, project), sides.c.digest == digest)
        with self._database.reading() as connection:
            return connection.scalar(chosen)

    def assign_side(self, tool: str, project: str, digest: str, side: str) -> str:
        """The side of the image: `side`, unless it has another already."""
        chosen = sa.select(sides.c.side).where(*_of(tool, project), sides.c.digest == digest)
        with self._database.writing() as connection:
            there = connection.scalar(chosen)
            if there is None:
                row = {"tool": tool, "project": project, "digest": digest, "side": side}
                connection.execute(sides.insert(), row)
        return side if there is None else there


def _of(tool: str, project: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return sides.c.tool == tool, sides.c.project == project
