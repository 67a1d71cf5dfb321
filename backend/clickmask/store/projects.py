"""Projects in the tools, and the split sides of their images."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from clickmask.errors import Conflict
from clickmask.labels.split import SIDES, Assigned, Fingerprint, Side, SideCounts
from clickmask.labels.submissions import ProjectDescribed, Unlabelled
from clickmask.store.database import Part, put
from clickmask.store.schema import annotations, labels, origins, projects, pulls, sides


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


class Projects(Part):
    """Projects, and the addresses of the Label Studio and CVAT servers that hold them."""

    def set_project_segmenter(self, tool: str, project: str, segmenter: str | None) -> None:
        """Remember the project's segmenter; None means the default."""
        self._set(tool, project, {"segmenter": segmenter})

    def project_segmenter(self, tool: str, project: str) -> str | None:
        return self._scalar(sa.select(projects.c.segmenter).filter_by(tool=tool, project=project))

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
        found = self._scalar(sa.select(sides.c.side).filter_by(tool=tool, project=project, digest=digest))
        return found and _side(found)

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
        """Assign `side` unless the image already has one. Returns the image's side, or None: choose again."""
        of = {"tool": tool, "project": project}
        row = {"digest": digest, "side": side, "hash": fingerprint.hash, "thumbnail": fingerprint.thumbnail}
        counted = sa.select(sa.func.count()).select_from(sides).filter_by(**of)
        with self._database.writing() as connection:
            if there := connection.scalar(sa.select(sides.c.side).filter_by(**of, digest=digest)):
                return _side(there)
            if connection.scalar(counted) != known:
                return None  # `side` was chosen without some images that have a side now
            connection.execute(sides.insert(), of | row)
        return side


def _side(name: str) -> Side:
    return next(side for side in SIDES if side == name)
