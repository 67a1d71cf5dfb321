"""Every proposal that a click was answered with.

Every object that a model drew before people did, and that they were shown.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from clickmask.masks.rle import Rle, mask_to_rle
from clickmask.store.database import Database
from clickmask.store.label_sets import remove_rows, replace_set, write_rows
from clickmask.store.schema import preannotated, proposals, unfinished
from clickmask.types import Prediction, Prompt, Size

log = logging.getLogger(__name__)
MAX_PROPOSALS = 200_000
MAX_PENDING = 4  # each may hold a mask of 50 MB
WRITE_DELAY_S = 0.05  # seconds in which the answer leaves first: two threads of Python hinder each other
_INSERT = proposals.insert().returning(proposals.c.number)
_SELECT = sa.select(*(column for column in proposals.c if column.name != "number"))


@dataclass(frozen=True)
class RememberedProposal:
    id: str
    created_at: float  # seconds since 1970
    digest: str
    segmenter: str
    score: float
    prompt: str  # JSON: foreground, background, box
    rle: Rle


class Proposals:
    """The newest 200,000 are kept. One thread writes them, so that no annotator waits for that."""

    _max_proposals = MAX_PROPOSALS

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ordering = threading.Lock()
        self._pending = 0
        self._hurry = threading.Event()  # set while somebody waits for what is pending
        self._room = threading.BoundedSemaphore(MAX_PENDING)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="proposals")
        self._newest: Future[None] | None = None

    def remember_soon(self, id: str, digest: str, prompt: Prompt, prediction: Prediction) -> None:  # noqa: A002
        """Remember it after those before it; who looks for proposals finds it from now on.

        Waits only while MAX_PENDING are unwritten. One that the database refuses is lost, which the
        log says: the annotator has the mask.
        """
        if not self._room.acquire(blocking=False):
            self._hurry.set()
            self._room.acquire()
        with self._ordering:
            self._pending += 1
            at = time.time()
            self._newest = self._writer.submit(self._write, id, digest, prompt, prediction, at)

    def remember_proposal(self, id: str, digest: str, prompt: Prompt, prediction: Prediction) -> None:  # noqa: A002
        """Remember it now. Raises StoreUnavailable."""
        self._remember(id, digest, prompt, prediction, time.time())

    def _remember(self, id: str, digest: str, prompt: Prompt, prediction: Prediction, at: float) -> None:  # noqa: A002
        rle = mask_to_rle(prediction.mask)
        height, width = rle["size"]
        pointed = {"foreground": prompt.foreground, "background": prompt.background, "box": prompt.box}
        row = {
            "id": id,
            "created_at": at,
            "digest": digest,
            "segmenter": prediction.segmenter,
            "score": prediction.score,
            "prompt": json.dumps(pointed),
            "height": height,
            "width": width,
            "counts": rle["counts"],
        }
        with self._database.writing() as connection:
            number = connection.execute(_INSERT, row).scalar_one()
        remove_rows(self._database, proposals, proposals.c.number <= number - self._max_proposals)

    def _write(self, id: str, digest: str, prompt: Prompt, prediction: Prediction, at: float) -> None:  # noqa: A002
        try:
            self._hurry.wait(max(0.0, at + WRITE_DELAY_S - time.time()))
            self._remember(id, digest, prompt, prediction, at)
        except Exception as error:  # noqa: BLE001 - nobody waits for the outcome, so it is said here
            log.error("a proposal could not be remembered: %s", error)
        finally:
            with self._ordering:
                self._pending -= 1
                if not self._pending:
                    self._hurry.clear()
            self._room.release()

    def _settle(self) -> None:
        """Wait until all that were handed over are written: the thread takes them in turn."""
        with self._ordering:
            newest = self._newest
            if self._pending:
                self._hurry.set()
        if newest:
            wait([newest])

    def _stop_writing(self) -> None:
        """Once all is written."""
        self._settle()
        self._writer.shutdown()

    def proposal(self, id: str) -> RememberedProposal | None:  # noqa: A002
        self._settle()
        with self._database.reading() as connection:
            row = connection.execute(_SELECT.where(proposals.c.id == id)).mappings().first()
        return _remembered(row) if row else None

    def proposals(self, digest: str) -> list[RememberedProposal]:
        """Those on one image, oldest first."""
        self._settle()
        chosen = _SELECT.where(proposals.c.digest == digest).order_by(proposals.c.number)
        with self._database.reading() as connection:
            return [_remembered(row) for row in connection.execute(chosen).mappings()]


def _remembered(row: sa.RowMapping) -> RememberedProposal:
    return RememberedProposal(
        id=row["id"],
        created_at=row["created_at"],
        digest=row["digest"],
        segmenter=row["segmenter"],
        score=row["score"],
        prompt=row["prompt"],
        rle={"size": [row["height"], row["width"]], "counts": row["counts"]},
    )


MAX_PRELABELS = 200_000  # apart from clicks' proposals: one run over a project must not push these out


@dataclass(frozen=True)
class PrelabelledObject:
    """`batch` is the same for what one look at the image gave; without a label: it gave nothing."""

    id: str
    batch: str
    created_at: float  # seconds since 1970
    annotator: str
    label: str
    score: float
    rle: Rle


class Prelabels:
    """The newest 200,000 objects are kept."""

    _max_prelabels = MAX_PRELABELS

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember_prelabels(
        self, digest: str, size: Size, annotator: str, found: Sequence[tuple[str, str, Prediction]]
    ) -> None:
        """What one look at the image of `size` gave: id, label and prediction of each object.

        However many there are, each write transaction is short, and readers see all of a look or nothing.
        """
        batch = secrets.token_urlsafe(9)
        height, width = size
        look = {"batch": batch, "created_at": time.time(), "digest": digest, "annotator": annotator}
        common = {**look, "height": height, "width": width}
        rows = [
            {
                **common,
                "id": id,
                "label": label,
                "score": prediction.score,
                "counts": mask_to_rle(prediction.mask)["counts"],
            }
            for id, label, prediction in found  # noqa: A001 - its name everywhere
        ]
        if not rows:
            nothing = mask_to_rle(np.zeros(size, np.bool_))["counts"]
            rows = [{**common, "id": batch, "label": "", "score": 0.0, "counts": nothing}]
        write_rows(self._database, batch, preannotated, rows)
        with self._database.writing() as connection:
            replace_set(connection, batch)
            newest = connection.scalar(sa.select(sa.func.max(preannotated.c.number))) or 0
        remove_rows(self._database, preannotated, preannotated.c.number <= newest - self._max_prelabels)

    def prelabels(self, digest: str) -> list[PrelabelledObject]:
        """Those on one image, oldest first."""
        stands = preannotated.c.batch.not_in(sa.select(unfinished.c.revision))
        chosen = sa.select(preannotated).where(preannotated.c.digest == digest, stands)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.order_by(preannotated.c.number)).mappings()
            return [
                PrelabelledObject(
                    row["id"],
                    row["batch"],
                    row["created_at"],
                    row["annotator"],
                    row["label"],
                    row["score"],
                    {"size": [row["height"], row["width"]], "counts": row["counts"]},
                )
                for row in rows
            ]
