"""The database that keeps what clickmask remembers across restarts."""

from collections.abc import Callable
from pathlib import Path

from clickmask.store.accepted import Accepted, FailedEvent, Progress
from clickmask.store.database import Database, WriteTimes
from clickmask.store.jobs import Jobs
from clickmask.store.projects import Project, Projects, Splits
from clickmask.store.proposals import MAX_PROPOSALS, PrelabelledObject, Proposals, RememberedProposal

__all__ = ("FailedEvent", "PrelabelledObject", "Project", "RememberedProposal", "Store", "WriteTimes")


class Store(Proposals, Projects, Accepted, Splits, Progress):
    """Proposals, prelabels, projects, accepted labels, split sides, reading progress, and jobs.

    `where` is the path of an SQLite file or an SQLAlchemy URL (`postgresql+psycopg://…`). Safe for several
    threads and processes. Opening it migrates it. Every method raises StoreUnavailable if the database fails,
    and calls `make_room` first if the disk is full.
    """

    def __init__(
        self,
        where: Path | str,
        max_proposals: int = MAX_PROPOSALS,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(Database(where, make_room))
        self.jobs = Jobs(self._database)
        self._max_proposals = max_proposals
        self.forget_unfinished()

    def write_times(self) -> WriteTimes:
        return self._database.write_times

    def close(self) -> None:
        """Write pending proposals, then close the database."""
        super().close()
        self._database.close()
