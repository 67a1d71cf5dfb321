"""Projects in the tools, and the addresses of the Label Studio and CVAT servers that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from clickmask.errors import Conflict
from clickmask.labels.submissions import ProjectDescribed, Unlabelled
from clickmask.store.database import Part, put
from clickmask.store.schema import annotations, labels, origins, projects


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
            told = {(tool, name): rest for tool, name, *rest in connection.execute(described)}
            images = {(tool, name): rest for tool, name, *rest in connection.execute(counted)}
            number = {(tool, name): count for tool, name, count in connection.execute(drawn)}
        found: list[Project] = []
        for tool, name in sorted(told.keys() | images.keys()):
            title, categories = told.get((tool, name), ("", "[]"))
            count, updated_at = images.get((tool, name), (0, None))
            size = (count, number.get((tool, name), 0), updated_at)
            found.append(Project(tool, name, title, tuple(json.loads(categories)), *size))
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

    def _set(self, tool: str, project: str, values: Mapping[str, str | None]) -> None:
        with self._database.writing() as connection:
            put(connection, projects, {"tool": tool, "project": project}, values)
