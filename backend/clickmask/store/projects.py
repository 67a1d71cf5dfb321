"""Projects in the tools, and the split sides of their images."""

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from clickmask.errors import Conflict
from clickmask.labels.split import SIDES, Assigned, Fingerprint, Side, SideCounts
from clickmask.labels.submissions import ProjectDescribed, Unlabelled
from clickmask.masks.controls import AS_IT_IS, Controls, controls_of
from clickmask.store.database import MAX_VALUES, Database, Part, put
from clickmask.store.schema import annotations, labels, origins, projects, pulls, sides

TALLY_TTL_S = 10.0  # after this time, what other processes removed counts as removed here too


@dataclass(frozen=True)
class Project:
    """A project and its size. `images` and `labels` include those of all annotators."""

    tool: str
    project: str
    title: str
    categories: tuple[str, ...]  # in the tool's order; a label may have a category that is not listed
    images: int
    labels: int
    updated_at: float | None  # of the newest annotation, seconds since 1970


@dataclass(frozen=True)
class _Tally:
    """What was counted before `removals` and `until`, with what was assigned since."""

    images: dict[Side, int]  # annotated ones
    everywhere: set[str]  # categories of which every side has a label
    removals: int
    until: float  # seconds of time.monotonic


class Projects(Part):
    """Projects, and the addresses of the Label Studio and CVAT servers that hold them."""

    def set_project_segmenter(self, tool: str, project: str, segmenter: str | None) -> None:
        """Remember the project's segmenter; None means the default."""
        self._set(tool, project, {"segmenter": segmenter})

    def project_segmenter(self, tool: str, project: str) -> str | None:
        return self._scalar(sa.select(projects.c.segmenter).filter_by(tool=tool, project=project))

    def set_project_controls(self, tool: str, project: str, controls: Controls) -> None:
        """Remember what the project asks of every click's mask."""
        self._set(tool, project, {"controls": json.dumps(controls.wishes())})

    def project_controls(self, tool: str, project: str) -> Controls:
        kept = self._scalar(sa.select(projects.c.controls).filter_by(tool=tool, project=project))
        return controls_of(json.loads(kept)) if kept else AS_IT_IS

    def set_unlabelled(self, tool: str, project: str, unlabelled: Unlabelled) -> None:
        """Remember how to treat unlabelled area: as background, or as unknown and ignored."""
        self._set(tool, project, {"unlabelled": unlabelled})

    def unlabelled(self, tool: str, project: str) -> Unlabelled:
        chosen = sa.select(projects.c.unlabelled).filter_by(tool=tool, project=project)
        return "ignore" if self._scalar(chosen) == "ignore" else "background"

    def describe_project(self, described: ProjectDescribed) -> None:
        """Remember the project's title and categories."""
        values = {"title": described.title, "categories": json.dumps(described.categories)}
        chosen = sa.select(projects.c.title, projects.c.categories)
        there = self._rows(chosen.filter_by(tool=described.tool, project=described.project))
        if not there or tuple(there[0]) != tuple(values.values()):  # each event repeats them
            self._set(described.tool, described.project, values)

    def projects(self) -> list[Project]:
        """Projects that have annotations or were described, sorted by tool and name."""
        of = (annotations.c.tool, annotations.c.project)
        stands = annotations.c.skipped.is_(False)
        sizes = (sa.func.count(sa.distinct(annotations.c.digest)), sa.func.max(annotations.c.updated_at))
        counted = sa.select(*of, *sizes).where(stands).group_by(*of)
        joined = annotations.join(labels, labels.c.revision == annotations.c.revision)
        drawn = sa.select(*of, sa.func.count()).select_from(joined).where(stands).group_by(*of)
        described = sa.select(projects.c.tool, projects.c.project, projects.c.title, projects.c.categories)
        with self._database.reading() as connection:
            told, images, numbers = (
                {(tool, name): rest for tool, name, *rest in connection.execute(query)}
                for query in (described, counted, drawn)
            )
        found: list[Project] = []
        for key in sorted(told.keys() | images.keys()):
            title, categories = told.get(key, ("", "[]"))
            count, updated_at = images.get(key, (0, None))
            (labelled,) = numbers.get(key, (0,))
            found.append(Project(*key, title, tuple(json.loads(categories)), count, labelled, updated_at))
        return found

    def knows_project(self, tool: str, project: str) -> bool:
        """Whether the tool has described the project or submitted anything in it."""
        tables = (projects, annotations)
        chosen = (sa.select(table.c.tool).filter_by(tool=tool, project=project) for table in tables)
        return any(self._scalar(each.limit(1)) is not None for each in chosen)

    def categories(self, tool: str, project: str) -> tuple[str, ...]:
        """Categories in the tool's order; empty until the tool lists them."""
        chosen = sa.select(projects.c.categories).filter_by(tool=tool, project=project)
        return tuple(json.loads(self._scalar(chosen) or "[]"))

    def require_origin(self, tool: str, origin: str, moved: bool = False) -> None:
        """Remember the tool's address. Raises Conflict if this home holds labels from another server.

        Ids are unique only within one server. `moved` means the same server at a new address.
        """
        some = sa.select(annotations.c.annotation).where(annotations.c.tool == tool).limit(1)
        with self._database.writing() as connection:
            there = connection.scalar(sa.select(origins.c.origin).where(origins.c.tool == tool))
            if there == origin:
                return
            if there and not moved and connection.scalar(some):
                command = f"clickmask pull {tool.replace('_', '-')} PROJECT --moved"
                raise Conflict(
                    f"this home holds the labels of {there}, not of {origin}: set CLICKMASK_HOME to a folder "
                    f"of its own for each, or say `{command}` once if it is the same one at a new address"
                )
            put(connection, origins, {"tool": tool}, {"origin": origin})

    def pull_position(self, tool: str, project: str) -> str | None:
        """The position where an interrupted pull resumes; None if it starts at the beginning."""
        return self._scalar(sa.select(pulls.c.position).filter_by(tool=tool, project=project))

    def set_pull_position(self, tool: str, project: str, position: str | None) -> None:
        """Record where the pull resumes; None if it is complete."""
        with self._database.writing() as connection:
            if position is None:
                connection.execute(pulls.delete().filter_by(tool=tool, project=project))
            else:
                put(connection, pulls, {"tool": tool, "project": project}, {"position": position})

    def _set(self, tool: str, project: str, values: dict[str, Any]) -> None:
        with self._database.writing() as connection:
            put(connection, projects, {"tool": tool, "project": project}, values)


