"""Every object that a model drew before people did, and that they were shown."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from clickmask.masks import Rle, mask_to_rle
from clickmask.store.database import Database
from clickmask.store.schema import preannotated
from clickmask.types import Prediction

KEPT_PREANNOTATED = 200_000  # apart from clicks' proposals: one run over a project must not push these out

_FORGET = preannotated.delete().where(preannotated.c.number <= sa.bindparam("last"))


@dataclass(frozen=True)
class Preannotated:
    """`batch` is the same for what one look at the image gave."""

    id: str
    batch: str
    created_at: float  # seconds since 1970
    annotator: str
    label: str
    score: float
    rle: Rle


class Preannotations:
    """The newest 200,000 objects are kept."""

    _kept_preannotated = KEPT_PREANNOTATED

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember_preannotated(
        self, digest: str, annotator: str, found: Sequence[tuple[str, str, Prediction]]
    ) -> None:
        """What one look at the image gave: id, label and prediction of each object."""
        batch, now = secrets.token_urlsafe(9), time.time()
        rows = [
            {
                "id": id,
                "batch": batch,
                "created_at": now,
                "digest": digest,
                "annotator": annotator,
                "label": label,
                "score": prediction.score,
                "height": prediction.mask.shape[0],
                "width": prediction.mask.shape[1],
                "counts": mask_to_rle(prediction.mask)["counts"],
            }
            for id, label, prediction in found  # noqa: A001 - its name everywhere
        ]
        if not rows:
            return
        with self._database.writing() as connection:
            connection.execute(preannotated.insert(), rows)
            newest = connection.scalar(sa.select(sa.func.max(preannotated.c.number)))
            connection.execute(_FORGET, {"last": (newest or 0) - self._kept_preannotated})

    def preannotated(self, digest: str) -> list[Preannotated]:
        """Those on one image, oldest first."""
        chosen = sa.select(preannotated).where(preannotated.c.digest == digest)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.order_by(preannotated.c.number)).mappings()
            return [
                Preannotated(
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
