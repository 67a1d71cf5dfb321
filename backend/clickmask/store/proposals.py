"""Proposals that answered clicks, and objects that models drew in advance."""

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from clickmask.masks.rle import Rle, mask_to_rle
from clickmask.store.database import MAX_VALUES, Database, Part, replace_set
from clickmask.store.schema import prelabels, proposals, unfinished
from clickmask.types import Prediction, Prompt, Size

log = logging.getLogger(__name__)

MAX_PROPOSALS = 200_000
MAX_PRELABELS = 200_000  # counted separately: one run over a project must not push proposals out
MAX_PENDING = 4  # proposals; each may hold a 50 MB mask
WRITE_DELAY_S = 0.05  # lets the answer leave first: Python runs one thread at a time


@dataclass(frozen=True)
class RememberedProposal:
    id: str
    created_at: float  # seconds since 1970
    digest: str
    segmenter: str
    score: float
    prompt: str  # JSON: foreground, background, box, and if there was a mask, a hash of it
    rle: Rle


@dataclass(frozen=True)
class PrelabelledObject:
    """An object a model drew. `batch` names its run; `label` is empty if the run found no object."""

    id: str
    batch: str
    created_at: float  # seconds since 1970
    annotator: str
    label: str
    score: float
    rle: Rle


class Proposals(Part):
    """The newest proposals, written by one thread so that nobody waits, and objects that models drew."""

    _max_proposals = MAX_PROPOSALS
    _max_prelabels = MAX_PRELABELS

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._ordering = threading.Lock()
        self._pending = 0
        self._hurry = threading.Event()  # set while somebody waits for pending proposals
        self._room = threading.BoundedSemaphore(MAX_PENDING)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="proposals")
        self._newest: Future[None] | None = None

    def remember_soon(self, id: str, digest: str, prompt: Prompt, prediction: Prediction) -> None:  # noqa: A002
        """Queue the proposal for writing; reads find it at once. Waits while MAX_PENDING are unwritten.

        One that the database refuses is lost and logged; people have its mask.
        """
        if not self._room.acquire(blocking=False):
            self._hurry.set()
            self._room.acquire()
        with self._ordering:
            self._pending += 1
            at = time.time()
            self._newest = self._writer.submit(self._write, id, digest, prompt, prediction, at)

    def remember_proposal(
        self,
        id: str,  # noqa: A002
        digest: str,
        prompt: Prompt,
        prediction: Prediction,
        at: float | None = None,
    ) -> None:
        """Write it now, dated `at` (seconds since 1970; default: now). Raises StoreUnavailable."""
        marks: dict[str, object] = {"foreground": prompt.foreground, "background": prompt.background}
        marks["box"] = prompt.box
        if prompt.mask is not None:
            marks["mask"] = hashlib.sha256(np.packbits(prompt.mask).tobytes()).hexdigest()[:16]
        row = _row(id, time.time() if at is None else at, digest, prediction)
        row |= {"segmenter": prediction.segmenter, "prompt": json.dumps(marks)}
        with self._database.writing() as connection:
            number = connection.execute(proposals.insert().returning(proposals.c.number), row).scalar_one()
        self._database.remove_rows(proposals, proposals.c.number <= number - self._max_proposals)

    def proposal(self, id: str) -> RememberedProposal | None:  # noqa: A002
        return next(iter(self._read(proposals.c.id == id)), None)

    def proposals(self, digest: str) -> list[RememberedProposal]:
        """Proposals on one image, oldest first."""
        return self._read(proposals.c.digest == digest)

    def proposed(self, digest: str, ids: Collection[str]) -> set[str]:
        """Those of `ids` that are proposals on the image, a model's objects included."""
        self._settle()
        found, asked = set[str](), sorted(ids)
        for start in range(0, len(asked), MAX_VALUES):
            some = asked[start : start + MAX_VALUES]
            for table in (proposals, prelabels):
                chosen = sa.select(table.c.id).where(table.c.digest == digest, table.c.id.in_(some))
                found.update(row.id for row in self._rows(chosen))
        return found

    def close(self) -> None:
        """Write pending proposals, then stop the writer."""
        self._settle()
        self._writer.shutdown()

    def _write(self, id: str, digest: str, prompt: Prompt, prediction: Prediction, at: float) -> None:  # noqa: A002
        try:
            self._hurry.wait(max(0.0, at + WRITE_DELAY_S - time.time()))
            self.remember_proposal(id, digest, prompt, prediction, at)
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and people have its mask
            log.error("a proposal could not be remembered: %s", error)
        finally:
            with self._ordering:
                self._pending -= 1
                if not self._pending:
                    self._hurry.clear()
            self._room.release()

    def _settle(self) -> None:
        """Wait until all queued proposals are written. The thread writes them in order."""
        with self._ordering:
            newest = self._newest
            if self._pending:
                self._hurry.set()
        if newest:
            wait([newest])

    def _read(self, of: sa.ColumnElement[bool]) -> list[RememberedProposal]:
        self._settle()
        chosen = sa.select(proposals).where(of).order_by(proposals.c.number)
        return [
            RememberedProposal(
                row.id, row.created_at, row.digest, row.segmenter, row.score, row.prompt, _rle(row)
            )
            for row in self._rows(chosen)
        ]

    def remember_prelabels(
        self, digest: str, size: Size, annotator: str, found: Sequence[tuple[str, str, Prediction]]
    ) -> None:
        """Remember a run of `annotator`: id, label and prediction of each object. Readers see all or none."""
        now, batch = time.time(), secrets.token_urlsafe(9)
        nothing = (batch, "", Prediction(np.zeros(size, np.bool_), 0.0, annotator))
        rows = [
            _row(id, now, digest, prediction) | {"batch": batch, "annotator": annotator, "label": label}
            for id, label, prediction in found or [nothing]  # noqa: A001 - called so everywhere
        ]
        self._database.write_rows(batch, prelabels, rows)
        with self._database.writing() as connection:
            replace_set(connection, batch)
            newest = connection.scalar(sa.select(sa.func.max(prelabels.c.number))) or 0
        self._database.remove_rows(prelabels, prelabels.c.number <= newest - self._max_prelabels)

    def prelabels(self, digest: str) -> list[PrelabelledObject]:
        """Objects that models drew on an image, oldest first."""
        complete = prelabels.c.batch.not_in(sa.select(unfinished.c.revision))
        chosen = sa.select(prelabels).where(prelabels.c.digest == digest, complete)
        return [
            PrelabelledObject(
                row.id, row.batch, row.created_at, row.annotator, row.label, row.score, _rle(row)
            )
            for row in self._rows(chosen.order_by(prelabels.c.number))
        ]


def _row(id: str, at: float, digest: str, prediction: Prediction) -> dict[str, Any]:  # noqa: A002
    """The columns that both tables have."""
    rle = mask_to_rle(prediction.mask)
    mask = {"height": rle["size"][0], "width": rle["size"][1], "counts": rle["counts"]}
    return {"id": id, "created_at": at, "digest": digest, "score": prediction.score, **mask}


def _rle(row: sa.Row[Any]) -> Rle:
    return {"size": [row.height, row.width], "counts": row.counts}