class Splits(Part):
    """Split sides, each assigned once. Stored fingerprints still find near duplicates of a lost image.

    Each new image asks for all hashes of its project, and how many images each side has. Reading that would
    take longer with every image, so both are kept in memory.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._hashes: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def sides(self, tool: str, project: str, among: Collection[str] | None = None) -> list[Assigned]:
        """Images with a side, labelled or not, sorted by digest; only those in `among`, if given."""
        chosen = sa.select(sides.c.digest, sides.c.side, sides.c.hash, sides.c.thumbnail)
        chosen = chosen.filter_by(tool=tool, project=project).order_by(sides.c.digest)
        if among is None:
            rows = self._rows(chosen)
        else:
            asked = sorted(among)
            some = (asked[start : start + MAX_VALUES] for start in range(0, len(asked), MAX_VALUES))
            rows = [row for each in some for row in self._rows(chosen.where(sides.c.digest.in_(each)))]
        return [Assigned(row.digest, _side(row.side), Fingerprint(row.hash, row.thumbnail)) for row in rows]

    def hashes(self, tool: str, project: str) -> list[tuple[str, bytes]]:
        """The digest and fingerprint hash of every image with a side."""
        of = {"tool": tool, "project": project}
        with self._database.reading() as connection:
            # Sides are never taken away: equally many are the same ones.
            if len(self._hashes.get((tool, project), ())) != connection.scalar(_ASSIGNED, of):
                rows = connection.execute(_HASHES, of)
                self._hashes[tool, project] = [(digest, code) for digest, code in rows]
                self._tallies.pop((tool, project), None)
        return list(self._hashes.get((tool, project), ()))

    def side_of(self, tool: str, project: str, digest: str) -> Side | None:
        with self._database.reading() as connection:
            found = connection.scalar(_SIDE_OF, {"tool": tool, "project": project, "digest": digest})
        if found:  # an image that had lost its labels may be about to get some
            self._tallies.pop((tool, project), None)
        return found and _side(found)

    def side_counts(self, tool: str, project: str, categories: Collection[str]) -> dict[Side, SideCounts]:
        """The number of annotated images on each side, and which of `categories` their labels use."""
        of, on = {"tool": tool, "project": project}, dict[str, Sequence[Any]]()
        tally = self._tallies.get((tool, project))
        with self._database.reading() as connection:
            if not tally or tally.removals != self._database.removals or time.monotonic() > tally.until:
                removals, until = self._database.removals, time.monotonic() + TALLY_TTL_S
                rows = connection.execute(_IMAGES_BY_SIDE, of)
                counted: dict[Side, int] = {_side(name): count for name, count in rows}
                tally = self._tallies[tool, project] = _Tally(counted, set(), removals, until)
            for category in set(categories) - tally.everywhere:
                on[category] = connection.execute(_SIDES_WITH, of | {"category": category}).one()
                if all(on[category]):
                    tally.everywhere.add(category)
        return {
            side: SideCounts(
                tally.images.get(side, 0),
                frozenset(each for each in categories if each not in on or on[each][number]),
            )
            for number, side in enumerate(SIDES)
        }

    def assign_side(
        self, tool: str, project: str, digest: str, side: Side, fingerprint: Fingerprint, known: int
    ) -> Side | None:
        """Assign `side` unless the image already has one. Returns the image's side, or None: choose again."""
        of = {"tool": tool, "project": project}
        row = {"digest": digest, "side": side, "hash": fingerprint.hash, "thumbnail": fingerprint.thumbnail}
        with self._database.writing() as connection:
            if there := connection.scalar(_SIDE_OF, {**of, "digest": digest}):
                return _side(there)
            if connection.scalar(_ASSIGNED, of) != known:
                self._tallies.pop((tool, project), None)
                return None  # `side` was chosen without some images that have a side now
            connection.execute(sides.insert(), of | row)
        hashes, tally = self._hashes.get((tool, project)), self._tallies.get((tool, project))
        if hashes is not None and len(hashes) == known:
            hashes.append((digest, fingerprint.hash))
        if tally:
            tally.images[side] = tally.images.get(side, 0) + 1
        return side


