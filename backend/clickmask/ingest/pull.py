"""Stores everything accepted in a tool's project, in the same way as webhooks do."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from clickmask.errors import ClickmaskError, NotFound, StoreUnavailable, ToolUnavailable
from clickmask.ingest.apply import Ingester, LabelSource, Page
from clickmask.labels.submissions import Submission
from clickmask.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """The progress of a pull. Its parts are tasks or jobs."""

    read: int = 0
    remaining: int | None = None  # parts to come; None if unknown
    taken: int = 0  # submissions that changed the store
    known: int = 0  # submissions that were already stored
    gone: int = 0  # annotations and tasks that the tool no longer has
    left_out: tuple[str, ...] = ()  # sentences about what could not be stored


def pull(name: str, tool: LabelSource, project: str, store: Store, ingester: Ingester) -> Generator[Progress]:
    """Store everything accepted in `project` of `tool`, called `name`. Yields after each part.

    Resumes where the last pull stopped. Ends with deletions that no webhook announced; if the project was
    deleted, everything goes. `left_out` names what fails. Raises NotFound, ToolUnavailable, StoreUnavailable.
    """
    read, taken, known, left_out = 0, 0, 0, list[str]()
    seen: set[tuple[str, str]] = set()
    is_known = store.knows_project(name, project)
    for part in _parts(tool, project, store.pull_position(name, project), is_known):
        for change in part.changes:
            what = ""
            if isinstance(change, Submission):
                seen.add((change.task, change.annotation))
                what = f"task {change.task}, annotation {change.annotation}: "
            try:
                changed = ingester.apply(change, tool)
            except (ToolUnavailable, StoreUnavailable):
                raise
            except ClickmaskError as error:
                left_out.append(f"{what}{error}")
            except Exception as error:  # else every pull would stop here, short of the rest
                log.error("%sit cannot be taken in", what, exc_info=error)
                left_out.append(f"{what}something went wrong inside clickmask ({type(error).__name__})")
            else:
                if isinstance(change, Submission):
                    taken, known = taken + changed, known + (not changed)
        store.set_pull_position(name, project, part.position)
        read += 1
        yield Progress(read, part.remaining, taken, known, 0, tuple(left_out))
    unseen = [each for each in store.annotations(name, project) if each not in seen]
    gone = sum(ingester.apply(deletion, tool) for deletion in tool.gone(unseen))
    store.set_pull_position(name, project, None)
    yield Progress(read, 0, taken, known, gone, tuple(left_out))


def _parts(tool: LabelSource, project: str, position: str | None, is_known: bool) -> Iterator[Page]:
    """Pages of the tool; none if the tool has deleted a project that is known here."""
    try:
        yield from tool.pull(project, position)
    except NotFound:
        if not is_known:
            raise
