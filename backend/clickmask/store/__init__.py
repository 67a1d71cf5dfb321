"""What clickmask remembers across restarts, in one database."""

from __future__ import annotations

from pathlib import Path

from clickmask.store.accepted import Accepted
from clickmask.store.database import Database, WriteTimes
from clickmask.store.progress import Progress, SetAside
from clickmask.store.projects import Project, Projects
from clickmask.store.proposals import (
    KEPT_PROPOSALS,
    Preannotated,
    Preannotations,
    Proposals,
    RememberedProposal,
)
from clickmask.store.splits import Splits

__all__ = ("Preannotated", "Project", "RememberedProposal", "SetAside", "Store", "WriteTimes")


class Store(Proposals, Preannotations, Projects, Accepted, Splits, Progress):
    """Proposals, pre-annotations, projects, accepted labels, sides of a split, and how far events were read.

    `where` is the path of an SQLite file, or the URL of a database that SQLAlchemy knows
    (`postgresql+psycopg://…`). For any thread, and for several processes at once. Migrations run
    when it is opened. Raises StoreUnavailable where the database cannot be used.
    """

    def __init__(self, where: Path | str, kept_proposals: int = KEPT_PROPOSALS) -> None:
        super().__init__(Database(where))
        self._kept_proposals = kept_proposals
        self.forget_unfinished()

    def write_times(self) -> WriteTimes:
        return self._database.write_times

    def close(self) -> None:
        """Write what is still to be remembered, and stop."""
        self._stop_writing()
        self._database.close()