# Composed once, as this takes longer than their answers: each image that is taken in asks them.
_IN_PROJECT = tuple(sides.c[name] == sa.bindparam(name) for name in ("tool", "project"))
_SIDE_OF = sa.select(sides.c.side).where(*_IN_PROJECT, sides.c.digest == sa.bindparam("digest"))
_HASHES = sa.select(sides.c.digest, sides.c.hash).where(*_IN_PROJECT)
_ASSIGNED = sa.select(sa.func.count()).select_from(sides).where(*_IN_PROJECT)
_ANNOTATED = sa.select(annotations.c.digest).where(
    *(annotations.c[name] == sa.bindparam(name) for name in ("tool", "project")),
    annotations.c.skipped.is_(False),
)
_IMAGES_BY_SIDE = (
    sa.select(sides.c.side, sa.func.count())
    .where(*_IN_PROJECT, sides.c.digest.in_(_ANNOTATED))
    .group_by(sides.c.side)
)
_LABELLED = (
    sa.select(labels.c.category)
    .select_from(annotations.join(labels, labels.c.revision == annotations.c.revision))
    # Joined to "", as SQLite may else go through all annotations of the project for each image.
    .where(*(annotations.c[name] + "" == sa.bindparam(name) for name in ("tool", "project")))
    .where(annotations.c.digest == sides.c.digest, annotations.c.skipped.is_(False))
    .where(labels.c.category == sa.bindparam("category"))
    .correlate(sides)
)
# Each part stops at the first image: most categories have many.
_SIDES_WITH = sa.select(
    *(
        sa.exists(sa.select(sides.c.digest).where(*_IN_PROJECT, sides.c.side == side, sa.exists(_LABELLED)))
        for side in SIDES
    )
)


def _side(name: str) -> Side:
    return next(side for side in SIDES if side == name)
