"""What clickmask remembers across restarts, in one database."""

from __future__ import annotations

from pathlib import Path

from clickmask.store.accepted import Accepted
from clickmask.store.database import Database, WriteTimes
from clickmask.store.jobs import Jobs
from clickmask.store.progress import FailedEvent, Progress
from clickmask.store.projects import Project, Projects
from clickmask.store.proposals import (
    MAX_PROPOSALS,
    PrelabelledObject,
    Prelabels,
    Proposals,
    RememberedProposal,
)
from clickmask.store.splits import Splits

__all__ = (
    "FailedEvent",
    "PrelabelledObject",
    "Project",
    "RememberedProposal",
    "Store",
    "WriteTimes",
)


class Store(Proposals, Prelabels, Projects, Accepted, Splits, Progress):
    """Proposals, prelabels, projects, accepted labels, sides of a split, progress of reading, and jobs.

    `where` is the path of an SQLite file, or the URL of a database that SQLAlchemy knows
    (`postgresql+psycopg://…`). For any thread, and for several processes at once. Opening it migrates it.
    Every method raises StoreUnavailable if the database cannot be used.
    """

    def __init__(self, where: Path | str, max_proposals: int = MAX_PROPOSALS) -> None:
        super().__init__(Database(where))
        self.jobs = Jobs(self._database)
        self._max_proposals = max_proposals
        self.forget_unfinished()

    def write_times(self) -> WriteTimes:
        return self._database.write_times

    def close(self) -> None:
        """Write what is still to be remembered, and stop."""
        super().close()
        self._database.close()
